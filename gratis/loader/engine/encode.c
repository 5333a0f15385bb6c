/* An image as a JPEG, to the byte what libjpeg-turbo makes of it: its tables and segments. encoding.h has the rest. */
#include <stdlib.h>
#include <string.h>
#include "engine.h"

#define MOST_SIDE 65500
#define LONGEST_CODE 32 /* of a tree, before its codes are cut to 16 bits */

#define NATURAL(row, column) row * 8 + column
const uint16_t gratis_natural[64] __attribute__((aligned(64))) = {
  NATURAL(0,0), NATURAL(0,1), NATURAL(1,0), NATURAL(2,0), NATURAL(1,1), NATURAL(0,2), NATURAL(0,3), NATURAL(1,2),
  NATURAL(2,1), NATURAL(3,0), NATURAL(4,0), NATURAL(3,1), NATURAL(2,2), NATURAL(1,3), NATURAL(0,4), NATURAL(0,5),
  NATURAL(1,4), NATURAL(2,3), NATURAL(3,2), NATURAL(4,1), NATURAL(5,0), NATURAL(6,0), NATURAL(5,1), NATURAL(4,2),
  NATURAL(3,3), NATURAL(2,4), NATURAL(1,5), NATURAL(0,6), NATURAL(0,7), NATURAL(1,6), NATURAL(2,5), NATURAL(3,4),
  NATURAL(4,3), NATURAL(5,2), NATURAL(6,1), NATURAL(7,0), NATURAL(7,1), NATURAL(6,2), NATURAL(5,3), NATURAL(4,4),
  NATURAL(3,5), NATURAL(2,6), NATURAL(1,7), NATURAL(2,7), NATURAL(3,6), NATURAL(4,5), NATURAL(5,4), NATURAL(6,3),
  NATURAL(7,2), NATURAL(7,3), NATURAL(6,4), NATURAL(5,5), NATURAL(4,6), NATURAL(3,7), NATURAL(4,7), NATURAL(5,6),
  NATURAL(6,5), NATURAL(7,4), NATURAL(7,5), NATURAL(6,6), NATURAL(5,7), NATURAL(6,7), NATURAL(7,6), NATURAL(7,7),
};

/* T.81, tables K.1 and K.2. */
static const uint8_t STANDARD[2][64] = {
  {
    16, 11, 10, 16, 24, 40, 51, 61,     12, 12, 14, 19, 26, 58, 60, 55,     14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,     18, 22, 37, 56, 68, 109, 103, 77,   24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
  },
  {
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
  },
};

/* The element of a standard table at that quality, as libjpeg scales it. */
static int scaled(int standard, int quality) {
  int percent = quality < 50 ? 5000 / quality : 200 - 2 * quality, value = (standard * percent + 50) / 100;
  return value < 1 ? 1 : value > 255 ? 255 : value;
}

static void make_quantiser(quantiser *q, const uint8_t table[64]) {
  for (int place = 0; place < 64; place++)
    for (int b = 0; b < 4; b++) {
      int row = place / 8, half = place / 4 % 2, column = 4 * b + place % 4;
      float divisor = 8.0f * table[place]; /* coefficients come from the transform 8 times too large */
      q->inverse[row][half][column] = 1 / divisor;
      q->half[row][half][column] = (divisor / 2 + 0.5f) / divisor;
    }
}

/* ---- Huffman tables (T.81, K.2), with equal counts in libjpeg's order ---- */

typedef struct { uint8_t bits[17], symbols[256]; int count; } fitted; /* bits[n]: how many codes have n bits */

/* Lengths of codes for symbols that occur, and for one more that takes the code of ones: how many have each length. 0 if
 * one is too long. counts: of them; length [257]. */
static int measure_codes(const uint32_t *counts, int length[257], int bits[LONGEST_CODE + 1]) {
  uint64_t queue[257], key; /* count << 9 | 256 - symbol, ascending: of equal ones the higher symbol is taken first */
  int next[257], size = 0;
  for (int symbol = 256; symbol >= 0; symbol--) {
    next[symbol] = -1, length[symbol] = 0;
    if (symbol < 256 && !counts[symbol]) continue;
    int at = size++;
    for (key = (symbol < 256 ? (uint64_t)counts[symbol] : 1) << 9 | (unsigned)(256 - symbol); at && queue[at - 1] > key; at--)
      queue[at] = queue[at - 1];
    queue[at] = key;
  }
  for (int first = 0; first + 1 < size; first++) { /* the two rarest become one, under the name of the first */
    int one = 256 - (int)(queue[first] & 511), two = 256 - (int)(queue[first + 1] & 511), end = one, at = first + 1;
    key = ((queue[first] >> 9) + (queue[first + 1] >> 9)) << 9 | (queue[first] & 511);
    for (; at + 1 < size && queue[at + 1] < key; at++) queue[at] = queue[at + 1];
    queue[at] = key;
    for (int symbol = one; symbol >= 0; symbol = next[symbol]) length[symbol]++, end = symbol;
    next[end] = two;
    for (int symbol = two; symbol >= 0; symbol = next[symbol]) length[symbol]++;
  }
  memset(bits, 0, sizeof(int) * (LONGEST_CODE + 1));
  for (int symbol = 0; symbol <= 256; symbol++) {
    if (length[symbol] > LONGEST_CODE) return 0;
    if (length[symbol]) bits[length[symbol]]++;
  }
  return 1;
}

/* At most 16 bits (T.81, figure K.3), and none for the symbol that was added. */
static void cut_codes(int bits[LONGEST_CODE + 1]) {
  int longest = 16;
  for (int i = LONGEST_CODE; i > 16; i--)
    while (bits[i]) {
      int j = i - 2;
      while (!bits[j]) j--;
      bits[i] -= 2, bits[i - 1]++, bits[j + 1] += 2, bits[j]--;
    }
  while (!bits[longest]) longest--;
  bits[longest]--;
}

/* The table that fits the counts, and the codes by symbol as put_symbols takes them; adds up the bits of all symbols. */
static int fit(const uint32_t *counts, fitted *table, uint64_t *codes, int64_t *total) {
  int length[257], bits[LONGEST_CODE + 1];
  if (!measure_codes(counts, length, bits)) return 0;
  cut_codes(bits);
  table->count = 0;
  for (int i = 1; i <= LONGEST_CODE; i++)
    for (int symbol = 0; symbol < 256; symbol++)
      if (length[symbol] == i) table->symbols[table->count++] = (uint8_t)symbol;
  uint32_t code = 0;
  for (int i = 1, k = 0; i <= 16; i++, code <<= 1) {
    table->bits[i] = (uint8_t)bits[i];
    for (int left = bits[i]; left; left--, code++) {
      int symbol = table->symbols[k++], size = symbol & 15;
      codes[symbol] = code << size | (uint64_t)(i + size) << 32;
      *total += (int64_t)counts[symbol] * (i + size);
    }
  }
  return 1;
}

/* ---- segments ---- */

static uint8_t *put(uint8_t *out, const void *bytes, size_t count) { return (uint8_t *)memcpy(out, bytes, count) + count; }

static uint8_t *put_word(uint8_t *out, int value) {
  *out++ = (uint8_t)(value >> 8);
  *out++ = (uint8_t)value;
  return out;
}

static uint8_t *put_quantisation(uint8_t *out, int number, const uint8_t table[64]) {
  out = put_word(put_word(out, 0xFFDB), 67);
  *out++ = (uint8_t)number;
  for (int k = 0; k < 64; k++) *out++ = table[gratis_natural[k]];
  return out;
}

static uint8_t *put_frame(uint8_t *out, int height, int width) {
  static const uint8_t components[] = {3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1};
  out = put_word(put_word(out, 0xFFC0), 17);
  *out++ = 8;
  return put(put_word(put_word(out, height), width), components, sizeof components);
}

static uint8_t *put_huffman(uint8_t *out, int number, const fitted *table) {
  out = put_word(put_word(out, 0xFFC4), 19 + table->count);
  *out++ = (uint8_t)((number & 1) << 4 | number >> 1);
  return put(put(out, table->bits + 1, 16), table->symbols, (size_t)table->count);
}

/* All before the entropy-coded data: about 1,400 bytes at most. */
static uint8_t *put_header(uint8_t *out, const encoding *e, const uint8_t quantisation[2][64], const fitted tables[4]) {
  static const uint8_t start[] = {0xFF, 0xD8, 0xFF, 0xE0, 0, 16, 'J', 'F', 'I', 'F', 0, 1, 1, 0, 0, 1, 0, 1, 0, 0};
  static const uint8_t scan[] = {0xFF, 0xDA, 0, 12, 3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0};
  out = put(out, start, sizeof start);
  for (int i = 0; i < 2; i++) out = put_quantisation(out, i, quantisation[i]);
  out = put_frame(out, e->height, e->width);
  for (int i = 0; i < 4; i++) out = put_huffman(out, i, &tables[i]);
  out = put_word(put_word(put_word(out, 0xFFDD), 4), e->columns);
  return put(out, scan, sizeof scan);
}

/* ---- the whole ---- */

/* Room for a row of MCUs. Whether there was memory. */
static int begin_encoding(gratis_context *context) {
  encoding *e = &context->encoding;
  e->columns = (e->width + 15) / 16;
  e->stride = (e->width + 63) / 64 * 64;
  int64_t stride = e->stride, bytes = 4 * stride + 16 * stride + 8 * stride + 4 * stride + 48 * stride + 4 * MARGIN;
  context->encoding_memory = gratis_grow(context->encoding_memory, &context->encoding_capacity, bytes);
  if (!context->encoding_memory) return 0;
  uint8_t *at = context->encoding_memory;
  e->coefficients[0] = (int16_t *)(void *)at;
  e->coefficients[1] = e->coefficients[0] + 16 * stride;
  e->coefficients[2] = e->coefficients[1] + 4 * stride;
  e->row = (uint32_t *)(void *)(at + 48 * stride);
  e->luma = at + 52 * stride;
  e->chroma[0] = e->luma + 16 * stride;
  e->chroma[1] = e->chroma[0] + 4 * stride;
  e->whole[0] = e->chroma[1] + 4 * stride;
  e->whole[1] = e->whole[0] + 2 * stride;
  memset(e->counts, 0, sizeof e->counts);
  return 1;
}

int64_t gratis_encode(gratis_context *context, const uint8_t *pixels, int32_t channels, int32_t height, int32_t width,
                      int32_t quality, const uint8_t **file) {
  if (height < 1 || width < 1 || height > MOST_SIDE || width > MOST_SIDE || quality < 1 || quality > 100) return 0;
  encoding *e = &context->encoding;
  e->pixels = pixels, e->channels = channels, e->height = height, e->width = width;
  if (!begin_encoding(context)) return 0;
  uint8_t quantisation[2][64];
  for (int i = 0; i < 2; i++) {
    for (int place = 0; place < 64; place++) quantisation[i][place] = (uint8_t)scaled(STANDARD[i][place], quality);
    make_quantiser(&e->quant[i], quantisation[i]);
  }
  int rows = (height + 15) / 16;
  int64_t most = (int64_t)e->columns * 6 * 64; /* symbols of a row */
  int64_t ends = (rows * (int64_t)sizeof(uint32_t *) + 63) / 64 * 64;
  context->symbols = gratis_grow(context->symbols, &context->symbols_capacity, ends + rows * most * 4);
  if (!context->symbols) return 0;
  uint32_t **end = (uint32_t **)(void *)context->symbols, *symbols = (uint32_t *)(void *)(context->symbols + ends);
  uint32_t *at = symbols;
  for (int row = 0; row < rows; row++) end[row] = at = context->kernels->encode_row(e, row, at);
  fitted tables[4];
  uint64_t codes[4 * 256];
  int64_t bits = 0;
  for (int i = 0; i < 4; i++)
    if (!fit(e->counts + 256 * i, &tables[i], codes + 256 * i, &bits)) return 0;
  /* every byte may be stuffed */
  context->file = gratis_grow(context->file, &context->file_capacity, 2048 + bits / 4 + 4 * (int64_t)rows);
  if (!context->file) return 0;
  uint8_t *out = put_header(context->file, e, quantisation, tables);
  for (int row = 0; row < rows; symbols = end[row++]) {
    if (row) out = put_word(out, 0xFFD0 + (row - 1) % 8);
    out = context->kernels->put_symbols(symbols, end[row], codes, out);
  }
  out = put_word(out, 0xFFD9);
  *file = context->file;
  return out - context->file;
}
