/* One image as it is, for callers outside the loader: they know this function alone, and not what a job holds. */
#include "engine.h"

int gratis_decode(gratis_context *context, const uint8_t *data, int64_t size, int32_t height, int32_t width,
                  int32_t channels_last, uint8_t *out) {
  gratis_info info;
  int32_t status = gratis_probe(data, size, &info);
  if (status != GRATIS_OK) return status;
  if (info.height != height || info.width != width) return GRATIS_SIZE;
  const int32_t rectangle[4] = {0, 0, height, width};
  void *const place = out;
  gratis_job job = {0};
  job.samples = job.views = 1;
  job.data = &data;
  job.size = &size;
  job.rectangles = rectangle;
  job.out = &place;
  job.status = &status;
  job.out_height = height;
  job.out_width = width;
  job.filter = GRATIS_CROP;
  job.type = GRATIS_UINT8;
  job.channels_last = channels_last;
  status = GRATIS_MEMORY;
  gratis_run(context, &job);
  return status;
}
