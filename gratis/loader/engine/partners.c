/* Mixing of neighbouring samples while a batch is made: their pixels wait as bytes, in the cache of the thread that decoded
 * both. What two threads decoded meets in the memory of the view that is made of them, which has room for both as bytes. */
#include <stdlib.h>
#include <string.h>
#include "engine.h"

/* Rows that are mixed at a time: few enough that writing goes on beside what makes the next, and calls are rare. */
#define ROWS 16

int64_t gratis_pending_bytes(const gratis_job *job) { return 3 * (int64_t)job->out_height * job->out_width; }

static int64_t behind(const gratis_job *job, int64_t sample) {
  return sample + 1 == job->neighbours->total ? 0 : sample + 1;
}

static void blend(gratis_context *context, const gratis_job *job, const pending *itself, const pending *before, int view,
                  int64_t at, int from, int to) {
  int64_t bytes = view * gratis_pending_bytes(job), precedes = at ? at - 1 : job->neighbours->total - 1;
  context->kernels->blend(job, at * job->views + view, precedes * job->views + view, itself->pixels + bytes,
                          before->pixels + bytes, from, to);
}

/* Mixes all views of sample `at`. */
static void blend_views(gratis_context *context, const gratis_job *job, int64_t at, const pending *itself,
                        const pending *before) {
  for (int v = 0; v < job->views; v++)
    for (int y = 0; y < job->out_height; y += ROWS)
      blend(context, job, itself, before, v, at, y, y + ROWS < job->out_height ? y + ROWS : job->out_height);
}

/* ---- what another thread has ---- */

/* Between pixels that wait and the memory of sample `at`: the first bytes there are of the one before, then of itself. */
static void copy(const gratis_job *job, int64_t at, int is_itself, const pending *p, int to_output) {
  int64_t bytes = gratis_pending_bytes(job);
  for (int64_t v = 0; v < job->views; v++) {
    uint8_t *there = (uint8_t *)job->out[at * job->views + v] + (is_itself ? bytes : 0), *here = p->pixels + v * bytes;
    memcpy(to_output ? there : here, to_output ? here : there, (size_t)bytes);
  }
}

/* Mixes sample `at` where another thread has left its half; else leaves this half to it. */
static void exchange(gratis_context *context, const gratis_job *job, int64_t at, const pending *half, int is_itself) {
  int32_t *arrived = job->neighbours->arrived + at;
  if (!__atomic_load_n(arrived, __ATOMIC_ACQUIRE)) {
    copy(job, at, is_itself, half, 1);
    if (!__atomic_fetch_add(arrived, 1, __ATOMIC_ACQ_REL)) return;
  }
  const pending *other = &context->pending[PENDING - 1];
  copy(job, at, !is_itself, other, 0);
  blend_views(context, job, at, is_itself ? half : other, is_itself ? other : half);
}

static void leave(gratis_context *context, const gratis_job *job, pending *p) {
  if (p->as_itself) exchange(context, job, p->sample, p, 1);
  if (p->as_before) exchange(context, job, behind(job, p->sample), p, 0);
  p->as_itself = p->as_before = 0;
}

void gratis_leave_pending(gratis_context *context, const gratis_job *job) {
  for (int i = 0; i < PENDING - 1; i++) leave(context, job, &context->pending[i]);
}

/* ---- what this thread has ---- */

static int grow(const gratis_job *job, pending *p) {
  p->pixels = gratis_grow(p->pixels, &p->capacity, job->views * gratis_pending_bytes(job) + MARGIN);
  return p->pixels != NULL;
}

static void begin_blending(gratis_context *context, const gratis_job *job, const pending *itself) {
  context->blending.job = NULL;
  for (int i = 0; i < PENDING - 1 && itself->sample < job->neighbours->mixed; i++) {
    pending *p = &context->pending[i];
    if (p->as_before && behind(job, p->sample) == itself->sample) context->blending = (blending){job, itself, p, 0, 0};
  }
}

pending *gratis_begin_pending(gratis_context *context, const gratis_job *job, int64_t sample) {
  pending *free = NULL, *oldest = &context->pending[0];
  for (int i = 0; i < PENDING - 1; i++) {
    pending *p = &context->pending[i];
    if (!p->as_itself && !p->as_before) free = free ? free : p;
    else if (p->sample < oldest->sample) oldest = p;
  }
  if (!grow(job, &context->pending[PENDING - 1])) return NULL;
  if (!free) leave(context, job, free = oldest);
  if (!grow(job, free)) return NULL;
  free->sample = sample;
  begin_blending(context, job, free);
  return free;
}

void gratis_blend_rows(gratis_context *context, int end) {
  blending *b = &context->blending;
  if (!b->job || (end < b->done + ROWS && end < b->job->out_height)) return;
  blend(context, b->job, b->itself, b->before, b->view, b->itself->sample, b->done, end);
  b->done = end;
  if (end == b->job->out_height) b->view++, b->done = 0;
}

void gratis_end_pending(gratis_context *context, const gratis_job *job, pending *p, int status) {
  blending done = context->blending;
  context->blending.job = NULL;
  if (status) return;
  int64_t next = behind(job, p->sample);
  p->as_itself = p->sample < job->neighbours->mixed;
  p->as_before = next < job->neighbours->mixed;
  if (done.job) p->as_itself = done.before->as_before = 0;
  for (int i = 0; i < PENDING - 1 && p->as_before; i++) {
    pending *other = &context->pending[i];
    if (other == p || !other->as_itself || other->sample != next) continue;
    blend_views(context, job, next, other, p);
    p->as_before = other->as_itself = 0;
  }
}
