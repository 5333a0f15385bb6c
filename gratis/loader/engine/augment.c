/* Operations on a view's pixels: between decoding, which writes 8-bit planes, and finishing. One view at a time, so that it
 * stays in the cache. */
#include <stdlib.h>
#include <string.h>
#include "engine.h"

static int64_t padded(int64_t bytes) { return (bytes + MARGIN + 63) / 64 * 64; }

/* Room for one view, and for as many kept variants as its program asks for. Whether there was memory. */
static int begin_canvas(gratis_context *context, const gratis_job *job, int64_t view) {
  canvas *c = &context->canvas;
  c->height = job->out_height, c->width = job->out_width;
  c->count = (int64_t)c->height * c->width;
  c->plane = padded(c->count);
  c->variants = 0;
  int kept = 0;
  for (int i = 0; i < job->steps; i++) kept += job->ops[view * job->steps + i] == GRATIS_KEEP;
  int64_t rows = padded(16 * (int64_t)c->width) + 8 * GRATIS_MOST_TAPS, spread = padded(4 * (int64_t)(c->width + 4) * (c->height + 4));
  context->canvas_memory = gratis_grow(context->canvas_memory, &context->canvas_capacity, 6 * c->plane + rows + spread + MARGIN);
  if (kept) context->kept = gratis_grow(context->kept, &context->kept_capacity, 3 * kept * c->plane + MARGIN);
  if (!context->canvas_memory || (kept && !context->kept)) return 0;
  c->pixels = context->canvas_memory;
  c->other = c->pixels + 3 * c->plane;
  c->rows = c->other + 3 * c->plane;
  c->spread = (uint32_t *)(void *)(c->rows + rows);
  c->kept = context->kept;
  return 1;
}

/* The first time a copy of the image as it is; then of each variant, after which the image is again what it was. */
static void keep(canvas *c, int number) {
  memcpy(c->kept + number * 3 * c->plane, c->pixels, (size_t)(3 * c->plane));
  memcpy(c->pixels, c->kept, (size_t)(3 * c->plane));
  c->variants = number;
}

static void run_program(gratis_context *context, const gratis_job *job, int64_t view) {
  canvas *c = &context->canvas;
  int kept = 0;
  for (int64_t i = view * job->steps; i < (view + 1) * job->steps; i++)
    if (job->ops[i] == GRATIS_KEEP) keep(c, kept++);
    else {
      context->kernels->operate(c, job->ops[i], job->values + i * GRATIS_VALUES);
      if (job->ops[i] == GRATIS_MIX) kept = 0;
    }
}

/* A view's bytes go to where they wait, in the output's layout. `one` has one view. */
static void to_pending(gratis_job *one, const gratis_job *job, void **out) {
  one->samples = one->views = 1;
  one->type = GRATIS_UINT8, one->stream = 0;
  one->out = out;
  one->out_plane = (int64_t)job->out_height * job->out_width;
  one->neighbours = NULL;
}

/* Of a canvas, which is mirrored already, to the output, or to where the view waits for another. */
static void finish_canvas(gratis_context *context, const gratis_job *job, int64_t view, const pending *waits) {
  canvas *c = &context->canvas;
  run_program(context, job, view);
  gratis_job upright = *job;
  upright.flip = NULL;
  void *out[1] = {waits ? waits->pixels + view % job->views * gratis_pending_bytes(job) : NULL};
  if (waits) to_pending(&upright, job, out);
  for (int y = 0; y < c->height; y++) {
    const uint8_t *row = c->pixels + (int64_t)y * c->width;
    const uint8_t *const rgb[3] = {row, row + c->plane, row + 2 * c->plane};
    context->kernels->finish(&upright, waits ? 0 : view, y, c->height, c->width, rgb, c->rows);
    if (waits) gratis_blend_rows(context, y + 1);
  }
}

/* One view of an image as bytes, mirrored or not, to the canvas or to where it waits: a gratis_status. */
static int make_view(gratis_context *context, const gratis_job *job, image *im, int64_t view, const pending *waits) {
  int64_t sample = im->sample;
  void *out[1] = {waits ? waits->pixels + view % job->views * gratis_pending_bytes(job) : context->canvas.pixels};
  gratis_job one = *job; /* in which the image is sample 0 */
  to_pending(&one, job, out);
  if (!waits) one.channels_last = 0, one.out_plane = context->canvas.plane;
  one.rectangles = job->rectangles + 4 * view;
  one.targets = job->targets ? job->targets + 4 * view : NULL;
  one.flip = job->flip ? job->flip + view : NULL;
  context->waits = waits != NULL;
  im->sample = 0;
  int status = gratis_make_views(context, &one, im);
  context->waits = 0;
  im->sample = sample;
  return status;
}

static int finish_view(gratis_context *context, const gratis_job *job, image *im, int64_t view, const pending *waits) {
  if (!job->ops) return make_view(context, job, im, view, waits);
  if (!begin_canvas(context, job, view)) return GRATIS_MEMORY;
  int status = make_view(context, job, im, view, NULL);
  if (!status) finish_canvas(context, job, view, waits);
  return status;
}

int gratis_finish_image(gratis_context *context, const gratis_job *job, image *im) {
  int status = GRATIS_OK;
  pending *waits = NULL;
  if (!job->ops && !job->neighbours) return gratis_make_views(context, job, im);
  if (job->neighbours && !(waits = gratis_begin_pending(context, job, im->sample))) return GRATIS_MEMORY;
  for (int64_t view = im->sample * job->views; !status && view < (im->sample + 1) * job->views; view++)
    status = finish_view(context, job, im, view, waits);
  if (waits) gratis_end_pending(context, job, waits, status);
  return status;
}

/* Decoded pixels to planes, mirrored or not. */
static void copy_crop(canvas *c, const uint8_t *pixels, int64_t stride, int flip) {
  int width = c->width;
  for (int y = 0; y < c->height; y++, pixels += stride) {
    uint8_t *restrict r = c->pixels + (int64_t)y * width, *restrict g = r + c->plane, *restrict b = g + c->plane;
    if (flip)
      for (int x = 0, back = 3 * (width - 1); x < width; x++, back -= 3)
        r[x] = pixels[back], g[x] = pixels[back + 1], b[x] = pixels[back + 2];
    else
      for (int x = 0; x < width; x++) r[x] = pixels[3 * x], g[x] = pixels[3 * x + 1], b[x] = pixels[3 * x + 2];
  }
}

static int augment(gratis_context *context, const gratis_job *job, int64_t sample, const uint8_t *const *pixels, int64_t stride) {
  int status = GRATIS_OK;
  pending *waits = NULL;
  if (job->neighbours && !(waits = gratis_begin_pending(context, job, sample))) return GRATIS_MEMORY;
  for (int64_t view = sample * job->views; !status && view < (sample + 1) * job->views; view++)
    if (!begin_canvas(context, job, view)) status = GRATIS_MEMORY;
    else {
      copy_crop(&context->canvas, pixels[view], stride, job->flip && job->flip[view]);
      finish_canvas(context, job, view, waits);
    }
  if (waits) gratis_end_pending(context, job, waits, status);
  return status;
}

void gratis_augment(gratis_context *context, gratis_job *job, const uint8_t *const *pixels, int64_t stride) {
  for (int64_t sample; (sample = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->samples;) {
    int status = augment(context, job, sample, pixels, stride);
    if (status) job->status[sample] = status;
  }
  if (job->neighbours) gratis_leave_pending(context, job);
  context->kernels->fence();
}
