/* From the decoded rows of an image to its views. */
#include <stdlib.h>
#include <string.h>
#include "engine.h"

/* Rows of a resized crop that are converted, then resampled across, then down as far as they suffice: what one step wrote
 * has left the processor's queue when the next reads it, at other places. Of crops each row is finished at once. */
#define AT_ONCE 16

static int least(int a, int b) { return a < b ? a : b; }

static int64_t padded(int64_t width) { return (width + 2 * MARGIN + 63) / 64 * 64; }

/* Whether a view's rectangle becomes another size; else the view is cut out of it as it is. */
static int is_resized(const gratis_job *job, int64_t view) {
  const int32_t *r = job->rectangles + 4 * view, *target = job->targets ? job->targets + 4 * view : NULL;
  if (job->filter == GRATIS_CROP) return 0;
  return r[2] != (target ? target[0] : job->out_height) || r[3] != (target ? target[1] : job->out_width);
}

/* Weights of a resized crop down (axis 0) or across (1); NULL if there was no memory. */
static const weights *weights_along(gratis_context *context, const gratis_job *job, int64_t view, int axis) {
  const int32_t *target = job->targets ? job->targets + 4 * view : NULL;
  int count = axis ? job->out_width : job->out_height;
  resampling of = {job->rectangles[4 * view + 2 + axis], target ? target[axis] : count, target ? target[2 + axis] : 0,
                   count, job->filter, job->antialias};
  unsigned slot = (unsigned)of.source * 31u + (unsigned)of.target + (unsigned)of.from * 7u;
  weights *w = &context->weights[slot % CACHED_WEIGHTS];
  if (!memcmp(&w->of, &of, sizeof of)) return w;
  return gratis_make_weights(w, &of, context->kernels) ? NULL : w;
}

/* Whether the window of a view lies in its resized rectangle. */
static int window_fits(const gratis_job *job, int64_t view) {
  if (!job->targets) return 1;
  const int32_t *t = job->targets + 4 * view;
  if (job->filter == GRATIS_CROP || t[0] < job->out_height || t[1] < job->out_width) return 0;
  return t[2] >= 0 && t[3] >= 0 && t[2] <= t[0] - job->out_height && t[3] <= t[1] - job->out_width;
}

int gratis_part_of_view(gratis_context *context, const gratis_job *job, int64_t view, area *part) {
  const int32_t *r = job->rectangles + 4 * view;
  *part = (area){r[0], r[0] + r[2], r[1], r[1] + r[3]};
  if (!window_fits(job, view)) return GRATIS_RECTANGLE;
  if (!is_resized(job, view)) {
    const int32_t *target = job->targets ? job->targets + 4 * view : NULL;
    if (target)
      *part = (area){r[0] + target[2], r[0] + target[2] + job->out_height, r[1] + target[3], r[1] + target[3] + job->out_width};
    return GRATIS_OK;
  }
  const weights *w = weights_along(context, job, view, 0);
  if (!w) return GRATIS_MEMORY;
  part->top = r[0] + w->begin, part->bottom = r[0] + w->end;
  if (!(w = weights_along(context, job, view, 1))) return GRATIS_MEMORY;
  part->left = r[1] + w->begin, part->right = r[1] + w->end;
  return GRATIS_OK;
}

/* Room for rows of pixels, and for those of resized crops that are resampled across: a gratis_status. */
static int begin_views(gratis_context *context, const gratis_job *job, const image *im) {
  int64_t width = im->wanted.right - im->wanted.left, out = job->filter == GRATIS_CROP ? width : job->out_width, rows = 0;
  context->rows = gratis_grow(context->rows, &context->rows_capacity, 3 * AT_ONCE * padded(width) + 11 * padded(out));
  context->views = gratis_grow(context->views, &context->views_capacity, job->views * (int64_t)sizeof *context->views);
  if (!context->rows || !context->views) return GRATIS_MEMORY;
  for (int64_t v = 0; v < job->views; v++) {
    view_state *view = &context->views[v];
    int status = gratis_part_of_view(context, job, im->sample * job->views + v, &view->part);
    if (status) return status;
    view->at = 3 * rows * padded(out);
    view->done = 0;
    rows += is_resized(job, im->sample * job->views + v) ? view->part.bottom - view->part.top : 0;
  }
  if (!rows) return GRATIS_OK;
  context->resampled = gratis_grow(context->resampled, &context->resampled_capacity, 3 * rows * padded(out) + MARGIN);
  return context->resampled ? GRATIS_OK : GRATIS_MEMORY;
}

/* Row y of a view, from its pixels. */
static void finish_row(gratis_context *context, const gratis_job *job, int64_t view, int y, int height, int width,
                       const uint8_t *const rgb[3], uint8_t *scratch) {
  context->kernels->finish(job, view, y, height, width, rgb, scratch);
  if (context->waits) gratis_blend_rows(context, y + 1);
}

/* The pixels of row `y` of the image, which views cut out or resample across. Whether there was memory. */
static int use_row(gratis_context *context, const gratis_job *job, const image *im, int y, uint8_t *const rgb[3],
                   uint8_t *scratch) {
  const kernels *k = context->kernels;
  for (int64_t v = 0; v < job->views; v++) {
    int64_t view = im->sample * job->views + v;
    area part = context->views[v].part;
    const uint8_t *row[3];
    if (y < part.top || y >= part.bottom) continue;
    for (int c = 0; c < 3; c++) row[c] = rgb[c] + part.left - im->wanted.left;
    if (!is_resized(job, view)) {
      finish_row(context, job, view, y - part.top, part.bottom - part.top, part.right - part.left, row, scratch);
      continue;
    }
    const weights *across = weights_along(context, job, view, 1);
    if (!across) return 0;
    int64_t stride = padded(job->out_width);
    uint8_t *to = context->resampled + context->views[v].at + 3 * (y - part.top) * stride;
    k->across(across, row, (uint8_t *const[3]){to, to + stride, to + 2 * stride});
  }
  return 1;
}

/* The rows of a resized crop for which there are rows enough above row `end`. Whether there was memory. */
static int resample_down(gratis_context *context, const gratis_job *job, const image *im, int64_t v, int end, uint8_t *rows,
                         uint8_t *scratch) {
  const kernels *k = context->kernels;
  int64_t view = im->sample * job->views + v, stride = padded(job->out_width);
  if (!is_resized(job, view)) return 1;
  const weights *down = weights_along(context, job, view, 0);
  if (!down) return 0;
  int top = context->views[v].part.top, rows_there = context->views[v].part.bottom - top;
  for (int *y = &context->views[v].done; *y < job->out_height; ++*y) {
    if (least(down->first[*y] + down->taps, rows_there) > end - top) break;
    uint8_t *rgb[3] = {rows, rows + stride, rows + 2 * stride};
    for (int c = 0; c < 3; c++)
      k->down(down, *y, context->resampled + context->views[v].at + c * stride, 3 * stride, rgb[c], job->out_width);
    finish_row(context, job, view, *y, job->out_height, job->out_width, (const uint8_t *const *)rgb, scratch);
  }
  return 1;
}

int gratis_make_views(gratis_context *context, const gratis_job *job, const image *im) {
  int status = begin_views(context, job, im);
  if (status) return status;
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
