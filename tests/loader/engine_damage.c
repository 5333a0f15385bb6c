/* Decodes damaged JPEGs; built with sanitizers by test_engine_damage.py.
 *   engine_damage FILES SEED COUNT
 * FILES holds good JPEGs, each behind its size in 8 bytes. COUNT damaged copies of them are decoded, each in memory of its very
 * size, in one of the ways that the library offers, with each instruction set of the machine in turn. Prints how many had each
 * status. A batch also holds one good file, which has to come out as it did alone. For each 20 files a picture is encoded too.
 * With -DFUZZ it is a libFuzzer target, which test_engine_damage.py builds with clang where there is one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "engine.h"

struct file { uint8_t *bytes; int64_t size; };
static gratis_context *contexts[3];
static int num_contexts;

static struct file copy_of(const uint8_t *bytes, int64_t size) {
  struct file f = {malloc(size ? size : 1), size};
  memcpy(f.bytes, bytes, size);
  return f;
}

static uint64_t state;
static uint32_t below(uint32_t bound) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return bound ? (uint32_t)(state >> 32) % bound : 0;
}

/* What a view of this image can be: [0] whole, else a part; a resized crop has 40 x 56 pixels. */
static void rectangle(int32_t *r, gratis_info info) {
  r[2] = 1 + below(info.height), r[3] = 1 + below(info.width);
  r[0] = below(info.height - r[2] + 1), r[1] = below(info.width - r[3] + 1);
}

/* What a part is resized to, and the corner of a window of 40 x 56 pixels there. */
static void target(int32_t *t) {
  t[0] = 40 + below(30), t[1] = 56 + below(30);
  t[2] = below(t[0] - 40 + 1), t[3] = below(t[1] - 56 + 1);
}

/* Any operations, between the parts of a mixture, with numbers that they may get. */
enum { STEPS = 6 };
static void program(int32_t *ops, float (*values)[GRATIS_VALUES]) {
  static const int32_t kept[STEPS] = {[0] = GRATIS_KEEP, [3] = GRATIS_KEEP, [4] = GRATIS_MIX};
  int mixture = below(2);
  for (int i = 0; i < STEPS; i++) {
    float *v = values[i];
    ops[i] = mixture && kept[i] ? kept[i] : (int32_t)below(GRATIS_AFFINE + 1);
    for (int k = 0; k < GRATIS_VALUES; k++) v[k] = below(2000) / 1000.0f - 0.5f;
    if (ops[i] == GRATIS_HUE) v[0] /= 3;
    if (ops[i] == GRATIS_POSTERIZE) v[0] = below(9);
    if (ops[i] == GRATIS_SOLARIZE_ADD) v[0] = below(200);
    if (ops[i] == GRATIS_BLUR) v[0] += 0.6f, v[1] += 0.6f, v[2] = 1 + 2 * below(28), v[3] = 1 + 2 * below(20);
    if (ops[i] == GRATIS_AFFINE && below(2)) v[0] = 2 / 56.0f, v[3] = 0; /* rows of the image, moved */
    else if (ops[i] == GRATIS_AFFINE)
      for (int k = 0; k < 6; k++) v[k] *= below(2) ? 0.1f : 1000;
  }
}

/* Decodes the file beside the good one, into memory of the views' very size; returns its status. */
static int decode(struct file file, struct file good, const uint8_t *good_pixels) {
  enum { VIEWS = 2, HEIGHT = 40, WIDTH = 56 };
  gratis_info info, good_info;
  int probed = gratis_probe(file.bytes, file.size, &info), filter = below(3), type = below(4);
  gratis_probe(good.bytes, good.size, &good_info);
  int usable = !probed && (int64_t)info.width * info.height <= 1 << 18;
  if (!probed && !usable) return GRATIS_SIZE;
  if (!usable) info = (gratis_info){64, 64, 3, 0};
  const uint8_t *data[2] = {file.bytes, good.bytes};
  int64_t sizes[2] = {file.size, good.size};
  int32_t rectangles[2 * VIEWS][4], targets[2 * VIEWS][4], status[2] = {-1, -1};
  void *out[2 * VIEWS];
  uint8_t flip[2 * VIEWS];
  int32_t ops[2 * VIEWS][STEPS];
  float values[2 * VIEWS][STEPS][GRATIS_VALUES];
  float scale[3] = {0.5f, 0.25f, 2}, plus[2 * VIEWS][3] = {{1, 2, 3}};
  int bytes = type == GRATIS_FLOAT32 ? 4 : type == GRATIS_UINT8 ? 1 : 2;
  int plain = filter == GRATIS_CROP && type == GRATIS_UINT8;
  for (int v = 0; v < 2 * VIEWS; v++) {
    rectangle(rectangles[v], v < VIEWS ? info : good_info);
    if (v >= VIEWS && plain) memcpy(rectangles[v], (int32_t[]){0, 0, good_info.height, good_info.width}, 16);
    int64_t pixels = filter ? HEIGHT * WIDTH : (int64_t)rectangles[v][2] * rectangles[v][3];
    out[v] = aligned_alloc(64, (3 * pixels * bytes + 63) / 64 * 64);
    flip[v] = v < VIEWS && below(2);
    target(targets[v]);
    program(ops[v], values[v]);
  }
  gratis_job job = {.samples = 2, .views = VIEWS, .data = data, .size = sizes, .rectangles = rectangles[0], .flip = flip, .scale = scale,
    .plus = plus[0], .out = out, .status = status, .out_height = filter ? HEIGHT : 0, .out_width = filter ? WIDTH : 0, .filter = filter,
    .targets = filter && below(2) ? targets[0] : NULL, .antialias = below(2), .type = type, .channels_last = below(2), .stream = below(2)};
  if (filter && below(2)) job.steps = STEPS, job.ops = ops[0], job.values = values[0][0];
  if (plain) job.channels_last = 1;
  int32_t arrived[2] = {0};
  gratis_neighbours neighbours = {2, 1 + below(2), arrived, 0.25f, 0.75f, below(2), {below(41), below(57)}};
  neighbours.box[2] = below(41 - neighbours.box[0]), neighbours.box[3] = below(57 - neighbours.box[1]);
  if (filter && type != GRATIS_UINT8 && below(2)) job.neighbours = &neighbours, job.shares = below(3);
  gratis_run(contexts[below(num_contexts)], &job);
  if (status[0] < 0 || status[1] != GRATIS_OK) abort();
  if (plain && memcmp(out[VIEWS], good_pixels, 3 * (size_t)good_info.height * good_info.width)) abort();
  for (int v = 0; v < 2 * VIEWS; v++) free(out[v]);
  return status[0];
}

static void make_contexts(void) {
  for (int isa = 0; isa <= gratis_best_isa(); isa++) contexts[num_contexts++] = gratis_new(isa);
}

static uint8_t *pixels_of(struct file good) {
  gratis_info info;
  if (gratis_probe(good.bytes, good.size, &info)) abort();
  uint8_t *pixels = malloc(3 * (size_t)info.width * info.height);
  int32_t whole[4] = {0, 0, info.height, info.width}, status = -1;
  gratis_job job = {.samples = 1, .views = 1, .data = (const uint8_t *[]){good.bytes}, .size = &good.size, .rectangles = whole,
    .out = (void *[]){pixels}, .status = &status, .type = GRATIS_UINT8, .channels_last = 1};
  gratis_run(contexts[0], &job);
  if (status) abort();
  return pixels;
}

#ifdef FUZZ
/* One view of an accepted file, with each instruction set: the whole, and a part, cut out or resized to any type and layout. */
static void decode_view(const uint8_t *bytes, int64_t size, gratis_info info, int whole) {
  enum { HEIGHT = 40, WIDTH = 56 };
  int filter = whole ? GRATIS_CROP : below(3), type = whole ? GRATIS_UINT8 : below(4), channels_last = below(2);
  int32_t part[4] = {0, 0, info.height, info.width};
  uint8_t flip = below(2);
  float scale[3] = {0.5f, 0.25f, 2}, plus[3] = {1, 2, 3};
  if (!whole) rectangle(part, info);
  int64_t pixels = filter ? HEIGHT * WIDTH : (int64_t)part[2] * part[3];
  for (int c = 0; c < num_contexts; c++) {
    void *out = malloc(3 * pixels * (type == GRATIS_FLOAT32 ? 4 : type == GRATIS_UINT8 ? 1 : 2));
    int32_t status = -1;
    gratis_job job = {.samples = 1, .views = 1, .data = &bytes, .size = &size, .rectangles = part, .flip = &flip, .scale = scale,
      .plus = plus, .out = &out, .status = &status, .out_height = filter ? HEIGHT : 0, .out_width = filter ? WIDTH : 0,
      .filter = filter, .type = type, .channels_last = channels_last};
    gratis_run(contexts[c], &job);
    if (status < 0) abort();
    free(out);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  if (!num_contexts) make_contexts();
  gratis_info info;
  if (gratis_probe(bytes, size, &info) || (int64_t)info.width * info.height > 1 << 16) return 0;
  state = 0x9E3779B97F4A7C15u; /* a file is decoded in the same way each time */
  for (size_t i = 0; i < size; i++) state = (state ^ bytes[i]) * 0x100000001B3u + 1;
  decode_view(bytes, size, info, 1);
  decode_view(bytes, size, info, 0);
  return 0;
}
#else
static struct file damaged(struct file good) {
  struct file f = copy_of(good.bytes, good.size);
  int64_t scan = f.size; /* damage to the header, the scan or anywhere */
  for (int64_t i = 0; i + 1 < f.size; i++)
    if (f.bytes[i] == 0xFF && f.bytes[i + 1] == 0xDA) scan = i < scan ? i : scan;
  int where = below(3), times = 1 + below(4);
  for (int t = 0; t < times; t++) {
    int64_t at = where == 0 ? below(scan) : where == 1 ? scan + below(f.size - scan) : below(f.size);
    at = at < f.size ? at : f.size - 1;
    if (at < 0) break;
    switch (below(7)) {
      case 0: f.bytes[at] ^= 1 << below(8); break;
      case 1: f.bytes[at] = below(256); break;
      case 2: f.bytes[at] = below(2) ? 0xFF : 0; break;
      case 3: /* a marker */
        f.bytes[at] = 0xFF;
        if (at + 1 < f.size) f.bytes[at + 1] = 0xC0 + below(64);
        break;
      case 4: f.size = below(4) ? f.size : at; break; /* cut */
      case 5: { /* something missing */
        int64_t n = 1 + below(40);
        n = n < f.size - at ? n : f.size - at;
        memmove(f.bytes + at, f.bytes + at + n, f.size - at - n);
        f.size -= n;
        break;
      }
      default: { /* something twice */
        int64_t n = 1 + below(40), from = below(f.size);
        n = n < f.size - at ? n : f.size - at;
        n = n < f.size - from ? n : f.size - from;
        memmove(f.bytes + at, f.bytes + from, n);
      }
    }
  }
  struct file exact = copy_of(f.bytes, f.size);
  free(f.bytes);
  return exact;
}

/* Pixels of any size to a file, the same with each instruction set, and back in each form. */
static void encode(void) {
  enum { FORMS = 3 };
  int width = 1 + below(90), height = 1 + below(90), channels = 3 + below(2), quality = 1 + below(100), noise = 1 + below(256);
  int64_t bytes = (int64_t)width * height * channels;
  uint8_t *pixels = malloc(bytes);
  for (int64_t i = 0; i < bytes; i++) pixels[i] = below(noise) + i / 64 % 32;
  struct file first = {NULL, 0};
  for (int c = 0; c < num_contexts; c++) {
    const uint8_t *file;
    int64_t size = gratis_encode(contexts[c], pixels, channels, height, width, quality, &file);
    if (!size) abort();
    if (!c) first = copy_of(file, size);
    if (size != first.size || memcmp(file, first.bytes, size)) abort();
    for (int form = 0; form < FORMS; form++) {
      uint8_t *out = malloc((size_t)width * height * (form == 2 ? 4 : 3));
      if (gratis_decode(contexts[c], first.bytes, size, height, width, form, out)) abort();
      free(out);
    }
  }
  free(first.bytes);
  free(pixels);
}

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  FILE *in = fopen(argv[1], "rb");
  struct file files[256];
  int num_files = 0;
  uint64_t size;
  while (num_files < 256 && fread(&size, 8, 1, in) == 1) {
    files[num_files] = (struct file){malloc(size), size};
    if (fread(files[num_files++].bytes, 1, size, in) != size) return 2;
  }
  fclose(in);
  make_contexts();
  uint8_t *good_pixels = pixels_of(files[0]);
  state = 0x9E3779B97F4A7C15u * (strtoull(argv[2], NULL, 10) + 1);
  long counts[128] = {0};
  for (long n = atol(argv[3]); n > 0; n--) {
    struct file bad = damaged(files[below(num_files)]);
    counts[decode(bad, files[0], good_pixels)]++;
    free(bad.bytes);
    if (n % 20 == 0) encode();
  }
  for (int i = 0; i < num_files; i++) free(files[i].bytes);
  for (int i = 0; i < num_contexts; i++) gratis_free(contexts[i]);
  free(good_pixels);
  for (int i = 0; i < 128; i++)
    if (counts[i]) printf("%d %ld\n", i, counts[i]);
  return 0;
}
#endif
