/* Passes over a finished batch: mixing of neighbouring images, and erased boxes. Threads share a job's parts. */
#include <string.h>
#include "engine.h"

static void copy(char *to, const char *other, int64_t bytes, int64_t ahead) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(other + i + ahead);
  memcpy(to, other, (size_t)bytes);
}

/* One group of segments of every image, from the last image to the first: what precedes an image is then as it was. */
static void mix_group(const kernels *k, const gratis_mixing *job, int64_t first, int64_t last) {
  float saved[GRATIS_AT_ONCE]; /* of the last image, one segment behind the other */
  int64_t size = job->type == GRATIS_UINT8 ? 1 : job->type == GRATIS_FLOAT32 ? 4 : 2, row = job->row_bytes, kept = 0;
  for (int64_t s = first; s < last && !job->before; kept += job->segment[2 * s + 1] * size, s++)
    memcpy((char *)saved + kept, (char *)job->rows + (job->images - 1) * row + job->segment[2 * s] * size,
           (size_t)(job->segment[2 * s + 1] * size));
  for (int64_t i = job->images - 1; i >= 0; i--) {
    kept = 0;
    for (int64_t s = first; s < last; kept += job->segment[2 * s + 1] * size, s++) {
      int64_t begin = job->segment[2 * s] * size, count = job->segment[2 * s + 1];
      char *to = (char *)job->rows + i * row + begin;
      const char *other = i ? to - row : job->before ? (const char *)job->before + begin : (const char *)saved + kept;
      if (job->lam == 0) copy(to, other, count * size, i > 1 ? -row : 0);
      else k->mix(to, other, count, i > 1 ? -row : 0, job->lam, job->rest, job->type);
    }
  }
}

void gratis_mix(int isa, gratis_mixing *job) {
  const kernels *k = gratis_kernels_of(isa);
  for (int64_t g; (g = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->groups;)
    mix_group(k, job, job->group[g], job->group[g + 1]);
}

void gratis_erase(int isa, gratis_erasing *job) {
  const kernels *k = gratis_kernels_of(isa);
  for (int64_t i; (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->images;) k->erase(job, i);
}
