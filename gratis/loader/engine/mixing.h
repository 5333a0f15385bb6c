/* Included by kernels.h, for each instruction set: what is done to a finished batch. */

typedef uint16_t halves __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));

/* Half precision to single: exact. Subnormal ones come right by the multiplication, infinite ones by the bits. */
INLINE vf from_float16(u32 a) {
  u32 size = (a & 0x7FFFu) << 13, sign = (a & 0x8000u) << 16;
  u32 value = (u32)((vf)size * 0x1p112f), is_huge = (u32)(size >= SPLAT(u32, 0x0F800000u));
  return (vf)(value | sign | (is_huge & 0x7F800000u));
}
#if BYTES == 16
INLINE vf as_float16(vf a) { return from_float16(float16(a)); }
#endif

INLINE vf get(const void *in, int64_t at, int type) {
  if (type == GRATIS_FLOAT32) return floats((const float *)in + at);
  u32 bits = __builtin_convertvector(*(const halves *)((const uint16_t *)in + at), u32);
  return type == GRATIS_BFLOAT16 ? (vf)(bits << 16) : from_float16(bits);
}

INLINE vf rounded(vf a, int type) {
  if (type == GRATIS_FLOAT32) return a;
  return type == GRATIS_BFLOAT16 ? (vf)(long_bfloat16(a) & 0xFFFF0000u) : as_float16(a);
}

/* What one of two images that are mixed is made of. */
typedef struct {
  const uint8_t *pixels; /* may be read up to a vector beyond the row */
  const float *plus;
  const float *minus;    /* or NULL */
} half;

/* How they are: element i as `itself` * lam + `before` * rest, or where there is a box as `before` from `left` to `right`,
 * else as `itself`. each: scale and plus are three. */
typedef struct {
  half itself, before;
  const float *scale;
  int each, is_box, left, right;
  float lam, rest;
} pair;

INLINE vf finished(const uint8_t *p, vf scale, vf plus, const float *minus, int each, int type) {
  return rounded(moved(pixels(p), scale, plus, minus, each), type);
}

INLINE vf summed(vf itself, vf before, vf lam, vf rest) { return itself * lam + before * rest; }

/* Those from `left` to `right` of one, the others of the other. */
INLINE vf boxed(vf itself, vf before, int64_t i, int left, int right) {
  if (i + FLOATS <= left || i >= right) return itself;
  if (i >= left && i + FLOATS <= right) return before;
  v32 at = lanes_from((int)i);
  return pick_floats((v32)(at >= left) & (v32)(at < right), before, itself);
}

INLINE void blend_as(const pair *of, int n, void *out, int each, int subtracts, int is_box, int type, int stream) {
  const int steps = is_box ? GRATIS_FLOAT32 : type; /* of one of the two alone the last step is enough */
  const half a = of->itself, b = of->before;
  const int left = of->left, right = of->right;
  vf scale[3], plus[2][3], lam = SPLAT(vf, of->lam), rest = SPLAT(vf, of->rest);
  repeat(of->scale, each, scale);
  repeat(a.plus, each, plus[0]);
  repeat(b.plus, each, plus[1]);
  int64_t i = 0;
  int j = 0;
  for (; i + FLOATS <= n; i += FLOATS) {
    vf one = finished(a.pixels + i, scale[j], plus[0][j], subtracts ? a.minus + i : NULL, each, steps);
    vf other = finished(b.pixels + i, scale[j], plus[1][j], subtracts ? b.minus + i : NULL, each, steps);
    put(out, i, is_box ? boxed(one, other, i, left, right) : summed(one, other, lam, rest), type, stream);
    if (each) j = j == 2 ? 0 : j + 1;
  }
  if (i == n) return;
  float ends[2][FLOATS] = {{0}}, made[FLOATS];
  for (int k = 0; subtracts && k < 2; k++) memcpy(ends[k], (k ? b : a).minus + i, sizeof(float) * (size_t)(n - i));
  vf one = finished(a.pixels + i, scale[j], plus[0][j], subtracts ? ends[0] : NULL, each, steps);
  vf other = finished(b.pixels + i, scale[j], plus[1][j], subtracts ? ends[1] : NULL, each, steps);
  put(made, 0, is_box ? boxed(one, other, i, left, right) : summed(one, other, lam, rest), type, 0);
  int size = type == GRATIS_FLOAT32 ? 4 : 2;
  memcpy((char *)out + i * size, made, (size_t)(n - i) * size);
}

INLINE void blend_each(const pair *of, int n, void *out, int subtracts, int type, int stream) {
  switch (of->each * 2 + of->is_box) {
    case 0: blend_as(of, n, out, 0, subtracts, 0, type, stream); break;
    case 1: blend_as(of, n, out, 0, subtracts, 1, type, stream); break;
    case 2: blend_as(of, n, out, 1, subtracts, 0, type, stream); break;
    default: blend_as(of, n, out, 1, subtracts, 1, type, stream); break;
  }
}

INLINE void blend_typed(const pair *of, int n, void *out, int type, int stream) {
  int streams = stream && (uintptr_t)out % 64 == 0;
  if (of->itself.minus && streams) blend_each(of, n, out, 1, type, 1);
  else if (of->itself.minus) blend_each(of, n, out, 1, type, 0);
  else if (streams) blend_each(of, n, out, 0, type, 1);
  else blend_each(of, n, out, 0, type, 0);
}

static void blend_run(const pair *of, int n, void *out, int type, int stream) {
  if (type == GRATIS_FLOAT32) blend_typed(of, n, out, GRATIS_FLOAT32, stream);
  else if (type == GRATIS_BFLOAT16) blend_typed(of, n, out, GRATIS_BFLOAT16, stream);
  else blend_typed(of, n, out, GRATIS_FLOAT16, stream);
}

/* What row y is made of, of one channel or of all: `at` is its first element. */
static half half_of(const gratis_job *job, int64_t view, const uint8_t *pixels, int c, int y, int64_t at) {
  static const float zeros[3] = {0, 0, 0};
  const float *minus = job->minus ? job->minus[view] + y * job->minus_row + c * job->minus_plane : NULL;
  return (half){pixels + at, (job->plus ? job->plus + 3 * view : zeros) + c, minus};
}

/* How many rows from y on are one run: neither a mean of their own nor the sides of a box set them apart. */
static int rows_alike(const gratis_job *job, int y, int to) {
  const gratis_neighbours *how = job->neighbours;
  int top = how->box[0], bottom = top + how->box[2];
  if (job->minus || (how->is_box && y >= top && y < bottom)) return 1;
  return how->is_box && y < top && top < to && bottom > top ? top - y : to - y;
}

/* Rows [from, to) of a view that is mixed of itself and another, both as bytes in the output's layout. */
static void blend(const gratis_job *job, int64_t view, int64_t before, const uint8_t *itself, const uint8_t *other, int from,
                  int to) {
  static const float ones[3] = {1, 1, 1};
  const gratis_neighbours *how = job->neighbours;
  int last = job->channels_last, each = last ? 3 : 1, size = job->type == GRATIS_FLOAT32 ? 4 : 2, rows;
  int64_t wide = each * (int64_t)job->out_width, plane = (int64_t)job->out_height * job->out_width;
  pair of = {.each = last, .is_box = how->is_box, .left = how->box[1] * each, .right = (how->box[1] + how->box[3]) * each,
             .lam = how->lam, .rest = how->rest};
  for (int c = 0; c < (last ? 1 : 3); c++)
    for (int y = from; y < to; y += rows) {
      int64_t at = c * plane + y * wide;
      int inside = y >= how->box[0] && y < how->box[0] + how->box[2], n = (int)((rows = rows_alike(job, y, to)) * wide);
      char *out = (char *)job->out[view] + at * size;
      of.scale = (job->scale ? job->scale : ones) + c;
      of.itself = half_of(job, view, itself, c, y, at);
      of.before = half_of(job, before, other, c, y, at);
      if (!how->is_box || inside) blend_run(&of, n, out, job->type, job->stream);
      else affine_row(of.itself.pixels, n, of.scale, of.itself.plus, last, of.itself.minus, out, job->type, job->stream);
    }
}

/* to[i] = to[i] * lam + other[i] * rest, each product and the sum rounded to float32, as torch does it. ahead: bytes from
 * `other` to what is read next, which memory may bring meanwhile. */
INLINE void mix_as(void *to, const void *other, int64_t n, int64_t ahead, float lam, float rest, int type) {
  int64_t i = 0;
  for (; i + FLOATS <= n; i += FLOATS) {
    __builtin_prefetch((const char *)other + i * (type == GRATIS_FLOAT32 ? 4 : 2) + ahead);
    put(to, i, get(to, i, type) * lam + get(other, i, type) * rest, type, 0);
  }
  if (i == n) return;
  int size = type == GRATIS_FLOAT32 ? 4 : 2;
  float a[FLOATS] = {0}, b[FLOATS] = {0}, made[FLOATS];
  memcpy(a, (char *)to + i * size, (size_t)(n - i) * size);
  memcpy(b, (const char *)other + i * size, (size_t)(n - i) * size);
  put(made, 0, get(a, 0, type) * lam + get(b, 0, type) * rest, type, 0);
  memcpy((char *)to + i * size, made, (size_t)(n - i) * size);
}

/* Of bytes the sum is rounded to the nearest, ties to even: float32 has no fractions above 2**23. */
static void mix_bytes(uint8_t *restrict to, const uint8_t *restrict other, int64_t n, float lam, float rest) {
  for (int64_t i = 0; i < n; i++) {
    float sum = (float)to[i] * lam + (float)other[i] * rest;
    to[i] = (uint8_t)(int)(sum + 8388608.0f - 8388608.0f);
  }
}

static void mix(void *to, const void *other, int64_t n, int64_t ahead, float lam, float rest, int type) {
  if (type == GRATIS_UINT8) mix_bytes(to, other, n, lam, rest);
  else if (type == GRATIS_FLOAT32) mix_as(to, other, n, ahead, lam, rest, GRATIS_FLOAT32);
  else if (type == GRATIS_BFLOAT16) mix_as(to, other, n, ahead, lam, rest, GRATIS_BFLOAT16);
  else mix_as(to, other, n, ahead, lam, rest, GRATIS_FLOAT16);
}

/* Values to n elements of the output. from may be read up to a vector beyond n. */
static void store(void *out, const float *from, int n, int type) {
  if (type == GRATIS_UINT8) {
    for (int i = 0; i < n; i++) ((uint8_t *)out)[i] = (uint8_t)from[i];
    return;
  }
  if (type == GRATIS_FLOAT32) {
    memcpy(out, from, sizeof(float) * (size_t)n);
    return;
  }
  uint16_t made[FLOATS];
  for (int i = 0; i < n; i += FLOATS) {
    if (type == GRATIS_BFLOAT16) put(made, 0, floats(from + i), GRATIS_BFLOAT16, 0);
    else put(made, 0, floats(from + i), GRATIS_FLOAT16, 0);
    memcpy((uint16_t *)out + i, made, 2 * (size_t)(n - i < FLOATS ? n - i : FLOATS));
  }
}

enum { PIXELS_AT_ONCE = 1024 }; /* of a row of a box */

/* ---- standard normals: Box and Muller's of Philox4x32-10, three for a pixel. Plain C that compilers vectorise ---- */

INLINE void philox(uint32_t c[4], uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)c[0] * 0xD2511F53u, p1 = (uint64_t)c[2] * 0xCD9E8D57u;
    c[0] = (uint32_t)(p1 >> 32) ^ c[1] ^ k0, c[1] = (uint32_t)p1;
    c[2] = (uint32_t)(p0 >> 32) ^ c[3] ^ k1, c[3] = (uint32_t)p0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
}

/* The square root of -2 ln u, u the middle of the word's interval of 2**-24. */
INLINE float radius(uint32_t word) {
  union { float f; uint32_t u; } x = {((float)(int)(word >> 8) + 0.5f) * 0x1p-24f};
  x.u += 0x3F800000u - 0x3F3504F3u; /* the mantissa to [sqrt(1/2), sqrt(2)) */
  float e = (float)((int)(x.u >> 23) - 127);
  x.u = (x.u & 0x7FFFFFu) + 0x3F3504F3u;
  float f = x.f - 1, s = f / (2 + f), z = s * s, w = z * z, half = 0.5f * f * f;
  float series = z * (0.66666662693f + w * 0.28498786688f) + w * (0.40000972152f + w * 0.24279078841f);
  float log = s * (half + series) + e * 9.0580006145e-6f - half + f + e * 0.69313812256f;
  return __builtin_sqrtf(-2 * log);
}

/* Cosine and sine of the word as a part of a turn. */
INLINE void circle(uint32_t word, float *cosine, float *sine) {
  uint32_t part = word >> 8, quarter = (part + (1u << 21)) >> 22; /* the nearest quarter of a turn */
  float x = (float)((int32_t)part - (int32_t)(quarter << 22)) * (6.2831853072f * 0x1p-24f), z = x * x;
  float s = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
  float c = 1 - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
  float a = quarter & 1 ? s : c, b = quarter & 1 ? c : s;
  *cosine = (quarter + 1) & 2 ? -a : a;
  *sine = quarter & 2 ? -b : b;
}

/* Of pixels [first, first + n) of an image. Where `step` is 3 a pixel's three lie side by side in to[0]. */
static void normals(const gratis_erasing *job, int64_t image, uint32_t first, int n, float *restrict to, int plane, int step) {
  const uint32_t low = job->counters[2 * image], high = job->counters[2 * image + 1];
  for (int i = 0; i < n; i++) {
    uint32_t c[4] = {low, high, job->epoch, job->purpose | (first + (uint32_t)i) << 8};
    philox(c, job->key[0], job->key[1]);
    float cosine, sine, cosine2, sine2, r = radius(c[0]);
    circle(c[2], &cosine, &sine);
    circle(c[3], &cosine2, &sine2);
    to[i * step] = r * cosine;
    to[plane + i * step] = r * sine;
    to[2 * plane + i * step] = radius(c[1]) * cosine2;
  }
}

/* Row y of a box: [x, x + n) of the image. values: room for 3 * PIXELS_AT_ONCE floats and a vector. */
static void erase_row(const gratis_erasing *job, int64_t image, int64_t box, int y, int x, int n, float *values) {
  int last = job->channels_last, size = job->type == GRATIS_FLOAT32 ? 4 : job->type == GRATIS_UINT8 ? 1 : 2;
  int plane = last ? 1 : PIXELS_AT_ONCE, step = last ? 3 : 1;
  if (job->colours)
    for (int i = 0; i < n; i++)
      for (int c = 0; c < 3; c++) values[c * plane + i * step] = job->colours[3 * box + c];
  else if (last) normals(job, image, (uint32_t)(y * job->width + x), n, values, 1, 3);
  else normals(job, image, (uint32_t)(y * job->width + x), n, values, PIXELS_AT_ONCE, 1);
  char *row = (char *)job->rows + image * job->row_bytes;
  int64_t at = (int64_t)y * job->width + x, area = (int64_t)job->height * job->width;
  if (last) store(row + 3 * at * size, values, 3 * n, job->type);
  else
    for (int c = 0; c < 3; c++) store(row + (c * area + at) * size, values + c * plane, n, job->type);
}

static void erase(const gratis_erasing *job, int64_t image) {
  float values[3 * PIXELS_AT_ONCE + MARGIN];
  for (int64_t box = job->first[image]; box < job->first[image + 1]; box++) {
    const int32_t *b = job->boxes + 4 * box;
    for (int y = b[0]; y < b[0] + b[2]; y++)
      for (int x = 0; x < b[3]; x += PIXELS_AT_ONCE)
        erase_row(job, image, box, y, b[1] + x, b[3] - x < PIXELS_AT_ONCE ? b[3] - x : PIXELS_AT_ONCE, values);
  }
}
