/* The code that is compiled once for each instruction set: entropy decoding, transform, colour, finishing, resampling,
 * and (mixing.h) what is done to finished batches.
 * A file that includes it has defined KERNELS, the name of its table of functions. */
#include <string.h>
#include "engine.h"
#include "vectors.h"

#define RARE(condition) __builtin_expect(!!(condition), 0)

/* ---- entropy decoding ---- */

INLINE void refill(lane *l) { /* to 56 bits or more; reads up to 8 bytes beyond what it takes */
  uint64_t next;
  memcpy(&next, l->p, 8);
  l->buffer |= __builtin_bswap64(next) >> (l->valid & 63);
  l->p += ~l->valid >> 3 & 7;
  l->valid |= 56;
}

/* The signed value of the `size` topmost bits (T.81, F.2.2.1); 0 for none. */
INLINE int32_t extend(uint64_t bits, uint32_t size) {
  uint64_t value = bits >> 1 >> (63 - size), negative = ~(uint64_t)((int64_t)bits >> 63);
  return (int32_t)(value - (((1ull << size) - 1) & negative));
}

INLINE void begin_block(lane *l) {
  const block *b = l->program;
  refill(l);
  uint32_t entry = b->dc->near[l->buffer >> (64 - DC_LOOKUP)];
  if (RARE(!entry)) {
    uint32_t far = (uint32_t)(l->buffer >> 48) - b->dc->far_first;
    entry = far < b->dc->far_count ? b->dc->far[far] : 1u << 8;
    l->rest->error |= far < b->dc->far_count ? 0 : 64;
  }
  uint32_t length = entry >> 8, size = entry & 255;
  l->buffer <<= length;
  int *prediction = &l->rest->prediction[b->component];
  *prediction = (int)((uint32_t)*prediction + (uint32_t)extend(l->buffer, size));
  l->buffer <<= size;
  l->valid -= length + size;
  l->block = l->rest->coefficients + b->place;
  l->block[0] = (int16_t)*prediction;
  l->ac = b->ac;
  l->k = 0;
}

/* Whether the chunk is finished, or the segment used up. */
INLINE int end_block(lane *l) {
  l->rest->error |= l->k & 64; /* k is 63 here, 128 or more after an end of block, and between them after too long a run */
  if (RARE(l->p - (l->valid >> 3 & 7) > l->rest->limit)) {
    l->rest->error |= 128;
    return 1;
  }
  if (++l->program == l->stop) return 1;
  begin_block(l);
  return 0;
}

/* An entry for what the first look did not show whole. */
INLINE uint32_t long_symbol(const lane *l, uint32_t entry) {
  if (!(entry >> 24)) {
    uint32_t far = (uint32_t)(l->buffer >> 48) - l->ac->far_first;
    entry = far < l->ac->far_count ? l->ac->far[far] : 1u << 24 | 64u << 8;
  }
  uint32_t length = entry >> 24, size = entry >> 16 & 255;
  return (length + size) | (entry & 0xFF00u) | (uint32_t)extend(l->buffer << length, size) << 16;
}

/* Whether the block is finished. */
INLINE int take(lane *l, uint32_t entry) {
  l->k += entry >> 8 & 255;
  l->block[gratis_place[l->k]] = (int16_t)(entry >> 16);
  l->buffer <<= entry & 63;
  l->valid -= entry; /* of which 8 bits count */
  return l->k >= 63;
}

/* Up to four symbols: as many as the buffer holds if they are short. A long one is the last. */
INLINE int step(lane *l) {
  refill(l);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    uint32_t entry = l->ac->near[l->buffer >> (64 - LOOKUP)];
    if (RARE(!(entry & 255))) {
      refill(l);
      return take(l, long_symbol(l, entry)) && end_block(l);
    }
    if (take(l, entry)) return end_block(l);
  }
  return 0;
}

/* Copies in locals, which the compiler keeps in registers as far as they go. */
static int run1(lane *lanes) {
  lane a = lanes[0];
  while (!step(&a)) {}
  lanes[0] = a;
  return 0;
}

static int run2(lane *lanes) {
  lane a = lanes[0], b = lanes[1];
  int who;
  for (;;) {
    if (step(&a)) { who = 0; break; }
    if (step(&b)) { who = 1; break; }
  }
  lanes[0] = a, lanes[1] = b;
  return who;
}

static int run3(lane *lanes) {
  lane a = lanes[0], b = lanes[1], c = lanes[2];
  int who;
  for (;;) {
    if (step(&a)) { who = 0; break; }
    if (step(&b)) { who = 1; break; }
    if (step(&c)) { who = 2; break; }
  }
  lanes[0] = a, lanes[1] = b, lanes[2] = c;
  return who;
}

static int run4(lane *lanes) {
  lane a = lanes[0], b = lanes[1], c = lanes[2], d = lanes[3];
  int who;
  for (;;) {
    if (step(&a)) { who = 0; break; }
    if (step(&b)) { who = 1; break; }
    if (step(&c)) { who = 2; break; }
    if (step(&d)) { who = 3; break; }
  }
  lanes[0] = a, lanes[1] = b, lanes[2] = c, lanes[3] = d;
  return who;
}

static int run(lane *lanes, int count) {
  return count == 1 ? run1(lanes) : count == 2 ? run2(lanes) : count == 3 ? run3(lanes) : run4(lanes);
}

static void begin_chunk(lane *l) { begin_block(l); }

/* ---- inverse transform: libjpeg's jidctint ("islow"), with 16-bit sums and saturation as in libjpeg-turbo's SIMD ---- */

#define FIX(x) ((int)((x) * 8192 + 0.5))
/* A pair of factors for madd: of the lo element and of the hi one. */
#define PAIR(a, b) ((v16)SPLAT(v32, (int)((uint32_t)(uint16_t)(a) | (uint32_t)(uint16_t)(b) << 16)))

INLINE v32 descale(v32 a, int bits) { return (a + (1 << (bits - 1))) >> bits; }

/* Half of the elements of one pass over 8 rows: eo are rows 0+4, 0-4, 2 and 6 interleaved, 7 and 1, 5 and 3, and the two
 * sums of odd rows. */
INLINE void half_pass(v32 sum, v32 difference, v16 r26, v16 r71, v16 r53, v16 z34, v32 out[8], int bits) {
  v32 t3 = madd(r26, PAIR(FIX(0.541196100) + FIX(0.765366865), FIX(0.541196100)));
  v32 t2 = madd(r26, PAIR(FIX(0.541196100), FIX(0.541196100) - FIX(1.847759065)));
  v32 e0 = sum + t3, e3 = sum - t3, e1 = difference + t2, e2 = difference - t2;
  v32 z3 = madd(z34, PAIR(FIX(1.175875602) - FIX(1.961570560), FIX(1.175875602)));
  v32 z4 = madd(z34, PAIR(FIX(1.175875602), FIX(1.175875602) - FIX(0.390180644)));
  v32 o0 = madd(r71, PAIR(FIX(0.298631336) - FIX(0.899976223), -FIX(0.899976223))) + z3;
  v32 o3 = madd(r71, PAIR(-FIX(0.899976223), FIX(1.501321110) - FIX(0.899976223))) + z4;
  v32 o1 = madd(r53, PAIR(FIX(2.053119869) - FIX(2.562915447), -FIX(2.562915447))) + z4;
  v32 o2 = madd(r53, PAIR(-FIX(2.562915447), FIX(3.072711026) - FIX(2.562915447))) + z3;
  out[0] = descale(e0 + o3, bits), out[7] = descale(e0 - o3, bits);
  out[1] = descale(e1 + o2, bits), out[6] = descale(e1 - o2, bits);
  out[2] = descale(e2 + o1, bits), out[5] = descale(e2 - o1, bits);
  out[3] = descale(e3 + o0, bits), out[4] = descale(e3 - o0, bits);
}

INLINE void pass(v16 r[8], int bits) {
  v16 zero = {0}, sum = r[0] + r[4], difference = r[0] - r[4], z3 = r[3] + r[7], z4 = r[1] + r[5];
  v32 low[8], high[8];
  half_pass((v32)lo16(zero, sum) >> 3, (v32)lo16(zero, difference) >> 3, lo16(r[2], r[6]), lo16(r[7], r[1]),
            lo16(r[5], r[3]), lo16(z3, z4), low, bits);
  half_pass((v32)hi16(zero, sum) >> 3, (v32)hi16(zero, difference) >> 3, hi16(r[2], r[6]), hi16(r[7], r[1]),
            hi16(r[5], r[3]), hi16(z3, z4), high, bits);
  for (int i = 0; i < 8; i++) r[i] = pack32(low[i], high[i]);
}

INLINE void transpose(v16 r[8]) {
  v32 a[8], b[8];
  for (int i = 0; i < 4; i++) {
    a[2 * i] = (v32)lo16(r[2 * i], r[2 * i + 1]);
    a[2 * i + 1] = (v32)hi16(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; i++) { /* columns 0-1, 2-3, 4-5, 6-7 of rows 0-3, then of rows 4-7 */
    b[4 * i] = lo32(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = hi32(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = lo32(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = hi32(a[4 * i + 1], a[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    r[2 * i] = (v16)lo64(b[i], b[i + 4]);
    r[2 * i + 1] = (v16)hi64(b[i], b[i + 4]);
  }
}

/* As many blocks as a vector holds, whose rows lie 64 bytes apart; clears them. */
INLINE void inverse(int16_t *in, const int16_t *quant, uint8_t *out, int64_t stride) {
  v16 r[8], zero = {0};
  for (int i = 0; i < 8; i++) {
    r[i] = *(v16 *)(in + 32 * i) * *(const v16 *)(quant + 32 * i);
    *(v16 *)(in + 32 * i) = zero;
  }
  pass(r, 11);
  transpose(r);
  pass(r, 18);
  v8 p[4], q[4], s[4];
  for (int i = 0; i < 4; i++) p[i] = pack16(r[i], r[i + 4]) ^ (int8_t)-128; /* columns i and i + 4 */
  q[0] = lo8(p[0], p[2]), q[1] = lo8(p[1], p[3]), q[2] = hi8(p[0], p[2]), q[3] = hi8(p[1], p[3]);
  s[0] = lo8(q[0], q[1]), s[1] = hi8(q[0], q[1]); /* columns 0-3 of rows 0-3, 4-7 */
  s[2] = lo8(q[2], q[3]), s[3] = hi8(q[2], q[3]); /* columns 4-7 */
  for (int i = 0; i < 2; i++, out += 4 * stride) {
    put_rows((v8)lo32((v32)s[i], (v32)s[i + 2]), out, out + stride);
    put_rows((v8)hi32((v32)s[i], (v32)s[i + 2]), out + 2 * stride, out + 3 * stride);
  }
}

static void transform(const image *im, int16_t *coefficients, int row, int column) {
  for (int i = 0; i < im->groups; i++, coefficients += 256) {
    group g = im->group[i];
    int side = g.component ? 8 : im->mcu;
    int64_t stride = im->stride[g.component];
    uint8_t *out = im->plane[g.component] + ((row - im->first_row) * side + g.y) * stride + column * side + g.x;
    for (int b = 0; b < 4; b += QUADS) inverse(coefficients + 8 * b, im->quant[g.component] + 8 * b, out + 8 * b, stride);
  }
}

/* ---- planes to RGB; words hold the pixels at even places, or those at odd ones ---- */

INLINE v16 clamp_byte(v16 a) { return smaller(larger(a, SPLAT(v16, 0)), SPLAT(v16, 255)); }

/* Chroma for twice as many pixels, as libjpeg's h2v2 fancy upsampling makes it: of the nearer row three quarters, of the
 * next a quarter, and the same across. shift: the first of each two pixels is the right one of its sample. */
INLINE void smooth(const uint8_t *near, const uint8_t *next, int shift, v16 *first, v16 *second) {
  v16 this = bytes(near) * 3 + bytes(next), after = bytes(near + 1) * 3 + bytes(next + 1);
  if (shift) {
    *first = (this * 3 + after + 7) >> 4;
    *second = (after * 3 + this + 8) >> 4;
  } else {
    *first = (this * 3 + bytes(near - 1) * 3 + bytes(next - 1) + 8) >> 4;
    *second = (this * 3 + after + 7) >> 4;
  }
}

/* Bytes that lie side by side, as words. */
INLINE void split(const uint8_t *p, v16 *even, v16 *odd) {
  u16 both;
  memcpy(&both, p, BYTES);
  *even = (v16)(both & 255);
  *odd = (v16)(both >> 8);
}

INLINE void colour(v16 l, v16 b, v16 r, v16 rgb[3]) {
  b -= 128, r -= 128;
  /* 1.402 is 1 + 0.402, 1.772 is 2 - 0.228, 0.71414 is 1 - 0.28586; each rounded as libjpeg rounds it, for every value */
  v16 green = pack32(descale(madd(lo16(b, r), PAIR(-22554, 18734)), 16), descale(madd(hi16(b, r), PAIR(-22554, 18734)), 16));
  rgb[0] = clamp_byte(l + r + mul_round(r, SPLAT(v16, 13175)));
  rgb[1] = clamp_byte(l - r + green);
  rgb[2] = clamp_byte(l + b + b + mul_round(b, SPLAT(v16, -7471)));
}

/* Row y, columns [x, x + width), of an image. Writes up to a vector too much. */
static void convert(const image *im, int y, int x, int width, uint8_t *const rgb[3]) {
  int64_t row = y - (int64_t)im->first_row * im->mcu;
  const uint8_t *luma = im->plane[0] + row * im->stride[0];
  if (im->head.components == 1) {
    for (int c = 0; c < 3; c++) memcpy(rgb[c], luma + x, (size_t)width);
    return;
  }
  int subsampled = im->head.subsampled, narrow = im->chroma_width <= 2, shift = subsampled ? x & 1 : 0; /* narrow: not smoothed */
  const uint8_t *near[2], *next[2];
  for (int c = 0; c < 2; c++) {
    int64_t last = im->chroma_height - 1 - (int64_t)im->first_row * 8, other = row & 1 ? row / 2 + 1 : row / 2 - 1;
    other = other + im->first_row * 8 < 0 ? 0 : other > last ? last : other;
    near[c] = im->plane[1 + c] + (subsampled ? row / 2 * im->stride[1] + x / 2 : row * im->stride[1] + x);
    next[c] = im->plane[1 + c] + other * im->stride[1] + x / 2;
  }
  for (int i = 0; i < width; i += BYTES) {
    v16 l[2], b[2], r[2], even[3], odd[3];
    split(luma + x + i, &l[0], &l[1]);
    if (!subsampled) {
      split(near[0] + i, &b[0], &b[1]);
      split(near[1] + i, &r[0], &r[1]);
    } else if (narrow) {
      b[0] = bytes(near[0] + i / 2), b[1] = bytes(near[0] + i / 2 + shift);
      r[0] = bytes(near[1] + i / 2), r[1] = bytes(near[1] + i / 2 + shift);
    } else {
      smooth(near[0] + i / 2, next[0] + i / 2, shift, &b[0], &b[1]);
      smooth(near[1] + i / 2, next[1] + i / 2, shift, &r[0], &r[1]);
    }
    colour(l[0], b[0], r[0], even);
    colour(l[1], b[1], r[1], odd);
    for (int c = 0; c < 3; c++) {
      v16 both = even[c] | odd[c] << 8;
      memcpy(rgb[c] + i, &both, BYTES);
    }
  }
}

/* ---- pixels to the output ---- */

INLINE void put(void *out, int64_t at, vf value, int type, int stream) {
  if (type == GRATIS_FLOAT32) put_floats((float *)out + at, value, stream);
  else put_halves((uint16_t *)out + at, type == GRATIS_BFLOAT16 ? bfloat16(value) : float16(value), stream);
}

INLINE vf floats(const float *p) {
  vf value;
  memcpy(&value, p, BYTES);
  return value;
}

/* p * scale + plus - minus: of planes the last two are subtracted first, of interleaved channels (each) last. */
INLINE vf moved(vf p, vf scale, vf plus, const float *minus, int each) {
  if (!minus) return fused(p, scale, plus);
  if (each) return fused(p, scale, plus) - floats(minus);
  return fused(p, scale, plus - floats(minus));
}

/* Three factors again and again, from the first, the second or the third on. */
#if BYTES == 16
#define RGB_FROM(v, a, b, c) SHUFFLE_FLOATS(v, a, b, c, a)
#elif BYTES == 32
#define RGB_FROM(v, a, b, c) SHUFFLE_FLOATS(v, a, b, c, a, b, c, a, b)
#else
#define RGB_FROM(v, a, b, c) SHUFFLE_FLOATS(v, a, b, c, a, b, c, a, b, c, a, b, c, a, b, c, a)
#endif
INLINE void repeat(const float *of, int each, vf to[3]) {
  if (!each) {
    to[0] = to[1] = to[2] = SPLAT(vf, *of);
    return;
  }
  vf v = {of[0], of[1], of[2]}, from[3] = {RGB_FROM(v, 0, 1, 2), RGB_FROM(v, 1, 2, 0), RGB_FROM(v, 2, 0, 1)};
  for (int j = 0; j < 3; j++) to[j] = from[j * FLOATS % 3];
}

/* out[i] = p[i] * scale + plus - minus[i], see `moved`; each: scale and plus are three, for channels in turn. p may be read
 * up to a vector beyond n. */
INLINE void affine(const uint8_t *p, int n, const float *scale, const float *plus, int each, const float *minus, void *out,
                   int type, int stream) {
  vf s[3], b[3];
  repeat(scale, each, s);
  repeat(plus, each, b);
  int64_t i = 0;
  int j = 0;
  for (; i + FLOATS <= n; i += FLOATS) {
    put(out, i, moved(pixels(p + i), s[j], b[j], minus ? minus + i : NULL, each), type, stream);
    if (each) j = j == 2 ? 0 : j + 1;
  }
  if (i == n) return;
  float left[FLOATS] = {0}, made[FLOATS];
  if (minus) memcpy(left, minus + i, sizeof(float) * (size_t)(n - i));
  put(made, 0, moved(pixels(p + i), s[j], b[j], minus ? left : NULL, each), type, 0);
  int bytes_each = type == GRATIS_FLOAT32 ? 4 : 2;
  memcpy((char *)out + (int64_t)i * bytes_each, made, (size_t)(n - i) * bytes_each);
}

INLINE void affine_streamed(const uint8_t *p, int n, const float *scale, const float *plus, int each, const float *minus,
                            void *out, int type, int stream) {
  if (stream && (uintptr_t)out % 64 == 0) {
    if (minus) affine(p, n, scale, plus, each, minus, out, type, 1);
    else affine(p, n, scale, plus, each, NULL, out, type, 1);
  } else if (minus) affine(p, n, scale, plus, each, minus, out, type, 0);
  else affine(p, n, scale, plus, each, NULL, out, type, 0);
}

static void affine_row(const uint8_t *p, int n, const float *scale, const float *plus, int each, const float *minus, void *out,
                       int type, int stream) {
  switch (type * 2 + each) {
    case GRATIS_FLOAT32 * 2: affine_streamed(p, n, scale, plus, 0, minus, out, GRATIS_FLOAT32, stream); break;
    case GRATIS_FLOAT32 * 2 + 1: affine_streamed(p, n, scale, plus, 1, minus, out, GRATIS_FLOAT32, stream); break;
    case GRATIS_BFLOAT16 * 2: affine_streamed(p, n, scale, plus, 0, minus, out, GRATIS_BFLOAT16, stream); break;
    case GRATIS_BFLOAT16 * 2 + 1: affine_streamed(p, n, scale, plus, 1, minus, out, GRATIS_BFLOAT16, stream); break;
    case GRATIS_FLOAT16 * 2: affine_streamed(p, n, scale, plus, 0, minus, out, GRATIS_FLOAT16, stream); break;
    default: affine_streamed(p, n, scale, plus, 1, minus, out, GRATIS_FLOAT16, stream); break;
  }
}

static void mirror(const uint8_t *restrict in, uint8_t *restrict out, int n) {
  for (int i = 0; i < n; i++) out[i] = in[n - 1 - i];
}

static void interleave(const uint8_t *const rgb[3], uint8_t *restrict out, int n) {
  const uint8_t *restrict red = rgb[0], *restrict green = rgb[1], *restrict blue = rgb[2];
  for (int i = 0; i < n; i++) out[3 * i] = red[i], out[3 * i + 1] = green[i], out[3 * i + 2] = blue[i];
}

/* Each pixel's three, and 255. rgb may be read up to a vector beyond n. */
static void interleave_words(const uint8_t *const rgb[3], uint8_t *out, int n) {
  for (int i = 0; i < n; i += BYTES) {
    v8 in[3];
    for (int c = 0; c < 3; c++) memcpy(&in[c], rgb[c] + i, BYTES);
    v8 ones = SPLAT(v8, -1), low = lo8(in[0], in[1]), high = hi8(in[0], in[1]), blue[2] = {lo8(in[2], ones), hi8(in[2], ones)};
    v16 words[4];
    for (int j = 0; j < 2; j++) {
      v16 a = (v16)(j ? high : low), b = (v16)blue[j];
      words[2 * j] = lo16(a, b), words[2 * j + 1] = hi16(a, b);
    }
    uint8_t made[4 * BYTES];
    for (int b = 0; b < QUADS; b++)
      for (int j = 0; j < 4; j++) memcpy(made + 64 * b + 16 * j, (const char *)&words[j] + 16 * b, 16);
    memcpy(out + 4 * (int64_t)i, made, 4 * (size_t)(n - i < BYTES ? n - i : BYTES));
  }
}

/* Row y of a view of height x width. scratch: 6 * width + 4 * MARGIN bytes. */
static void finish(const gratis_job *job, int64_t view, int y, int height, int width, const uint8_t *const rgb[3],
                   uint8_t *scratch) {
  static const float ones[3] = {1, 1, 1}, zeros[3] = {0, 0, 0};
  const float *scale = job->scale ? job->scale : ones, *plus = job->plus ? job->plus + 3 * view : zeros;
  const float *minus = job->minus ? job->minus[view] + y * job->minus_row : NULL;
  int size = job->type == GRATIS_UINT8 ? 1 : job->type == GRATIS_FLOAT32 ? 4 : 2, flip = job->flip && job->flip[view];
  int64_t padded = width + MARGIN, wide = 3 * (int64_t)width;
  int64_t plane = job->out_plane ? job->out_plane : (int64_t)height * width * size;
  char *out = (char *)job->out[view] + (job->channels_last ? y * wide : (int64_t)y * width) * size;
  if (size == 1 && !job->channels_last) {
    for (int c = 0; c < 3; c++)
      if (flip) mirror(rgb[c], (uint8_t *)out + c * plane, width);
      else memcpy(out + c * plane, rgb[c], (size_t)width);
    return;
  }
  const uint8_t *row[3] = {rgb[0], rgb[1], rgb[2]};
  for (int c = 0; flip && c < 3; c++) {
    mirror(rgb[c], scratch + c * padded, width);
    row[c] = scratch + c * padded;
  }
  if (!job->channels_last) {
    for (int c = 0; c < 3; c++)
      affine_row(row[c], width, scale + c, plus + c, 0, minus ? minus + c * job->minus_plane : NULL, out + c * plane, job->type, job->stream);
    return;
  }
  if (job->channels_last == 2) {
    interleave_words(row, (uint8_t *)job->out[view] + 4 * (int64_t)y * width, width);
    return;
  }
  if (size == 1) {
    interleave(row, (uint8_t *)out, width);
    return;
  }
  uint8_t *mixed = scratch + 3 * padded;
  interleave(row, mixed, width);
  affine_row(mixed, (int)wide, scale, plus, 1, minus, out, job->type, job->stream);
}

static void fence(void) {
#ifdef __x86_64__
  __builtin_ia32_sfence();
#endif
}

/* ---- resampling, as torch does it for uint8: across, then down, each rounded to 8 bits ---- */

#if BYTES > 16
INLINE v16 shuffled(const uint8_t *in, const uint8_t *shuffle) {
#if BYTES == 64
  return (v16)_mm512_maskz_permutexvar_epi8(0x5555555555555555u, _mm512_loadu_si512(shuffle), _mm512_loadu_si512(in));
#else
  __m256i window = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)in));
  return (v16)_mm256_shuffle_epi8(window, _mm256_loadu_si256((const void *)shuffle));
#endif
}

INLINE void put_outputs(uint8_t *out, v32 a) {
#if BYTES == 64
  _mm_storeu_si128((void *)out, _mm512_cvtusepi32_epi8(_mm512_max_epi32((raw)a, _mm512_setzero_si512())));
#else
  uint8_t twice[WORDS];
  put_bytes(twice, pack32(a, a)); /* 4 values twice, then the other 4 twice */
  memcpy(out, twice, 4);
  memcpy(out + 4, twice + 8, 4);
#endif
}

static void across_groups(const weights *w, const uint8_t *const in[3], uint8_t *const out[3]) {
  const uint8_t *shuffle = w->shuffle;
  const int16_t *pairs = w->pairs;
  for (int g = 0; g < w->groups; g++) {
    v32 sum[3];
    for (int c = 0; c < 3; c++) sum[c] = SPLAT(v32, 1 << (w->precision - 1));
    for (int t = 0; t < w->taps / 2; t++, shuffle += BYTES, pairs += WORDS) {
      v16 factors;
      memcpy(&factors, pairs, BYTES);
      for (int c = 0; c < 3; c++) sum[c] += madd(shuffled(in[c] + w->base[g], shuffle), factors);
    }
    for (int c = 0; c < 3; c++) put_outputs(out[c] + g * FLOATS, sum[c] >> w->precision);
  }
}
#endif

/* One row. in may be read MARGIN beyond its end, out written a vector beyond. */
static void across(const weights *w, const uint8_t *const in[3], uint8_t *const out[3]) {
#if BYTES > 16
  if (w->groups) {
    across_groups(w, in, out);
    return;
  }
#endif
  for (int c = 0; c < 3; c++)
    for (int i = 0; i < w->of.count; i++) {
      const int16_t *factors = w->weights + (int64_t)i * w->taps;
      int sum = 1 << (w->precision - 1);
      for (int t = 0; t < w->taps; t++) sum += factors[t] * in[c][w->first[i] + t];
      sum >>= w->precision;
      out[c][i] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
    }
}

INLINE void down_taps(const weights *w, int y, const uint8_t *rows, int64_t stride, uint8_t *out, int width, int taps) {
  const int16_t *factors = w->weights + (int64_t)y * w->taps;
  int last = w->end - w->begin - 1, first = w->first[y];
  for (int x = 0; x < width; x += WORDS) {
    v32 low = SPLAT(v32, 1 << (w->precision - 1)), high = low;
    for (int i = 0; i < taps; i += 2) { /* beyond the last row the factor is 0 */
      int64_t one = first + i < last ? first + i : last, two = one < last ? one + 1 : last;
      v16 a = bytes(rows + one * stride + x), b = bytes(rows + two * stride + x), pair = PAIR(factors[i], factors[i + 1]);
      low += madd(lo16(a, b), pair);
      high += madd(hi16(a, b), pair);
    }
    put_bytes(out + x, pack32(low >> w->precision, high >> w->precision));
  }
}

/* Row y of one channel, from rows of source pixels that are stride bytes apart. */
static void down(const weights *w, int y, const uint8_t *rows, int64_t stride, uint8_t *restrict out, int width) {
  if (w->taps == 2) down_taps(w, y, rows, stride, out, width, 2); /* known, so that the compiler unrolls the loop */
  else if (w->taps == 4) down_taps(w, y, rows, stride, out, width, 4);
  else down_taps(w, y, rows, stride, out, width, w->taps);
}

#include "operations.h"
#include "encoding.h"
#include "mixing.h"

#if BYTES == 64
enum { OUTPUTS = 16, WINDOW = 64 };
#elif BYTES == 32
enum { OUTPUTS = 8, WINDOW = 16 };
#else
enum { OUTPUTS = 0, WINDOW = 0 };
#endif

const kernels KERNELS = {
  .lanes = 3, .outputs = OUTPUTS, .window = WINDOW, .run = run, .begin_block = begin_chunk, .transform = transform,
  .convert = convert, .finish = finish, .blend = blend, .across = across, .down = down, .mix = mix, .erase = erase, .operate = operate,
  .encode_row = encode_row, .put_symbols = put_symbols, .fence = fence,
};
