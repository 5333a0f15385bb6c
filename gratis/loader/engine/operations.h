/* Operations on the 8-bit pixels of a view: the code that is compiled once for each instruction set. Included by
 * kernels.h, whose vectors it uses. The arithmetic is torchvision's on tensors of uint8 (transforms.v2.functional), step
 * by step in float32, so that the levels are the same; what it must equal in this tree is views/operations_reference.py.
 *
 * Loops go over whole vectors: up to MARGIN bytes behind a plane's pixels may be read and written. */
#include <math.h>

INLINE v32 truncated(vf a) { return __builtin_convertvector(a, v32); }
INLINE vf to_floats(v32 a) { return __builtin_convertvector(a, vf); }
/* To the nearest, ties to even; for less than 2**22. */
INLINE v32 nearest(vf a) { return truncated((a + 12582912.0f) - 12582912.0f); }
INLINE v32 lanes_from(int first) {
  static const int32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  v32 a;
  memcpy(&a, lanes, BYTES);
  return a + first;
}
INLINE v32 pick(v32 mask, v32 a, v32 b) { return (a & mask) | (b & ~mask); }
INLINE vf pick_floats(v32 mask, vf a, vf b) { return (vf)pick(mask, (v32)a, (v32)b); }

/* As bytes, what is beyond them clamped. */
INLINE void put_levels(uint8_t *p, v32 a) {
#if BYTES == 64
  _mm_storeu_si128((void *)p, _mm512_cvtusepi32_epi8(_mm512_max_epi32((raw)a, _mm512_setzero_si512())));
#elif BYTES == 32
  __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((raw)a), _mm256_extracti128_si256((raw)a, 1));
  _mm_storel_epi64((void *)p, _mm_packus_epi16(words, words));
#else
  for (int i = 0; i < FLOATS; i++) p[i] = (uint8_t)(a[i] < 0 ? 0 : a[i] > 255 ? 255 : a[i]);
#endif
}

/* ---- tables: of each level another ---- */

static void look_up(uint8_t *p, int64_t n, const uint8_t table[256]) {
#if BYTES == 64
  raw t[4];
  for (int i = 0; i < 4; i++) t[i] = _mm512_loadu_si512(table + 64 * i);
  for (int64_t i = 0; i < n; i += 64) {
    raw v = _mm512_loadu_si512(p + i);
    raw low = _mm512_permutex2var_epi8(t[0], v, t[1]), high = _mm512_permutex2var_epi8(t[2], v, t[3]);
    _mm512_storeu_si512(p + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), low, high));
  }
#else
  for (int64_t i = 0; i < n; i++) p[i] = table[p[i]];
#endif
}

static void look_up_all(canvas *c, const uint8_t table[256]) {
  for (int k = 0; k < 3; k++) look_up(c->pixels + k * c->plane, c->count, table);
}

static uint8_t level(float value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

static void brightness(canvas *c, float factor) {
  uint8_t table[256];
  for (int i = 0; i < 256; i++) table[i] = level((float)i * factor);
  look_up_all(c, table);
}

static void posterize(canvas *c, int bits) {
  uint8_t table[256];
  for (int i = 0; i < 256; i++) table[i] = (uint8_t)(bits >= 8 ? i : i & (((1 << bits) - 1) << (8 - bits)));
  look_up_all(c, table);
}

static void solarize(canvas *c, float threshold) {
  uint8_t table[256];
  for (int i = 0; i < 256; i++) table[i] = (uint8_t)((float)i >= threshold ? 255 - i : i);
  look_up_all(c, table);
}

static void solarize_add(canvas *c, int plus) { /* levels below 128, as timm */
  uint8_t table[256];
  for (int i = 0; i < 256; i++) table[i] = (uint8_t)(i >= 128 ? i : i + plus > 255 ? 255 : i + plus);
  look_up_all(c, table);
}

static void autocontrast(canvas *c) {
  for (int k = 0; k < 3; k++) {
    uint8_t *p = c->pixels + k * c->plane, least = 255, most = 0, table[256];
    for (int64_t i = 0; i < c->count; i++) {
      least = p[i] < least ? p[i] : least;
      most = p[i] > most ? p[i] : most;
    }
    if (least == most) continue;
    float scale = (float)(most - least) * (float)(1.0 / 255);
    for (int i = 0; i < 256; i++) table[i] = level((float)(i - least) / scale);
    look_up(p, c->count, table);
  }
}

/* Four histograms in turn, so that equal neighbours need not wait for each other. */
static void histogram(const uint8_t *p, int64_t n, uint32_t counts[256]) {
  uint32_t parts[4][256];
  memset(parts, 0, sizeof parts);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t eight;
    memcpy(&eight, p + i, 8);
    for (int k = 0; k < 8; k++) parts[k & 3][eight >> (8 * k) & 255]++;
  }
  for (; i < n; i++) parts[0][p[i]]++;
  for (int k = 0; k < 256; k++) counts[k] = parts[0][k] + parts[1][k] + parts[2][k] + parts[3][k];
}

static void equalize(canvas *c) {
  for (int k = 0; k < 3; k++) {
    uint8_t *p = c->pixels + k * c->plane, table[256];
    uint32_t counts[256], last = 255;
    histogram(p, c->count, counts);
    while (!counts[last]) last--;
    int64_t step = (c->count - counts[last]) / 255, sum = step / 2;
    if (!step) continue;
    for (int i = 0; i < 256; sum += counts[i++]) table[i] = (uint8_t)(sum / step > 255 ? 255 : sum / step);
    look_up(p, c->count, table);
  }
}

/* ---- pixel by pixel ---- */

INLINE vf grey_of(vf r, vf g, vf b) {
  return fused(b, SPLAT(vf, 0.114f), fused(g, SPLAT(vf, 0.587f), r * 0.2989f));
}

/* The mean of the grey levels, each rounded down. */
static float grey_mean(canvas *c) {
  v32 sums = {0};
  int64_t sum = 0;
  for (int k = 0; k < 3; k++) memset(c->pixels + k * c->plane + c->count, 0, MARGIN);
  const uint8_t *r = c->pixels, *g = r + c->plane, *b = g + c->plane;
  for (int64_t i = 0; i < c->count; i += FLOATS) sums += truncated(grey_of(pixels(r + i), pixels(g + i), pixels(b + i)));
  for (int i = 0; i < FLOATS; i++) sum += sums[i];
  return (float)sum / (float)c->count;
}

static void contrast(canvas *c, float ratio, float rest) {
  float mean = grey_mean(c);
  uint8_t table[256];
  for (int i = 0; i < 256; i += FLOATS) {
    vf levels = to_floats(lanes_from(i));
    put_levels(table + i, truncated(fused(SPLAT(vf, mean), SPLAT(vf, rest), levels * ratio)));
  }
  look_up_all(c, table);
}

static void saturation(canvas *c, float ratio, float rest) {
  uint8_t *p[3] = {c->pixels, c->pixels + c->plane, c->pixels + 2 * c->plane};
  for (int64_t i = 0; i < c->count; i += FLOATS) {
    vf rgb[3] = {pixels(p[0] + i), pixels(p[1] + i), pixels(p[2] + i)};
    vf grey = to_floats(truncated(grey_of(rgb[0], rgb[1], rgb[2])));
    for (int k = 0; k < 3; k++) put_levels(p[k] + i, truncated(fused(grey, SPLAT(vf, rest), rgb[k] * ratio)));
  }
}

static void grey(canvas *c) {
  uint8_t *r = c->pixels, *g = r + c->plane, *b = g + c->plane;
  for (int64_t i = 0; i < c->count; i += FLOATS) {
    v32 made = truncated(grey_of(pixels(r + i), pixels(g + i), pixels(b + i)));
    put_levels(r + i, made);
    put_levels(g + i, made);
    put_levels(b + i, made);
  }
}

INLINE vf within_1(vf a) {
  vf zero = {0}, one = SPLAT(vf, 1);
  a = pick_floats((v32)(a > zero), a, zero);
  return pick_floats((v32)(a < one), a, one);
}

/* From 0 to 1 each, to hue in [0, 1], turned by `turn`, and back. */
INLINE void turn_hue(vf rgb[3], float turn) {
  vf r = rgb[0], g = rgb[1], b = rgb[2], one = SPLAT(vf, 1), zero = {0};
  vf most = pick_floats((v32)(r > g), r, g), least = pick_floats((v32)(r < g), r, g);
  most = pick_floats((v32)(most > b), most, b), least = pick_floats((v32)(least < b), least, b);
  v32 same = (v32)(most == least), is_r = (v32)(most == r), is_g = (v32)(most == g);
  vf range = most - least, s = range / pick_floats(same, one, most), by = pick_floats(same, one, range);
  vf rc = (most - r) / by, gc = (most - g) / by, bc = (most - b) / by;
  vf h = pick_floats(is_r, bc - gc, pick_floats(is_g, (rc + 2.0f) - bc, (gc + 4.0f) - rc));
  h = h * (float)(1.0 / 6) + 1.0f;
  h = h - to_floats(truncated(h)) + turn;
  h = h - to_floats(truncated(h));
  h = pick_floats((v32)(h < zero), h + 1.0f, h) * 6.0f;
  v32 sixth = truncated(h);
  vf part = s * (h - to_floats(sixth)), rest = one - s;
  vf q = within_1((one - part) * most), t = within_1((part + rest) * most), p = within_1(rest * most);
  v32 is[6];
  for (int i = 0; i < 6; i++) is[i] = (v32)(sixth == i);
  is[0] |= (v32)(sixth == 6);
  rgb[0] = pick_floats(is[0] | is[5], most, pick_floats(is[1], q, pick_floats(is[4], t, p)));
  rgb[1] = pick_floats(is[1] | is[2], most, pick_floats(is[0], t, pick_floats(is[3], q, p)));
  rgb[2] = pick_floats(is[3] | is[4], most, pick_floats(is[2], t, pick_floats(is[5], q, p)));
}

static void hue(canvas *c, float turn) {
  uint8_t *p[3] = {c->pixels, c->pixels + c->plane, c->pixels + 2 * c->plane};
  for (int64_t i = 0; i < c->count; i += FLOATS) {
    vf rgb[3];
    for (int k = 0; k < 3; k++) rgb[k] = pixels(p[k] + i) * (float)(1.0 / 255);
    turn_hue(rgb, turn);
    for (int k = 0; k < 3; k++) put_levels(p[k] + i, truncated(rgb[k] * 255.999f));
  }
}

/* ---- neighbours ---- */

static void swap(canvas *c) {
  uint8_t *made = c->other;
  c->other = c->pixels;
  c->pixels = made;
}

/* The inner pixels of a row, blurred: of nine a thirteenth each, of the middle one five. sums: scratch, [width]. */
static void blur_9(const uint8_t *restrict above, const uint8_t *restrict row, const uint8_t *restrict below, int width,
                   uint16_t *restrict sums, uint8_t *restrict out) {
  for (int x = 0; x < width; x++) sums[x] = (uint16_t)(above[x] + row[x] + below[x]);
  for (int x = 1; x < width - 1; x++) { /* 5042 / 65536 is a thirteenth, for sums of 13 bytes */
    uint16_t sum = (uint16_t)(sums[x - 1] + sums[x] + sums[x + 1] + 4 * row[x] + 6);
    out[x] = (uint8_t)((uint32_t)sum * 5042u >> 16);
  }
}

static void sharpness(canvas *c, float rest) {
  int width = c->width;
  if (c->height <= 2 || width <= 2) return;
  uint16_t *sums = (uint16_t *)c->rows;
  uint8_t *blurred = c->rows + 2 * (width + MARGIN);
  for (int k = 0; k < 3; k++) {
    const uint8_t *in = c->pixels + k * c->plane;
    uint8_t *out = c->other + k * c->plane;
    memcpy(out, in, (size_t)width);
    for (int y = 1; y < c->height - 1; y++) {
      const uint8_t *row = in + (int64_t)y * width;
      uint8_t *to = out + (int64_t)y * width;
      blur_9(row - width, row, row + width, width, sums, blurred);
      for (int x = 0; x < width; x += FLOATS) {
        vf old = pixels(row + x);
        put_levels(to + x, truncated(fused(pixels(blurred + x) - old, SPLAT(vf, rest), old)));
      }
      to[0] = row[0], to[width - 1] = row[width - 1];
    }
    int64_t last = (int64_t)(c->height - 1) * width;
    memcpy(out + last, in + last, (size_t)width);
  }
  swap(c);
}

/* e to the power of x, which is not above 0; the C library's is of glibc 2.29, too new for a wheel, and its bits are not
 * those of others. */
static double exponential(double x) {
  if (!(x > -700)) return 0;
  int halvings = (int)(0.5 - x * 1.4426950408889634);
  double rest = x + halvings * 6.93147180369123816490e-01 + halvings * 1.90821492927058770002e-10, sum = 1;
  for (int i = 14; i > 0; i--) sum = 1 + rest * sum / i; /* |rest| <= ln 2 / 2 */
  return ldexp(sum, -halvings);
}

/* Weights of a Gaussian of `size` taps, which sum to 1, in the middle of to[size]; how many there are at each side of the
 * middle one that change anything. */
static int gaussian(int size, float sigma, float *to) {
  int radius = size / 2;
  double sum = 0;
  for (int i = -radius; i <= radius; i++) sum += exponential(-0.5 * i * i / ((double)sigma * sigma));
  for (int i = -radius; i <= radius; i++) to[i + radius] = (float)(exponential(-0.5 * i * i / ((double)sigma * sigma)) / sum);
  int used = radius;
  while (used > 0 && to[radius - used] < 1e-8f) used--;
  return used;
}

static int reflected(int i, int n) {
  i = i < 0 ? -i : i;
  return i < n ? i : 2 * (n - 1) - i;
}

/* Down from bytes to floats, which stay in the first-level cache, then across. */
static void blur(canvas *c, float sigma_x, float sigma_y, int size_x, int size_y) {
  float wide[GRATIS_MOST_TAPS], high[GRATIS_MOST_TAPS], *sums = (float *)c->rows + MARGIN / 4 + GRATIS_MOST_TAPS;
  int across = gaussian(size_x, sigma_x, wide), down = gaussian(size_y, sigma_y, high), width = c->width;
  const float *right = wide + size_x / 2, *below = high + size_y / 2;
  for (int k = 0; k < 3; k++)
    for (int y = 0; y < c->height; y++) {
      const uint8_t *in = c->pixels + k * c->plane, *rows[GRATIS_MOST_TAPS];
      uint8_t *out = c->other + k * c->plane + (int64_t)y * width;
      for (int t = -down; t <= down; t++) rows[t + down] = in + (int64_t)reflected(y + t, c->height) * width;
      for (int x = 0; x < width; x += FLOATS) {
        vf sum = pixels(rows[down] + x) * below[0];
        for (int t = 1; t <= down; t++)
          sum = fused(pixels(rows[down - t] + x) + pixels(rows[down + t] + x), SPLAT(vf, below[t]), sum);
        memcpy(sums + x, &sum, BYTES);
      }
      for (int t = 1; t <= across; t++) {
        sums[-t] = sums[reflected(-t, width)];
        sums[width - 1 + t] = sums[reflected(width - 1 + t, width)];
      }
      for (int x = 0; x < width; x += FLOATS) {
        vf sum = floats(sums + x) * right[0];
        for (int t = 1; t <= across; t++) sum += (floats(sums + x - t) + floats(sums + x + t)) * right[t];
        put_levels(out + x, nearest(sum));
      }
    }
  swap(c);
}

/* ---- geometry ---- */

/* Where output pixels of a row come from, in pixels, rounded as torch's grid_sample rounds: theta[0..2] across, theta[3..5]
 * down, in halves of the image. */
INLINE void source_of(const canvas *c, const float *theta, float x, float y, vf *across, vf *down) {
  vf xs = to_floats(lanes_from(0)) + x, ys = SPLAT(vf, y);
  vf gx = xs * theta[0] + ys * theta[1] + theta[2], gy = xs * theta[3] + ys * theta[4] + theta[5];
  *across = fused(gx + 1.0f, SPLAT(vf, (float)c->width / 2), SPLAT(vf, -0.5f));
  *down = fused(gy + 1.0f, SPLAT(vf, (float)c->height / 2), SPLAT(vf, -0.5f));
}

INLINE v32 widened(const uint8_t *p) {
#if BYTES == 64
  return (v32)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p));
#elif BYTES == 32
  return (v32)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p));
#else
  return (v32){p[0], p[1], p[2], p[3]};
#endif
}

/* The image as pixels of 32 bits, red lowest, the highest byte 1, within two pixels of `border` on each side. */
static void spread(canvas *c, uint32_t border) {
  int stride = c->width + 4, rows = c->height + 4;
  for (int x = 0; x < 2 * stride; x++) c->spread[x] = border;
  for (int y = 0; y < c->height; y++) {
    uint32_t *out = c->spread + (int64_t)(y + 2) * stride;
    const uint8_t *r = c->pixels + (int64_t)y * c->width, *g = r + c->plane, *b = g + c->plane;
    for (int x = 0; x < c->width; x += FLOATS) {
      v32 made = widened(r + x) | widened(g + x) << 8 | widened(b + x) << 16 | 1 << 24;
      memcpy(out + 2 + x, &made, BYTES);
    }
    out[0] = out[1] = out[stride - 2] = out[stride - 1] = border;
  }
  for (int x = 0; x < 2 * stride; x++) c->spread[(int64_t)(rows - 2) * stride + x] = border;
}

/* Whether pixels lie side by side, as those of shears along rows do. */
INLINE int adjacent(v32 index) {
  v32 differ = index - index[0] - lanes_from(0);
#if BYTES == 64
  return !_mm512_test_epi32_mask((raw)differ, (raw)differ);
#elif BYTES == 32
  return _mm256_testz_si256((raw)differ, (raw)differ);
#else
  return !(differ[0] | differ[1] | differ[2] | differ[3]);
#endif
}

INLINE v32 loaded(const uint32_t *p) {
  v32 a;
  memcpy(&a, p, BYTES);
  return a;
}

INLINE v32 gathered(const uint32_t *from, v32 index) {
  if (adjacent(index)) return loaded(from + index[0]);
#if BYTES == 64
  return (v32)_mm512_i32gather_epi32((raw)index, from, 4);
#elif BYTES == 32
  return (v32)_mm256_i32gather_epi32((const int *)from, (raw)index, 4);
#else
  v32 a;
  for (int i = 0; i < FLOATS; i++) a[i] = (int)from[index[i]];
  return a;
#endif
}

/* Pixels, and those to the right of them. */
INLINE void gather_pairs(const uint32_t *from, v32 index, v32 *left, v32 *right) {
  if (adjacent(index)) {
    *left = loaded(from + index[0]);
    *right = loaded(from + index[0] + 1);
    return;
  }
#if BYTES == 64
  raw low = _mm512_i32gather_epi64(_mm512_castsi512_si256((raw)index), from, 4);
  raw high = _mm512_i32gather_epi64(_mm512_extracti64x4_epi64((raw)index, 1), from, 4);
  raw even = (raw)(lanes_from(0) * 2);
  *left = (v32)_mm512_permutex2var_epi32(low, even, high);
  *right = (v32)_mm512_permutex2var_epi32(low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high);
#elif BYTES == 32
  __m256 low = (__m256)_mm256_i32gather_epi64((const void *)from, _mm256_castsi256_si128((raw)index), 4);
  __m256 high = (__m256)_mm256_i32gather_epi64((const void *)from, _mm256_extracti128_si256((raw)index, 1), 4);
  *left = (v32)_mm256_permute4x64_epi64((raw)_mm256_shuffle_ps(low, high, 0x88), 0xD8);
  *right = (v32)_mm256_permute4x64_epi64((raw)_mm256_shuffle_ps(low, high, 0xDD), 0xD8);
#else
  *left = gathered(from, index);
  *right = gathered(from, index + 1);
#endif
}

INLINE v32 bounded(v32 a, int low, int high) {
  a = pick((v32)(a < low), SPLAT(v32, low), a);
  return pick((v32)(a > high), SPLAT(v32, high), a);
}

INLINE void put_colours(uint8_t *const out[3], int x, v32 colours) {
  for (int k = 0; k < 3; k++) put_levels(out[k] + x, colours >> (8 * k) & 255);
}

static void row_nearest(canvas *c, const float *theta, float y, uint8_t *const out[3]) {
  int stride = c->width + 4;
  for (int x = 0; x < c->width; x += FLOATS) {
    vf across, down;
    source_of(c, theta, (float)x + (1.0f - (float)c->width) * 0.5f, y, &across, &down);
    v32 left = bounded(nearest(across), -2, c->width + 1), top = bounded(nearest(down), -2, c->height + 1);
    put_colours(out, x, gathered(c->spread, (top + 2) * stride + left + 2));
  }
}

INLINE v32 floored(vf a) {
  v32 near = truncated(a);
  return near + (v32)(to_floats(near) > a); /* true is -1 */
}

static void row_bilinear(canvas *c, const float *theta, const float *fill, float y, uint8_t *const out[3]) {
  int stride = c->width + 4;
  for (int x = 0; x < c->width; x += FLOATS) {
    vf across, down;
    source_of(c, theta, (float)x + (1.0f - (float)c->width) * 0.5f, y, &across, &down);
    v32 left = floored(across), top = floored(down);
    vf w = across - to_floats(left), e = 1.0f - w, n = down - to_floats(top), s = 1.0f - n;
    vf factor[4] = {s * e, s * w, n * e, n * w};
    v32 at = (bounded(top, -2, c->height) + 2) * stride + bounded(left, -2, c->width) + 2;
    v32 taps[4];
    gather_pairs(c->spread, at, &taps[0], &taps[1]);
    gather_pairs(c->spread, at + stride, &taps[2], &taps[3]);
    vf made[4];
    for (int k = 0; k < (fill ? 4 : 3); k++) {
      made[k] = to_floats(taps[0] >> (8 * k) & 255) * factor[0];
      for (int t = 1; t < 4; t++) made[k] = fused(to_floats(taps[t] >> (8 * k) & 255), factor[t], made[k]);
    }
    for (int k = 0; k < 3; k++) {
      if (fill) made[k] = (made[k] - fill[k]) * made[3] + fill[k];
      put_levels(out[k] + x, nearest(made[k]));
    }
  }
}

/* Whether rows of the output are rows of the image, moved; then by how much, and which. Where a shift is that near to half
 * a pixel, each pixel is rounded for itself. */
static int moved_row(const canvas *c, const float *theta, float y, int *shift, int *row) {
  vf across, down;
  if (theta[3] != 0 || fabsf(theta[0] * (float)c->width / 2 - 1) > 1e-6f) return 0;
  source_of(c, theta, (1.0f - (float)c->width) * 0.5f, y, &across, &down);
  *shift = nearest(across)[0];
  *row = nearest(down)[0];
  return fabsf(fabsf(across[0] - (float)*shift) - 0.5f) > 1e-3f;
}

static void move_row(const canvas *c, int shift, int row, const uint8_t fill[3], uint8_t *const out[3]) {
  int width = c->width, first = shift < 0 ? -shift : 0, last = shift > 0 ? width - shift : width;
  if (row < 0 || row >= c->height || first >= last) first = last = 0;
  for (int k = 0; k < 3; k++) {
    memset(out[k], fill[k], (size_t)first);
    memcpy(out[k] + first, c->pixels + k * c->plane + (int64_t)row * width + first + shift, (size_t)(last - first));
    memset(out[k] + last, fill[k], (size_t)(width - last));
  }
}

/* values: theta [6], whether bilinear, whether there is a fill, and the fill [3]. */
static void affine_pixels(canvas *c, const float *theta) {
  int bilinear = theta[6] != 0, filled = theta[7] != 0, is_spread = 0, shift = 0, row = 0;
  const float *fill = theta + 8;
  uint8_t colour[3];
  for (int k = 0; k < 3; k++) colour[k] = filled ? level(rintf(fill[k])) : 0;
  uint32_t border = bilinear ? 0 : (uint32_t)colour[0] | (uint32_t)colour[1] << 8 | (uint32_t)colour[2] << 16;
  for (int y = 0; y < c->height; y++) {
    uint8_t *out[3];
    float centred = (float)y + (1.0f - (float)c->height) * 0.5f;
    for (int k = 0; k < 3; k++) out[k] = c->other + k * c->plane + (int64_t)y * c->width;
    if (!bilinear && moved_row(c, theta, centred, &shift, &row)) {
      move_row(c, shift, row, colour, out);
      continue;
    }
    if (!is_spread) spread(c, border);
    is_spread = 1;
    if (bilinear) row_bilinear(c, theta, filled ? fill : NULL, centred, out);
    else row_nearest(c, theta, centred, out);
  }
  swap(c);
}

/* ---- AugMix: a weighted sum of the image and its variants, which are kept one behind the other ---- */

static void mix_kept(canvas *c, const float *of, int variants) {
  for (int k = 0; k < 3; k++)
    for (int64_t i = 0; i < c->count; i += FLOATS) {
      const uint8_t *p = c->kept + k * c->plane + i;
      vf sum = pixels(p) * of[0];
      for (int v = 1; v <= variants; v++) sum += pixels(p + v * 3 * c->plane) * of[v];
      put_levels(c->pixels + k * c->plane + i, truncated(sum));
    }
}

static void operate(canvas *c, int op, const float *v) {
  switch (op) {
    case GRATIS_BRIGHTNESS: brightness(c, v[0]); break;
    case GRATIS_CONTRAST: contrast(c, v[0], v[1]); break;
    case GRATIS_SATURATION: saturation(c, v[0], v[1]); break;
    case GRATIS_HUE: hue(c, v[0]); break;
    case GRATIS_GREY: grey(c); break;
    case GRATIS_POSTERIZE: posterize(c, (int)v[0]); break;
    case GRATIS_SOLARIZE: solarize(c, v[0]); break;
    case GRATIS_SOLARIZE_ADD: solarize_add(c, (int)v[0]); break;
    case GRATIS_AUTOCONTRAST: autocontrast(c); break;
    case GRATIS_EQUALIZE: equalize(c); break;
    case GRATIS_SHARPNESS: sharpness(c, v[0]); break;
    case GRATIS_BLUR: blur(c, v[0], v[1], (int)v[2], (int)v[3]); break;
    case GRATIS_AFFINE: affine_pixels(c, v); break;
    case GRATIS_MIX: mix_kept(c, v, c->variants); break;
    default: break;
  }
}
