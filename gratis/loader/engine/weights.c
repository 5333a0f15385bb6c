/* Weights of resampling, as torch's interpolate computes them; antialiased ones are also those of Pillow's resize. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "engine.h"

static double triangle(double x) { return fabs(x) < 1 ? 1 - fabs(x) : 0; }

static double cubic(double x, double a) {
  x = fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? a * (((x - 5) * x + 8) * x - 4) : 0;
}

/* Where output i begins in the source, and its weights, which sum to 1; returns their number. */
static int antialiased(const resampling *of, int i, int *first, double *to) {
  double scale = (double)of->source / of->target, reach = scale > 1 ? scale : 1;
  double support = (of->filter == GRATIS_CUBIC ? 2 : 1) * reach, centre = scale * (i + 0.5), sum = 0;
  int begin = (int)fmax(centre - support + 0.5, 0), end = (int)fmin(centre + support + 0.5, of->source);
  for (int t = begin; t < end; t++) {
    double x = (t - centre + 0.5) / reach;
    sum += to[t - begin] = of->filter == GRATIS_CUBIC ? cubic(x, -0.5) : triangle(x);
  }
  for (int t = 0; t < end - begin; t++) to[t] /= sum;
  *first = begin;
  return end - begin;
}

/* The same without antialiasing: 2 or 4 pixels whatever the scale, those beyond a border are the border's; torch's cubic
 * then has another coefficient. */
static int interpolated(const resampling *of, int i, int *first, double *to) {
  double place = (double)of->source / of->target * (i + 0.5) - 0.5;
  if (of->filter != GRATIS_CUBIC && place < 0) place = 0;
  int support = of->filter == GRATIS_CUBIC ? 2 : 1, last = of->source - 1, at = (int)floor(place);
  if (at > last) at = last;
  int begin = at - support + 1 > 0 ? at - support + 1 : 0, end = at + support < last ? at + support : last;
  double part = place - at;
  for (int t = at - support + 1; t <= at + support; t++) {
    double x = t - at - part;
    to[(t < 0 ? 0 : t > last ? last : t) - begin] += of->filter == GRATIS_CUBIC ? cubic(x, -0.75) : triangle(x);
  }
  *first = begin;
  return end - begin + 1;
}

static int antialiased_or_not(const resampling *of, int i, int *first, double *to) {
  return (of->antialias ? antialiased : interpolated)(of, i, first, to);
}

/* The largest weight of all outputs, made or not: it decides how weights are rounded, and a window is what it would be in
 * the whole. values: [most]. */
static double largest_weight(const resampling *of, int most, double *values) {
  double largest = 0;
  for (int i = 0, first; i < of->target; i++) {
    memset(values, 0, (size_t)most * sizeof *values);
    int count = antialiased_or_not(of, i, &first, values);
    for (int t = 0; t < count; t++) largest = fmax(largest, values[t]);
  }
  return largest;
}

static void round_weights(weights *w, double largest, const double *values, const int *counts, int most) {
  for (w->precision = 0; w->precision < 22; w->precision++)
    if ((int)(0.5 + largest * (1 << (w->precision + 1))) >= 1 << 15) break;
  for (int i = 0; i < w->of.count; i++)
    for (int t = 0; t < counts[i]; t++)
      w->weights[(int64_t)i * w->taps + t] = (int16_t)lround(values[(int64_t)i * most + t] * (1 << w->precision));
}

/* Makes `first` a number of pixels from the first one that counts. */
static void bound(weights *w, const int *counts) {
  w->begin = w->of.source;
  for (int i = 0; i < w->of.count; i++) {
    if (w->first[i] < w->begin) w->begin = w->first[i];
    if (w->first[i] + counts[i] > w->end) w->end = w->first[i] + counts[i];
  }
  for (int i = 0; i < w->of.count; i++) w->first[i] -= w->begin;
}

static int fill_weights(weights *w) {
  const resampling *of = &w->of;
  double scale = (double)of->source / of->target;
  int most = (int)ceil((of->filter == GRATIS_CUBIC ? 4 : 2) * (scale > 1 ? scale : 1)) + 2, longest = 1;
  double *values = calloc((size_t)(of->count + 1) * most, sizeof *values);
  int *counts = calloc((size_t)of->count, sizeof *counts);
  w->first = calloc((size_t)of->count, sizeof *w->first);
  if (values && counts && w->first) {
    for (int i = 0; i < of->count; i++) {
      counts[i] = antialiased_or_not(of, of->from + i, &w->first[i], values + (int64_t)i * most);
      if (counts[i] > longest) longest = counts[i];
    }
    bound(w, counts);
  }
  w->taps = longest + (longest & 1);
  w->weights = calloc((size_t)of->count * w->taps, sizeof *w->weights);
  int done = values && counts && w->first && w->weights;
  if (done) round_weights(w, largest_weight(of, most, values + (int64_t)of->count * most), values, counts, most);
  free(values);
  free(counts);
  return done;
}

/* Weights again, as the vector code reads them. Leaves w->groups 0 where a group's pixels do not fit a window. */
static int fill_groups(weights *w, int outputs, int window) {
  int groups = (w->of.count + outputs - 1) / outputs, pairs = w->taps / 2;
  for (int i = 0; i < w->of.count; i++)
    if (w->first[i] + w->taps - w->first[i / outputs * outputs] > window) return 1;
  w->base = calloc((size_t)groups, sizeof *w->base);
  w->shuffle = malloc((size_t)groups * pairs * outputs * 4);
  w->pairs = calloc((size_t)groups * pairs * outputs * 2, sizeof *w->pairs);
  if (!w->base || !w->shuffle || !w->pairs) return 0;
  memset(w->shuffle, 0x80, (size_t)groups * pairs * outputs * 4);
  for (int i = 0; i < w->of.count; i++) {
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

int gratis_make_weights(weights *w, const resampling *of, const kernels *k) {
  gratis_drop_weights(w);
  w->of = *of;
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
