/* JPEGs to be: pixels to quantised coefficients to symbols, and symbols to bits. Included by kernels.h, for each instruction
 * set. All of it is what libjpeg-turbo computes for 4:2:0 by its "islow" transform, in whole numbers, so that the bytes are
 * the same; encode.c has the rest. */

/* ---- pixels to planes of bytes ---- */

/* red * R + blue * B + 2 * half_of_green * G + plus; R and B, and G, are where 16 bits of each word are. */
INLINE v32 weighted(v32 red_blue, v32 green, short red, short blue, int half_of_green, int plus) {
  return madd((v16)red_blue, PAIR(red, blue)) + ((madd((v16)green, PAIR(half_of_green, 0)) << 1) + plus);
}

/* Four vectors of values from -128 to 127, as bytes from 0 to 255 in the pixels' order. */
INLINE void put_pixels(uint8_t *out, const v32 a[4]) {
  v32 mixed = (v32)(pack16(pack32(a[0], a[1]), pack32(a[2], a[3])) ^ (int8_t)-128);
#if BYTES == 64
  mixed = SHUFFLE(v32, mixed, mixed, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#elif BYTES == 32
  mixed = SHUFFLE(v32, mixed, mixed, 0, 4, 1, 5, 2, 6, 3, 7);
#endif
  memcpy(out, &mixed, BYTES);
}

/* A row of `count` pixels, a multiple of BYTES, to its luma and both of its chromas. */
static void from_rgb(const uint32_t *pixels, uint8_t *luma, uint8_t *blue, uint8_t *red, int count) {
  for (int x = 0; x < count; x += BYTES) {
    v32 y[4], cb[4], cr[4];
    for (int i = 0; i < 4; i++) {
      u32 p;
      memcpy(&p, pixels + x + i * FLOATS, BYTES);
      v32 rb = (v32)(p & 0x00FF00FFu), g = (v32)(p >> 8 & 0xFFu), r = (v32)(p & 0xFFu), b = (v32)(p >> 16 & 0xFFu);
      y[i] = (weighted(rb, g, 19595, 7471, 19235, 32768) >> 16) - 128;
      cb[i] = (weighted(rb, g, -11059, 0, 0, 32767) + (b << 15) - madd((v16)g, PAIR(21709, 0))) >> 16;
      cr[i] = (weighted(rb, g, 0, -5329, 0, 32767) + (r << 15) - madd((v16)g, PAIR(27439, 0))) >> 16;
    }
    put_pixels(luma + x, y);
    put_pixels(blue + x, cb);
    put_pixels(red + x, cr);
  }
}

/* The means of 2 x 2 samples each, rounded down and up in turns as libjpeg does it; count: of means. */
static void halve(const uint8_t *above, const uint8_t *below, uint8_t *out, int count) {
  for (int x = 0; x < count; x += WORDS) {
    v16 a, b, c, d;
    split(above + 2 * x, &a, &b);
    split(below + 2 * x, &c, &d);
    put_bytes(out + x, (a + b + c + d + (v16)SPLAT(v32, 0x00020001)) >> 2);
  }
}

/* ---- forward transform: libjpeg's jfdctint ---- */

/* Half of the elements of one pass, from interleaved sums and differences of its inputs: the ends' and the middle's sums
 * (t10, t11), their differences (t13, t12), the differences (t4, t7) and (t5, t6), and sums of those (z3, z4). */
INLINE void forward_half(v16 t01, v16 t32, v16 t47, v16 t56, v16 z34, v32 out[8]) {
  out[0] = madd(t01, PAIR(1, 1));
  out[4] = madd(t01, PAIR(1, -1));
  out[2] = madd(t32, PAIR(FIX(0.541196100) + FIX(0.765366865), FIX(0.541196100)));
  out[6] = madd(t32, PAIR(FIX(0.541196100), FIX(0.541196100) - FIX(1.847759065)));
  v32 z3 = madd(z34, PAIR(FIX(1.175875602) - FIX(1.961570560), FIX(1.175875602)));
  v32 z4 = madd(z34, PAIR(FIX(1.175875602), FIX(1.175875602) - FIX(0.390180644)));
  out[7] = madd(t47, PAIR(FIX(0.298631336) - FIX(0.899976223), -FIX(0.899976223))) + z3;
  out[1] = madd(t47, PAIR(-FIX(0.899976223), FIX(1.501321110) - FIX(0.899976223))) + z4;
  out[5] = madd(t56, PAIR(FIX(2.053119869) - FIX(2.562915447), -FIX(2.562915447))) + z4;
  out[3] = madd(t56, PAIR(-FIX(2.562915447), FIX(3.072711026) - FIX(2.562915447))) + z3;
}

INLINE void forward_pass(const v16 r[8], v32 low[8], v32 high[8]) {
  v16 t0 = r[0] + r[7], t7 = r[0] - r[7], t1 = r[1] + r[6], t6 = r[1] - r[6];
  v16 t2 = r[2] + r[5], t5 = r[2] - r[5], t3 = r[3] + r[4], t4 = r[3] - r[4];
  v16 t10 = t0 + t3, t13 = t0 - t3, t11 = t1 + t2, t12 = t1 - t2, z3 = t4 + t6, z4 = t5 + t7;
  forward_half(lo16(t10, t11), lo16(t13, t12), lo16(t4, t7), lo16(t5, t6), lo16(z3, z4), low);
  forward_half(hi16(t10, t11), hi16(t13, t12), hi16(t4, t7), hi16(t5, t6), hi16(z3, z4), high);
}

/* To the nearest multiple of a divisor, halves away from zero. inverse: 1 / divisor; half: (divisor / 2 + 0.5) / divisor.
 * Exact: quotients of a sum below 2**15 are at least half an inverse from where they would be rounded otherwise. */
INLINE v32 quantised(v32 a, const float *inverse, const float *half) {
  vf value = __builtin_convertvector(a, vf);
  u32 sign = (u32)value & 0x80000000u;
  return __builtin_convertvector(value * floats(inverse) + (vf)((u32)floats(half) | sign), v32);
}

/* As many blocks as a vector holds, from rows of bytes beside each other, to coefficients in the order of rows, block after
 * block. */
INLINE void forward(const uint8_t *in, int64_t stride, const quantiser *q, int16_t *out) {
  v16 r[8];
  v32 low[8], high[8];
  for (int i = 0; i < 8; i++) r[i] = bytes(in + i * stride) - 128;
  transpose(r);
  forward_pass(r, low, high);
  for (int i = 0; i < 8; i++)
    r[i] = i & 3 ? pack32(descale(low[i], 11), descale(high[i], 11)) : pack32(low[i] << 2, high[i] << 2);
  transpose(r);
  forward_pass(r, low, high);
  for (int i = 0; i < 8; i++) {
    int bits = i & 3 ? 15 : 2;
    v16 row = pack32(quantised(descale(low[i], bits), q->inverse[i][0], q->half[i][0]),
                     quantised(descale(high[i], bits), q->inverse[i][1], q->half[i][1]));
    for (int b = 0; b < QUADS; b++) memcpy(out + 64 * b + 8 * i, (const char *)&row + 16 * b, 16);
  }
}

/* ---- coefficients to symbols: see `encoding` in engine.h ---- */

/* Of each coefficient of a block, in zigzag order, what a symbol says of it but for the zeros before it; and which are not
 * 0, a bit each. */
INLINE uint64_t describe(const int16_t *block, uint32_t table, uint32_t described[64]) {
  typedef int16_t halves __attribute__((vector_size(BYTES / 2)));
  int16_t ordered[64] __attribute__((aligned(64)));
  uint64_t there = 0;
#if BYTES == 64
  raw one = _mm512_loadu_si512(block), two = _mm512_loadu_si512(block + 32);
  raw low = _mm512_permutex2var_epi16(one, _mm512_loadu_si512(gratis_natural), two);
  raw high = _mm512_permutex2var_epi16(one, _mm512_loadu_si512(gratis_natural + 32), two);
  _mm512_store_si512(ordered, low);
  _mm512_store_si512(ordered + 32, high);
  there = _mm512_test_epi16_mask(low, low) | (uint64_t)_mm512_test_epi16_mask(high, high) << 32;
#else
  for (int k = 0; k < 64; k++) {
    ordered[k] = block[gratis_natural[k]];
    there |= (uint64_t)(ordered[k] != 0) << k;
  }
#endif
  for (int k = 0; k < 64; k += FLOATS) {
    halves a;
    memcpy(&a, ordered + k, sizeof a);
    v32 value = __builtin_convertvector(a, v32), sign = value >> 31;
    v32 size = ((v32)__builtin_convertvector((value ^ sign) - sign, vf) >> 23) - 126; /* the exponent of its magnitude */
    size &= ~(size >> 31);
    v32 entry = size | ((value + sign) & ((SPLAT(v32, 1) << size) - 1)) << 16 | (int32_t)table;
    memcpy(described + k, &entry, BYTES);
  }
  return there;
}

/* Appends a block's symbols, and counts them. */
INLINE uint32_t *symbols_of(const int16_t *block, uint32_t table, int *last, uint32_t *out, uint32_t *counts) {
  uint32_t described[64] __attribute__((aligned(64)));
  uint64_t there = describe(block, (table + 1) << 8, described) & ~1ull;
  int difference = block[0] - *last, magnitude = difference < 0 ? -difference : difference;
  uint32_t size = magnitude ? 32 - (uint32_t)__builtin_clz((unsigned)magnitude) : 0, at = 0;
  *last = block[0];
  *out = size | table << 8 | ((uint32_t)(difference - (difference < 0)) & ((1u << size) - 1)) << 16;
  counts[*out++ & 1023]++;
  while (there) {
    uint32_t k = (uint32_t)__builtin_ctzll(there), zeros = k - at - 1;
    there &= there - 1;
    for (; zeros > 15; zeros -= 16) counts[*out++ = 0xF0 | (table + 1) << 8]++;
    *out = described[k] | zeros << 4;
    counts[*out++ & 1023]++;
    at = k;
  }
  if (at < 63) counts[*out++ = (table + 1) << 8]++;
  return out;
}

/* Row y of the image as words, with its last pixel again up to the width of whole vectors. */
static void load_row(const encoding *e, int y) {
  const uint8_t *in = e->pixels + (int64_t)y * e->width * e->channels;
  if (e->channels == 4) memcpy(e->row, in, 4 * (size_t)e->width);
  else
    for (int x = 0; x < e->width; x++) e->row[x] = in[3 * x] | (uint32_t)in[3 * x + 1] << 8 | (uint32_t)in[3 * x + 2] << 16;
  for (int x = e->width; x < e->stride; x++) e->row[x] = e->row[e->width - 1];
}

/* A row of MCUs to planes. Below the image libjpeg repeats the last row of each plane as it is stored. */
static void load_rows(const encoding *e, int first) {
  int64_t stride = e->stride;
  for (int i = 0; i < 8; i++) {
    uint8_t *luma = e->luma + 2 * i * stride, *chroma[2] = {e->chroma[0] + i * stride / 2, e->chroma[1] + i * stride / 2};
    int y = first + 2 * i;
    if (y >= e->height) {
      memcpy(luma, luma - stride, (size_t)stride);
      memcpy(luma + stride, luma - stride, (size_t)stride);
      for (int c = 0; c < 2; c++) memcpy(chroma[c], chroma[c] - stride / 2, (size_t)stride / 2);
      continue;
    }
    load_row(e, y);
    from_rgb(e->row, luma, e->whole[0], e->whole[1], e->stride);
    if (y + 1 < e->height) load_row(e, y + 1);
    from_rgb(e->row, luma + stride, e->whole[0] + stride, e->whole[1] + stride, e->stride);
    for (int c = 0; c < 2; c++) halve(e->whole[c], e->whole[c] + stride, chroma[c], e->stride / 2);
  }
}

/* Blocks of an MCU that lie outside the image have the mean of the one before, or above, and nothing else. */
static void fill_outside(const encoding *e, int first) {
  int across = (e->width + 7) / 8;
  for (int i = 0; i < 2; i++) {
    int16_t *blocks = e->coefficients[0] + i * e->stride * 8;
    if (across & 1) {
      memset(blocks + 64 * across, 0, 128);
      blocks[64 * across] = blocks[64 * (across - 1)];
    }
    if (i && first + 8 >= e->height)
      for (int b = 0; b < 2 * e->columns; b++) {
        memset(blocks + 64 * b, 0, 128);
        blocks[64 * b] = blocks[64 * (b | 1) - e->stride * 8];
      }
  }
}

static uint32_t *encode_row(encoding *e, int number, uint32_t *out) {
  load_rows(e, 16 * number);
  for (int x = 0; x < e->stride; x += WORDS)
    for (int i = 0; i < 2; i++)
      forward(e->luma + 8 * i * e->stride + x, e->stride, &e->quant[0], e->coefficients[0] + (i * e->stride + x) * 8);
  for (int x = 0; x < e->stride / 2; x += WORDS)
    for (int c = 0; c < 2; c++) forward(e->chroma[c] + x, e->stride / 2, &e->quant[1], e->coefficients[1 + c] + x * 8);
  fill_outside(e, 16 * number);
  int last[3] = {0};
  for (int m = 0; m < e->columns; m++) {
    for (int i = 0; i < 4; i++)
      out = symbols_of(e->coefficients[0] + (i / 2 * e->stride / 8 + 2 * m + i % 2) * 64, 0, &last[0], out, e->counts);
    for (int c = 1; c < 3; c++) out = symbols_of(e->coefficients[c] + 64 * m, 2, &last[c], out, e->counts);
  }
  return out;
}

/* ---- symbols to bits ---- */

INLINE uint8_t *put_stuffed(uint8_t *out, uint32_t bits, int bytes) {
  for (int i = bytes - 1; i >= 0; i--)
    if ((*out++ = (uint8_t)(bits >> 8 * i)) == 0xFF) *out++ = 0;
  return out;
}

/* codes, by table and symbol: the code with room for the value behind it, and from bit 32 on how many bits that is. */
static uint8_t *put_symbols(const uint32_t *symbols, const uint32_t *end, const uint64_t *codes, uint8_t *out) {
  uint64_t bits = 0;
  uint32_t count = 0;
  for (; symbols < end; symbols++) {
    uint64_t code = codes[*symbols & 1023];
    uint32_t length = (uint32_t)(code >> 32);
    bits = bits << length | (uint32_t)code | *symbols >> 16;
    count += length;
    if (count < 32) continue;
    count -= 32;
    uint32_t four = (uint32_t)(bits >> count), swapped = __builtin_bswap32(four);
    if (RARE(four & (~four - 0x01010101u) & 0x80808080u)) { /* a byte of ones */
      out = put_stuffed(out, four, 4);
      continue;
    }
    memcpy(out, &swapped, 4);
    out += 4;
  }
  uint32_t left = -count & 7; /* ones up to a whole byte */
  return put_stuffed(out, (uint32_t)(bits << left | ((1u << left) - 1)), (int)(count + left) / 8);
}
