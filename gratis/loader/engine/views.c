/* From the decoded rows of an image to its views. */
#include <stdlib.h>
#include <string.h>
#include "engine.h"

/* Rows of a resized crop that are converted, then resampled across, then down as far as they suffice: what one step wrote
 * has left the processor's queue when the next reads it, at other places. Of crops each row is finished at once. */
#define AT_ONCE 16

static int least(int a, int b) { return a < b ? a : b; }

static int64_t padded(int64_t width) { return (width + 2 * MARGIN + 63) / 64 * 64; }

static const weights *weights_for(gratis_context *context, int source, int target, int filter) {
  weights *w = &context->weights[((unsigned)source * 31u + (unsigned)target) % CACHED_WEIGHTS];
  if (w->source == source && w->target == target && w->filter == filter) return w;
  return gratis_make_weights(w, source, target, filter, context->kernels) ? NULL : w;
}

/* Room for rows of pixels, and for those of resized crops that are resampled across; whether there was memory. */
static int begin_views(gratis_context *context, const gratis_job *job, const image *im) {
  int64_t width = im->wanted.right - im->wanted.left, out = job->filter == GRATIS_CROP ? width : job->out_width, rows = 0;
  context->rows = gratis_grow(context->rows, &context->rows_capacity, 3 * AT_ONCE * padded(width) + 11 * padded(out));
  if (!context->rows || job->filter == GRATIS_CROP) return context->rows != NULL;
  context->views = gratis_grow(context->views, &context->views_capacity, job->views * (int64_t)sizeof *context->views);
  if (!context->views) return 0;
  for (int64_t v = 0; v < job->views; v++) {
    context->views[v] = (view_state){3 * rows * padded(out), 0};
    rows += job->rectangles[4 * (im->sample * job->views + v) + 2];
  }
  context->resampled = gratis_grow(context->resampled, &context->resampled_capacity, 3 * rows * padded(out) + MARGIN);
  return context->resampled != NULL;
}

/* The pixels of row `y` of the image, which views cut out or resample across. Whether there was memory. */
static int use_row(gratis_context *context, const gratis_job *job, const image *im, int y, uint8_t *const rgb[3],
                   uint8_t *scratch) {
  const kernels *k = context->kernels;
  for (int64_t v = 0; v < job->views; v++) {
    int64_t view = im->sample * job->views + v;
    const int32_t *r = job->rectangles + 4 * view;
    const uint8_t *part[3];
    if (y < r[0] || y >= r[0] + r[2]) continue;
    for (int c = 0; c < 3; c++) part[c] = rgb[c] + r[1] - im->wanted.left;
    if (job->filter == GRATIS_CROP) {
      k->finish(job, view, y - r[0], r[2], r[3], part, scratch);
      continue;
    }
    const weights *across = weights_for(context, r[3], job->out_width, job->filter);
    if (!across) return 0;
    int64_t stride = padded(job->out_width);
    uint8_t *to = context->resampled + context->views[v].at + 3 * (y - r[0]) * stride;
    k->across(across, part, (uint8_t *const[3]){to, to + stride, to + 2 * stride});
  }
  return 1;
}

/* The rows of a resized crop for which there are rows enough above row `end`. Whether there was memory. */
static int resample_down(gratis_context *context, const gratis_job *job, const image *im, int64_t v, int end, uint8_t *rows,
                         uint8_t *scratch) {
  const kernels *k = context->kernels;
  int64_t view = im->sample * job->views + v, stride = padded(job->out_width);
  const int32_t *r = job->rectangles + 4 * view;
  const weights *down = weights_for(context, r[2], job->out_height, job->filter);
  if (!down) return 0;
  for (int *y = &context->views[v].done; *y < job->out_height; ++*y) {
    if (least(down->first[*y] + down->taps, r[2]) > end - r[0]) break;
    uint8_t *rgb[3] = {rows, rows + stride, rows + 2 * stride};
    for (int c = 0; c < 3; c++)
      k->down(down, *y, context->resampled + context->views[v].at + c * stride, 3 * stride, rgb[c], job->out_width);
    k->finish(job, view, *y, job->out_height, job->out_width, (const uint8_t *const *)rgb, scratch);
  }
  return 1;
}

int gratis_make_views(gratis_context *context, const gratis_job *job, const image *im) {
  if (!begin_views(context, job, im)) return GRATIS_MEMORY;
  int width = im->wanted.right - im->wanted.left, resized = job->filter != GRATIS_CROP, count;
  int64_t stride = padded(width), out_stride = padded(resized ? job->out_width : width);
  uint8_t *rgb[AT_ONCE][3], *down = context->rows + 3 * AT_ONCE * stride, *scratch = down + 3 * out_stride;
  for (int i = 0; i < 3 * AT_ONCE; i++) rgb[i / 3][i % 3] = context->rows + i * stride;
  for (int y = im->wanted.top; y < im->wanted.bottom; y += count) {
    count = resized ? least(AT_ONCE, im->wanted.bottom - y) : 1;
    for (int i = 0; i < count; i++) context->kernels->convert(im, y + i, im->wanted.left, width, rgb[i]);
    for (int i = 0; i < count; i++)
      if (!use_row(context, job, im, y + i, rgb[i], scratch)) return GRATIS_MEMORY;
    for (int64_t v = 0; resized && v < job->views; v++)
      if (!resample_down(context, job, im, v, y + count, down, scratch)) return GRATIS_MEMORY;
  }
  return GRATIS_OK;
}
