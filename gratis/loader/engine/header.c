/* A JPEG's header, its Huffman tables, and its entropy-coded data without stuffed bytes, cut at the restart markers. */
#include <stdlib.h>
#include <string.h>
#include "engine.h"

enum { SOF0 = 0xC0, DHT = 0xC4, DAC = 0xCC, RST0 = 0xD0, SOI = 0xD8, EOI = 0xD9, SOS = 0xDA, DQT = 0xDB, DNL = 0xDC, DRI = 0xDD,
       APP0 = 0xE0, APP1 = 0xE1, APP14 = 0xEE, APP15 = 0xEF, COM = 0xFE };

/* Where a coefficient goes, by its number in the file's zigzag: row * 32 + column, as four blocks lie beside each
 * other. Numbers from 64 on, of ends of blocks and of damaged ones, go to the last place. */
const uint8_t gratis_place[256] = {
#define AT(row, column) row * 32 + column
  AT(0,0), AT(0,1), AT(1,0), AT(2,0), AT(1,1), AT(0,2), AT(0,3), AT(1,2), AT(2,1), AT(3,0), AT(4,0), AT(3,1), AT(2,2),
  AT(1,3), AT(0,4), AT(0,5), AT(1,4), AT(2,3), AT(3,2), AT(4,1), AT(5,0), AT(6,0), AT(5,1), AT(4,2), AT(3,3), AT(2,4),
  AT(1,5), AT(0,6), AT(0,7), AT(1,6), AT(2,5), AT(3,4), AT(4,3), AT(5,2), AT(6,1), AT(7,0), AT(7,1), AT(6,2), AT(5,3),
  AT(4,4), AT(3,5), AT(2,6), AT(1,7), AT(2,7), AT(3,6), AT(4,5), AT(5,4), AT(6,3), AT(7,2), AT(7,3), AT(6,4), AT(5,5),
  AT(4,6), AT(3,7), AT(4,7), AT(5,6), AT(6,5), AT(7,4), AT(7,5), AT(6,6), AT(5,7), AT(6,7), AT(7,6), AT(7,7),
#define LAST4 AT(7,7), AT(7,7), AT(7,7), AT(7,7)
#define LAST16 LAST4, LAST4, LAST4, LAST4
#define LAST64 LAST16, LAST16, LAST16, LAST16
  LAST64, LAST64, LAST64,
};

static int word(const uint8_t *p) { return p[0] << 8 | p[1]; }

static int read_quantisation(header *head, const uint8_t *p, const uint8_t *end) {
  for (; p < end; p += 65) {
    if (p[0] > 3) return GRATIS_TABLES; /* 16-bit values or an unknown number */
    if (end - p < 65) return GRATIS_SEGMENT;
    memcpy(head->quant[p[0]], p + 1, 64);
    head->defined |= 1u << p[0];
  }
  return GRATIS_OK;
}

static int read_huffman(header *head, const uint8_t *p, const uint8_t *end) {
  while (p < end) {
    if ((p[0] & 0xEE) != 0) return GRATIS_TABLES;
    if (end - p < 17) return GRATIS_SEGMENT;
    huffman *table = &head->huff[p[0] >> 4][p[0] & 1];
    int count = 0;
    for (int length = 1; length <= 16; length++) count += p[length];
    if (count > 256) return GRATIS_TABLES;
    if (end - p < 17 + count) return GRATIS_SEGMENT;
    table->defined = 1;
    table->count = count;
    memcpy(table->bytes, p + 1, 16 + count);
    p += 17 + count;
  }
  return GRATIS_OK;
}

static int read_frame(header *head, const uint8_t *p, const uint8_t *end) {
  if (head->components) return GRATIS_SEGMENT;
  if (end - p < 6) return GRATIS_SEGMENT;
  if (p[0] != 8) return GRATIS_NOT_BASELINE;
  head->height = word(p + 1);
  head->width = word(p + 3);
  head->components = p[5];
  if (!head->width || !head->height || (int64_t)head->width * head->height > GRATIS_MOST_PIXELS) return GRATIS_SIZE;
  if (head->components != 1 && head->components != 3) return GRATIS_COMPONENTS;
  if (end - p != 6 + 3 * head->components) return GRATIS_SEGMENT;
  for (int i = 0; i < head->components; i++) {
    const uint8_t *c = p + 6 + 3 * i;
    if (head->components == 3 && c[0] != i + 1) return GRATIS_COMPONENTS;
    if (c[1] != 0x11 && !(i == 0 && c[1] == 0x22 && head->components == 3)) return GRATIS_SAMPLING;
    if (i == 0) head->subsampled = c[1] == 0x22;
    if (c[2] > 3) return GRATIS_TABLES;
    head->quantisation[i] = c[2];
  }
  return GRATIS_OK;
}

static int read_scan(header *head, const uint8_t *frame_id, const uint8_t *p, const uint8_t *end) {
  int count = head->components;
  if (!count || end - p < 1 || p[0] != count) return GRATIS_COMPONENTS;
  if (end - p != 4 + 2 * count) return GRATIS_SEGMENT;
  for (int i = 0; i < count; i++) {
    if (p[1 + 2 * i] != (count == 1 ? *frame_id : i + 1)) return GRATIS_COMPONENTS;
    int tables = p[2 + 2 * i];
    if (tables & 0xEE) return GRATIS_TABLES;
    head->dc[i] = tables >> 4;
    head->ac[i] = tables & 1;
    if (!head->huff[0][head->dc[i]].defined || !head->huff[1][head->ac[i]].defined) return GRATIS_TABLES;
    if (!(head->defined >> head->quantisation[i] & 1)) return GRATIS_TABLES;
  }
  p += 1 + 2 * count;
  return p[0] == 0 && p[1] == 63 && p[2] == 0 ? GRATIS_OK : GRATIS_SEGMENT;
}

int gratis_read_header(const uint8_t *data, int64_t size, header *head) {
  memset(head, 0, sizeof *head);
  if (size < 4 || data[0] != 0xFF || data[1] != SOI) return GRATIS_NOT_JPEG;
  const uint8_t *p = data + 2, *end = data + size, *frame_id = NULL;
  for (;;) {
    if (end - p < 4) return GRATIS_TRUNCATED;
    int marker = p[1], length = word(p + 2), status = GRATIS_OK;
    if (p[0] != 0xFF || marker == 0xFF || length < 2) return GRATIS_SEGMENT;
    if (end - p < 2 + length) return GRATIS_TRUNCATED;
    const uint8_t *begin = p + 4, *stop = p + 2 + length;
    p = stop;
    if (marker == DQT) status = read_quantisation(head, begin, stop);
    else if (marker == DHT) status = read_huffman(head, begin, stop);
    else if (marker == SOF0) {
      status = read_frame(head, begin, stop);
      frame_id = begin + 6;
    } else if (marker == DRI) {
      if (length != 4) return GRATIS_SEGMENT;
      head->restart_interval = word(begin);
    } else if (marker == SOS) {
      status = read_scan(head, frame_id, begin, stop);
      head->scan = p - data;
      return status;
    } else if (marker == APP14) return GRATIS_ADOBE;
    else if (marker == APP1 && length >= 6 && !memcmp(begin, "Exif", 4)) return GRATIS_EXIF;
    else if (marker > SOF0 && marker < RST0) return GRATIS_NOT_BASELINE; /* DHT is dealt with above */
    else if (marker != COM && !(marker >= APP0 && marker <= APP15)) return GRATIS_SEGMENT;
    if (status) return status;
  }
}

/* The entry of an AC symbol whose code has `length` bits; value is that of the next bits, if they are in sight. */
static uint32_t ac_entry(int symbol, int length, int value, int in_sight) {
  int run = symbol >> 4, size = symbol & 15;
  uint32_t step = size || run == 15 ? (uint32_t)run + 1 : 128; /* 128: end of block, k is 128 or more then */
  if (!in_sight) return step << 8 | (uint32_t)size << 16 | (uint32_t)length << 24;
  return (uint32_t)(length + size) | step << 8 | (uint32_t)(uint16_t)value << 16;
}

static uint32_t *fill(uint32_t *entries, uint32_t entry, int count) {
  for (int i = 0; i < count; i++) entries[i] = entry;
  return entries + count;
}

static int build_ac(ac_table *table, const huffman *from) {
  const uint8_t *symbols = from->bytes + 16;
  uint32_t *at = table->near, *far = table->far;
  uint32_t window = 0;
  for (int length = 1; length <= 16; length++) {
    if (length == LOOKUP + 1) table->far_first = window;
    for (int i = from->bytes[length - 1]; i > 0; i--) {
      int symbol = *symbols++, size = symbol & 15;
      window += 1u << (16 - length);
      if (window > 1u << 16 || size > 10) return GRATIS_TABLES;
      if (length > LOOKUP) far = fill(far, ac_entry(symbol, length, 0, 0), 1 << (16 - length));
      else if (length + size > LOOKUP) at = fill(at, ac_entry(symbol, length, 0, 0), 1 << (LOOKUP - length));
      else
        for (int bits = 0; bits < 1 << size; bits++) {
          int value = size && bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits;
          at = fill(at, ac_entry(symbol, length, value, 1), 1 << (LOOKUP - length - size));
        }
    }
  }
  table->far_count = (uint32_t)(far - table->far);
  while (at < table->near + (1 << LOOKUP)) *at++ = 0;
  return GRATIS_OK;
}

static int build_dc(dc_table *table, const huffman *from) {
  const uint8_t *symbols = from->bytes + 16;
  uint32_t window = 0;
  memset(table, 0, sizeof *table);
  for (int length = 1; length <= 16; length++) {
    if (length == DC_LOOKUP + 1) table->far_first = window;
    for (int i = from->bytes[length - 1]; i > 0; i--) {
      uint32_t first = window;
      window += 1u << (16 - length);
      if (window > 1u << 16 || *symbols > 11) return GRATIS_TABLES;
      uint16_t entry = (uint16_t)(length << 8 | *symbols++);
      if (length <= DC_LOOKUP)
        for (uint32_t k = first >> (16 - DC_LOOKUP); k < window >> (16 - DC_LOOKUP); k++) table->near[k] = entry;
      else {
        uint32_t last = window - table->far_first;
        if (last > sizeof table->far / sizeof *table->far) return GRATIS_TABLES;
        for (uint32_t k = first - table->far_first; k < last; k++) table->far[k] = entry;
        table->far_count = last;
      }
    }
  }
  return GRATIS_OK;
}

/* Those that the scan uses, unless they are those of the image before. */
int gratis_build_tables(image *im) {
  for (int kind = 0; kind < 2; kind++)
    for (int number = 0; number < 2; number++) {
      const huffman *wanted = &im->head.huff[kind][number];
      huffman *built = &im->built[kind][number];
      int used = 0;
      for (int c = 0; c < im->head.components; c++) used |= (kind ? im->head.ac[c] : im->head.dc[c]) == number;
      if (!used || (built->defined && built->count == wanted->count && !memcmp(built->bytes, wanted->bytes, 16 + wanted->count)))
        continue;
      built->defined = 0;
      int status = kind ? build_ac(&im->ac[number], wanted) : build_dc(&im->dc[number], wanted);
      if (status) return status;
      *built = *wanted;
    }
  return GRATIS_OK;
}

void *gratis_grow(void *memory, int64_t *capacity, int64_t size) {
  if (size <= *capacity) return memory;
  free(memory);
  *capacity = 0;
  int64_t wanted = (size + size / 4 + 127) / 64 * 64;
  memory = aligned_alloc(64, (size_t)wanted);
  if (memory) *capacity = wanted;
  return memory;
}

/* Copies the scan to im->bytes without stuffed zeros, and notes the segments between restart markers. Of segments
 * that are not wanted only the markers are looked at. */
int gratis_unstuff(image *im, const uint8_t *data, int64_t size) {
  const uint8_t *p = data + im->head.scan, *end = data + size;
  im->bytes = gratis_grow(im->bytes, &im->bytes_capacity, end - p + PADDING);
  im->segments = gratis_grow(im->segments, &im->segments_capacity, im->num_segments * (int64_t)sizeof(segment));
  if (!im->bytes || !im->segments) return GRATIS_MEMORY;
  uint8_t *to = im->bytes;
  int number = 0;
  im->segments[0].begin = 0;
  for (;;) {
    const uint8_t *mark = memchr(p, 0xFF, (size_t)(end - p));
    if (!mark || end - mark < 2) return GRATIS_TRUNCATED;
    if (number >= im->first_segment && number < im->last_segment) {
      int64_t keep = mark - p + (mark[1] == 0);
      memcpy(to, p, (size_t)keep);
      to += keep;
    }
    p = mark + 2;
    if (mark[1] == 0) continue;
    im->segments[number].end = to - im->bytes;
    if (mark[1] == EOI) break;
    if (mark[1] != RST0 + (number & 7) || ++number >= im->num_segments) return GRATIS_MARKER;
    im->segments[number].begin = to - im->bytes;
  }
  if (number != im->num_segments - 1) return GRATIS_MARKER;
  memset(to, 0, PADDING);
  return GRATIS_OK;
}
