/* Weights of antialiased resampling, as torch's interpolate and Pillow's resize compute them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "engine.h"

static double triangle(double x) { return fabs(x) < 1 ? 1 - fabs(x) : 0; }

static double cubic(double x) { /* a = -0.5 */
  x = fabs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/* Where output i begins, and its weights, which sum to 1; returns their number. */
static int exact(const weights *w, int i, int *first, double *to) {
  double scale = (double)w->source / w->target, reach = scale > 1 ? scale : 1;
  double support = (w->filter == GRATIS_CUBIC ? 2 : 1) * reach, centre = scale * (i + 0.5), sum = 0;
  int begin = (int)fmax(centre - support + 0.5, 0), end = (int)fmin(centre + support + 0.5, w->source);
  for (int t = begin; t < end; t++) {
    double x = (t - centre + 0.5) / reach;
    sum += to[t - begin] = w->filter == GRATIS_CUBIC ? cubic(x) : triangle(x);
  }
  for (int t = 0; t < end - begin; t++) to[t] /= sum;
  *first = begin;
  return end - begin;
}

static int round_weights(weights *w, const double *values, const int *counts, int most) {
  double largest = 0;
  for (int64_t k = 0; k < (int64_t)w->target * most; k++) largest = fmax(largest, values[k]);
  for (w->precision = 0; w->precision < 22; w->precision++)
    if ((int)(0.5 + largest * (1 << (w->precision + 1))) >= 1 << 15) break;
  for (int i = 0; i < w->target; i++)
    for (int t = 0; t < counts[i]; t++)
      w->weights[(int64_t)i * w->taps + t] = (int16_t)lround(values[(int64_t)i * most + t] * (1 << w->precision));
  return 1;
}

static int fill_weights(weights *w) {
  double scale = (double)w->source / w->target;
  int most = (int)ceil((w->filter == GRATIS_CUBIC ? 4 : 2) * (scale > 1 ? scale : 1)) + 2, longest = 1;
  double *values = calloc((size_t)w->target * most, sizeof *values);
  int *counts = calloc((size_t)w->target, sizeof *counts);
  w->first = calloc((size_t)w->target, sizeof *w->first);
  if (values && counts && w->first)
    for (int i = 0; i < w->target; i++) {
      counts[i] = exact(w, i, &w->first[i], values + (int64_t)i * most);
      if (counts[i] > longest) longest = counts[i];
    }
  w->taps = longest + (longest & 1);
  w->weights = calloc((size_t)w->target * w->taps, sizeof *w->weights);
  int done = values && counts && w->first && w->weights && round_weights(w, values, counts, most);
  free(values);
  free(counts);
  return done;
}

/* Weights again, as the vector code reads them. Leaves w->groups 0 where a group's pixels do not fit a window. */
static int fill_groups(weights *w, int outputs, int window) {
  int groups = (w->target + outputs - 1) / outputs, pairs = w->taps / 2;
  for (int i = 0; i < w->target; i++)
    if (w->first[i] + w->taps - w->first[i / outputs * outputs] > window) return 1;
  w->base = calloc((size_t)groups, sizeof *w->base);
  w->shuffle = malloc((size_t)groups * pairs * outputs * 4);
  w->pairs = calloc((size_t)groups * pairs * outputs * 2, sizeof *w->pairs);
  if (!w->base || !w->shuffle || !w->pairs) return 0;
  memset(w->shuffle, 0x80, (size_t)groups * pairs * outputs * 4);
  for (int i = 0; i < w->target; i++) {
    int g = i / outputs, o = i % outputs;
    w->base[g] = w->first[g * outputs];
    for (int t = 0; t < w->taps; t++) {
      int64_t at = ((int64_t)g * pairs + t / 2) * outputs + o;
      w->shuffle[4 * at + 2 * (t & 1)] = (uint8_t)(w->first[i] + t - w->base[g]);
      w->pairs[2 * at + (t & 1)] = w->weights[(int64_t)i * w->taps + t];
    }
  }
  w->groups = groups;
  return 1;
}

int gratis_make_weights(weights *w, int source, int target, int filter, const kernels *k) {
  gratis_drop_weights(w);
  w->source = source, w->target = target, w->filter = filter;
  if (fill_weights(w) && (!k->outputs || fill_groups(w, k->outputs, k->window))) return GRATIS_OK;
  gratis_drop_weights(w);
  return GRATIS_MEMORY;
}

void gratis_drop_weights(weights *w) {
  free(w->first);
  free(w->weights);
  free(w->base);
  free(w->shuffle);
  free(w->pairs);
  memset(w, 0, sizeof *w);
}
