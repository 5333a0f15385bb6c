/* The batch: which samples are open, and which lane decodes what. */
#include <stdlib.h>
#include <string.h>
#include "engine.h"

int gratis_engine_version(void) { return GRATIS_ENGINE_VERSION; }

int gratis_best_isa(void) {
#ifdef GRATIS_X86
  __builtin_cpu_init();
  int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi");
  return avx512 ? GRATIS_AVX512 : avx2 ? GRATIS_AVX2 : GRATIS_PORTABLE;
#else
  return GRATIS_PORTABLE;
#endif
}

const kernels *gratis_kernels_of(int isa) {
#ifdef GRATIS_X86
  if (isa == GRATIS_AVX512) return &gratis_kernels_avx512;
  if (isa == GRATIS_AVX2) return &gratis_kernels_avx2;
#endif
  return isa == GRATIS_PORTABLE ? &gratis_kernels_portable : NULL;
}

static void *aligned_zeros(size_t size) {
  void *memory = aligned_alloc(64, (size + 63) / 64 * 64);
  return memory ? memset(memory, 0, size) : NULL;
}

gratis_context *gratis_new(int isa) {
  if (isa < 0 || isa > gratis_best_isa()) return NULL;
  gratis_context *context = aligned_zeros(sizeof *context);
  if (!context) return NULL;
  context->kernels = gratis_kernels_of(isa);
  for (int i = 0; i < LANES; i++)
    if (!(context->images[i] = aligned_zeros(sizeof(image)))) {
      gratis_free(context);
      return NULL;
    }
  for (int i = 0; i < LANES; i++) {
    context->rests[i].coefficients = aligned_zeros(BLOCKS * 64 * sizeof(int16_t));
    context->lanes[i].rest = &context->rests[i];
    if (!context->rests[i].coefficients) {
      gratis_free(context);
      return NULL;
    }
  }
  return context;
}

void gratis_free(gratis_context *context) {
  if (!context) return;
  for (int i = 0; i < LANES; i++)
    if (context->images[i]) {
      free(context->images[i]->bytes);
      free(context->images[i]->segments);
      free(context->images[i]->planes);
      free(context->images[i]);
    }
  for (int i = 0; i < LANES; i++) free(context->rests[i].coefficients);
  for (int i = 0; i < CACHED_WEIGHTS; i++) gratis_drop_weights(&context->weights[i]);
  free(context->rows);
  free(context->views);
  free(context->resampled);
  free(context->canvas_memory);
  free(context->kept);
  free(context->encoding_memory);
  free(context->symbols);
  free(context->file);
  for (int i = 0; i < PENDING; i++) free(context->pending[i].pixels);
  free(context);
}

int gratis_probe(const uint8_t *data, int64_t size, gratis_info *info) {
  header head;
  int status = gratis_read_header(data, size, &head);
  *info = (gratis_info){head.width, head.height, head.components, head.restart_interval};
  return status;
}

/* ---- opening an image ---- */

/* The smallest area that holds all views of a sample; GRATIS_RECTANGLE if one is not inside the image, or not of the
 * output's size. */
static int area_of_views(gratis_context *context, const gratis_job *job, int64_t sample, const header *head, area *all) {
  *all = (area){head->height, 0, head->width, 0};
  for (int64_t view = sample * job->views; view < (sample + 1) * job->views; view++) {
    const int32_t *r = job->rectangles + 4 * view;
    int inside = r[0] >= 0 && r[1] >= 0 && r[2] > 0 && r[3] > 0 && r[2] <= head->height - r[0] && r[3] <= head->width - r[1];
    int fits = job->filter != GRATIS_CROP || !job->out_height || (r[2] == job->out_height && r[3] == job->out_width);
    if (!inside || !fits) return GRATIS_RECTANGLE;
    area part;
    int status = gratis_part_of_view(context, job, view, &part);
    if (status) return status;
    if (part.top < all->top) all->top = part.top;
    if (part.left < all->left) all->left = part.left;
    if (part.bottom > all->bottom) all->bottom = part.bottom;
    if (part.right > all->right) all->right = part.right;
  }
  return job->views > 0 ? GRATIS_OK : GRATIS_RECTANGLE;
}

static int least(int a, int b) { return a < b ? a : b; }

/* MCUs along one axis that pixels [from, to) are made of: of 4:2:0 also the neighbours that smoothing looks at. */
static void mcus_of(const image *im, int from, int to, int count, int *first, int *last) {
  if (im->head.subsampled) {
    from = (from & ~1) - 2;
    to = ((to + 1) & ~1) + 2;
  }
  *first = from < 0 ? 0 : from / im->mcu;
  *last = least((to + im->mcu - 1) / im->mcu, count);
}

static void lay_out_chunk(image *im) {
  header *head = &im->head;
  int across = head->subsampled ? 2 : 1, component_blocks[3] = {across * across, 1, 1}, at[3] = {0};
  im->blocks = head->components == 1 ? 1 : component_blocks[0] + 2;
  im->chunk = BLOCKS / im->blocks;
  im->groups = 0;
  int first_group[3];
  for (int c = 0; c < head->components; c++) {
    first_group[c] = im->groups;
    int wide = im->chunk * (c ? 1 : across), high = c ? 1 : across;
    for (int y = 0; y < high; y++)
      for (int x = 0; x < wide; x += 4) im->group[im->groups++] = (group){(uint8_t)c, (uint8_t)(8 * x), (uint8_t)(8 * y)};
  }
  int next = 0;
  for (int mcu = 0; mcu < im->chunk; mcu++)
    for (int c = 0; c < head->components; c++)
      for (int b = 0; b < component_blocks[c]; b++, at[c]++) {
        int side = c ? 1 : across, x = mcu * side + b % side, y = b / side, wide = im->chunk * side;
        int g = first_group[c] + (y * wide + x) / 4;
        im->block[next++] = (block){&im->ac[head->ac[c]], &im->dc[head->dc[c]], (uint16_t)(g * 256 + x % 4 * 8), (uint16_t)c};
      }
}

static void spread_quantisation(image *im) {
  for (int c = 0; c < im->head.components; c++)
    for (int k = 0; k < 64; k++)
      for (int i = 0; i < 4; i++)
        im->quant[c][gratis_place[k] + 8 * i] = im->head.quant[im->head.quantisation[c]][k];
}

static int allocate_planes(image *im) {
  int64_t size[3] = {0}, total = 0;
  for (int c = 0; c < im->head.components; c++) {
    int side = c ? 8 : im->mcu;
    im->stride[c] = ((int64_t)(im->columns + im->chunk) * side + MARGIN + 63) / 64 * 64;
    size[c] = im->stride[c] * side * (im->last_row - im->first_row) + 2 * MARGIN;
    total += size[c];
  }
  im->planes = gratis_grow(im->planes, &im->planes_capacity, total);
  if (!im->planes) return GRATIS_MEMORY;
  uint8_t *at = im->planes + MARGIN;
  for (int c = 0; c < im->head.components; c++) im->plane[c] = at, at += size[c];
  return GRATIS_OK;
}

/* What lanes will take: rows of MCUs, one segment each, where the file has restart markers at ends of rows; else the
 * image as a whole. */
static void plan_units(image *im) {
  int interval = im->head.restart_interval, total = im->columns * im->rows;
  im->num_segments = interval ? (total - 1) / interval + 1 : 1;
  im->rows_each = interval && interval % im->columns == 0 ? interval / im->columns : 0;
  if (im->rows_each) {
    im->first_segment = im->first_row / im->rows_each;
    im->last_segment = (im->last_row - 1) / im->rows_each + 1;
  } else {
    im->first_segment = interval ? (int)((int64_t)im->first_row * im->columns / interval) : 0;
    im->last_segment = interval ? (int)(((int64_t)im->last_row * im->columns - 1) / interval) + 1 : 1;
  }
  im->next_unit = 0;
  im->units = im->rows_each ? im->last_segment - im->first_segment : 1;
  im->open_units = 0;
}

static int open_image(gratis_context *context, const gratis_job *job, int64_t sample, image *im) {
  const uint8_t *data = job->data[sample];
  int64_t size = job->size[sample];
  im->sample = sample;
  im->failed = GRATIS_OK;
  int status = gratis_read_header(data, size, &im->head);
  const int32_t *shape = job->shape ? job->shape + 2 * sample : NULL;
  if (!status && shape && (im->head.height != shape[0] || im->head.width != shape[1])) status = GRATIS_SIZE;
  if (!status) status = area_of_views(context, job, sample, &im->head, &im->wanted);
  if (!status) status = gratis_build_tables(im);
  if (status) return status;
  im->mcu = im->head.subsampled ? 16 : 8;
  im->columns = (im->head.width + im->mcu - 1) / im->mcu;
  im->rows = (im->head.height + im->mcu - 1) / im->mcu;
  im->chroma_width = (im->head.width + 1) / 2;
  im->chroma_height = (im->head.height + 1) / 2;
  mcus_of(im, im->wanted.top, im->wanted.bottom, im->rows, &im->first_row, &im->last_row);
  mcus_of(im, im->wanted.left, im->wanted.right, im->columns, &im->first_column, &im->last_column);
  lay_out_chunk(im);
  spread_quantisation(im);
  plan_units(im);
  if ((status = allocate_planes(im))) return status;
  return gratis_unstuff(im, data, size);
}

/* The number of a sample that nobody has taken, job->samples or more if there is none. Of shares the last ones are small, so
 * that threads end together. */
static int64_t take(gratis_context *context, gratis_job *job) {
  if (context->taken < context->taken_end) return context->taken++;
  int64_t first = __atomic_load_n(&job->next, __ATOMIC_RELAXED), count = 1;
  do {
    if (first >= job->samples) return first;
    if (job->shares) count = (job->samples - first + job->shares - 1) / job->shares;
  } while (!__atomic_compare_exchange_n(&job->next, &first, first + count, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  context->taken = first + 1, context->taken_end = first + count;
  return first;
}

/* The next sample that can be opened, in a free image; NULL if there is none. */
static image *open_next(gratis_context *context, gratis_job *job) {
  image *im = NULL;
  for (int i = 0; i < LANES && !im; i++)
    if (!context->images[i]->busy) im = context->images[i];
  for (;;) {
    int64_t sample = take(context, job);
    if (sample >= job->samples) return NULL;
    int status = open_image(context, job, sample, im);
    im->busy = !status;
    if (!status) return im;
    job->status[sample] = status;
  }
}

/* ---- lanes ---- */

static void begin_segment(lane *l, int number) {
  lane_rest *rest = l->rest;
  const image *im = rest->image;
  int64_t total = (int64_t)im->columns * im->rows, interval = im->head.restart_interval ? im->head.restart_interval : total;
  int64_t first = number * interval;
  rest->segment = number;
  rest->begin = l->p = im->bytes + im->segments[number].begin;
  rest->limit = im->bytes + im->segments[number].end;
  rest->left = (int)(interval < total - first ? interval : total - first);
  rest->row = (int)(first / im->columns);
  rest->column = (int)(first % im->columns);
  memset(rest->prediction, 0, sizeof rest->prediction);
  l->buffer = 0;
  l->valid = 0;
}

static void begin_chunk(const kernels *k, lane *l) {
  lane_rest *rest = l->rest;
  const image *im = rest->image;
  rest->count = least(im->chunk, least(im->columns - rest->column, rest->left));
  l->program = im->block;
  l->stop = im->block + rest->count * im->blocks;
  k->begin_block(l);
}

static void begin_unit(const kernels *k, lane *l, image *im) {
  l->rest->image = im;
  l->rest->error = 0;
  im->open_units++;
  begin_segment(l, im->first_segment + im->next_unit++);
  begin_chunk(k, l);
}

/* Repeats the first and the last sample of a row of MCUs in planes of chroma, for smoothing. */
static void extend_chroma(const image *im, int row) {
  if (!im->head.subsampled || row < im->first_row || row >= im->last_row) return;
  for (int c = 1; c < 3; c++) {
    uint8_t *samples = im->plane[c] + (row - im->first_row) * 8 * im->stride[c];
    for (int y = 0; y < 8; y++, samples += im->stride[c]) {
      samples[-1] = samples[0];
      samples[im->chroma_width] = samples[im->chroma_width - 1];
    }
  }
}

/* Transforms what a chunk brought, or forgets it where no view needs it. */
static void use_chunk(const kernels *k, lane *l) {
  lane_rest *rest = l->rest;
  const image *im = rest->image;
  int wanted = rest->row >= im->first_row && rest->row < im->last_row && rest->column < im->last_column &&
               rest->column + rest->count > im->first_column;
  if (wanted) k->transform(im, rest->coefficients, rest->row, rest->column);
  else memset(rest->coefficients, 0, BLOCKS * 64 * sizeof(int16_t));
}

/* No unit of it is begun any more; those that are end with their chunks. */
static void fail(image *im, int status) {
  if (!im->failed) im->failed = status;
  im->next_unit = im->units;
}

/* Behind a chunk: begins the next one of the lane's unit. Whether there is none, or the image failed. */
static int end_chunk(const kernels *k, lane *l) {
  lane_rest *rest = l->rest;
  image *im = rest->image;
  if (rest->error) fail(im, rest->error & 128 ? GRATIS_LENGTH : GRATIS_CODE);
  if (im->failed) {
    memset(rest->coefficients, 0, BLOCKS * 64 * sizeof(int16_t));
    return 1;
  }
  use_chunk(k, l);
  rest->left -= rest->count;
  rest->column += rest->count;
  if (rest->column == im->columns) {
    extend_chroma(im, rest->row);
    rest->column = 0;
    rest->row++;
  }
  if (rest->left == 0) { /* the last bit has to be in the last byte */
    int64_t bits = (l->p - rest->begin) * 8 - (l->valid & 63);
    if ((bits + 7) / 8 != rest->limit - rest->begin) fail(im, GRATIS_LENGTH);
    if (im->failed || im->rows_each || rest->segment + 1 >= im->last_segment) return 1;
    begin_segment(l, rest->segment + 1);
  } else if (rest->row >= im->last_row) return 1; /* the rest of the segment is below all views */
  begin_chunk(k, l);
  return 0;
}

/* ---- the loop ---- */

void gratis_run(gratis_context *context, gratis_job *job) {
  const kernels *k = context->kernels;
  image *current = NULL;
  int count = 0;
  for (;;) {
    while (count < k->lanes) {
      if (!current || current->next_unit >= current->units) current = open_next(context, job);
      if (!current) break;
      begin_unit(k, &context->lanes[count++], current);
    }
    if (!count) break;
    int who = k->run(context->lanes, count);
    lane *l = &context->lanes[who];
    if (!end_chunk(k, l)) continue;
    image *im = l->rest->image;
    if (--im->open_units == 0 && im->next_unit >= im->units) {
      job->status[im->sample] = im->failed ? im->failed : gratis_finish_image(context, job, im);
      im->busy = 0;
      if (current == im) current = NULL;
    }
    lane freed = *l;
    *l = context->lanes[--count];
    context->lanes[count] = freed;
  }
  if (job->neighbours) gratis_leave_pending(context, job);
  k->fence();
}
