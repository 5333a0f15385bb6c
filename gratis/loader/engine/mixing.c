/* Passes over a finished batch: mixing of neighbouring images, and erased boxes. Threads share a job's parts. */
#include <string.h>
#include "engine.h"

/* One segment of every image, from the last image to the first: what precedes an image is then as it was. */
static void mix_segment(const kernels *k, const gratis_mixing *job, int64_t begin, int64_t count) {
  float saved[GRATIS_AT_ONCE];
  int64_t size = job->type == GRATIS_UINT8 ? 1 : job->type == GRATIS_FLOAT32 ? 4 : 2, bytes = count * size;
  char *rows = (char *)job->rows + begin * size;
  const char *before = (const char *)job->before + begin * size;
  if (!job->before) before = memcpy(saved, rows + (job->images - 1) * job->row_bytes, (size_t)bytes);
  for (int64_t i = job->images - 1; i >= 0; i--) {
    char *to = rows + i * job->row_bytes;
    const char *other = i ? to - job->row_bytes : before;
    if (job->lam == 0) memcpy(to, other, (size_t)bytes);
    else k->mix(to, other, count, job->lam, job->rest, job->type);
  }
}

void gratis_mix(int isa, gratis_mixing *job) {
  const kernels *k = gratis_kernels_of(isa);
  for (int64_t i; (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->segments;)
    mix_segment(k, job, job->segment[2 * i], job->segment[2 * i + 1]);
}

void gratis_erase(int isa, gratis_erasing *job) {
  const kernels *k = gratis_kernels_of(isa);
  for (int64_t i; (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->images;) k->erase(job, i);
}
