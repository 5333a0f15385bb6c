/* What the engine costs beside libjpeg-turbo: the same crops of the same JPEGs, in one thread, variants in turns.
 *   engine_bench LIBRARY ROUNDS PLAIN RESTARTS [ISA]
 * PLAIN, RESTARTS: files of JPEGs of one size, each behind its size in 8 bytes, without and with a restart marker at the end of
 * each row of MCUs. Prints a line of JSON for each variant: microseconds of thread CPU time for an image, one number a round.
 * Compiled and run by benchmarks/loader/engine_bench.py. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <jpeglib.h>
#include "engine.h"

enum { CROP = 224, BATCH = 32, OUTPUTS = 128, VARIANTS = 32 };
struct file { unsigned char *bytes; int64_t size; };
struct set { struct file *files; int count; };
struct box { int32_t y, x, height, width; };

static gratis_context *(*new_context)(int);
static void (*run)(gratis_context *, gratis_job *);
static int (*best_isa)(void);
static struct set sets[2];
static struct box *crops, *resized;
static unsigned char *flips, rgb[1 << 20];
static float (*noise)[3], *mean, *outputs;
static int side;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static struct set load(const char *path) {
  struct set s = {0};
  uint64_t size;
  FILE *f = fopen(path, "rb");
  if (!f) exit((perror(path), 1));
  while (fread(&size, 8, 1, f) == 1) {
    s.files = realloc(s.files, (s.count + 1) * sizeof *s.files);
    s.files[s.count] = (struct file){malloc(size), (int64_t)size};
    if (fread(s.files[s.count++].bytes, 1, size, f) != size) exit(1);
  }
  fclose(f);
  return s;
}

static void store_row(const unsigned char *row, float *out, const float *minus, const float *plus, int flip) {
  for (int c = 0; c < 3; c++) {
    float *restrict d = out + c * CROP * CROP, p = plus[c];
    const float *m = minus + c * side * side;
    if (flip) for (int x = 0; x < CROP; x++) d[x] = (float)row[(CROP - 1 - x) * 3 + c] + p - m[x];
    else for (int x = 0; x < CROP; x++) d[x] = (float)row[x * 3 + c] + p - m[x];
  }
}

/* box NULL: entropy decoding alone */
static void turbo(struct jpeg_decompress_struct *jpeg, struct file file, const struct box *box, int pass, int i) {
  jpeg_mem_src(jpeg, file.bytes, file.size);
  jpeg_read_header(jpeg, TRUE);
  if (!box) {
    jpeg_read_coefficients(jpeg);
    jpeg_abort_decompress(jpeg);
    return;
  }
  jpeg->out_color_space = JCS_RGB;
  jpeg_start_decompress(jpeg);
  JDIMENSION x = box->x, width = box->width;
  if ((int)width < side) jpeg_crop_scanline(jpeg, &x, &width);
  if (box->y) jpeg_skip_scanlines(jpeg, box->y);
  for (int y = 0; y < box->height;) {
    JSAMPROW rows[4] = {rgb, rgb + 3072, rgb + 6144, rgb + 9216};
    int got = jpeg_read_scanlines(jpeg, rows, box->height - y < 4 ? box->height - y : 4);
    for (int r = 0; pass && r < got; r++)
      store_row(rows[r] + 3 * (box->x - x), outputs + (i % OUTPUTS) * 3L * CROP * CROP + (y + r) * CROP,
                mean + (16 + y + r) * side + 16, noise[i], flips[i]);
    y += got;
  }
  jpeg_abort_decompress(jpeg);
}

static void ours(gratis_context *context, const struct set *set, const struct box *boxes, int filter, int type, int pass, int stream) {
  static const uint8_t *data[1 << 16];
  static int64_t sizes[1 << 16];
  static void *out[1 << 16];
  static const float *minus[1 << 16];
  static int32_t status[1 << 16];
  int bytes = type == GRATIS_FLOAT32 ? 4 : type == GRATIS_UINT8 ? 1 : 2;
  int limit = boxes == NULL ? 0 : filter || boxes == crops ? CROP : 0;
  for (int first = 0; first < set->count; first += BATCH) {
    int n = set->count - first < BATCH ? set->count - first : BATCH;
    for (int i = 0; i < n; i++) {
      data[i] = set->files[first + i].bytes, sizes[i] = set->files[first + i].size;
      out[i] = (char *)outputs + ((first + i) % OUTPUTS) * 3L * CROP * CROP * bytes;
      minus[i] = mean + 16 * side + 16;
    }
    gratis_job job = {.samples = n, .views = 1, .data = data, .size = sizes, .rectangles = (const int32_t *)(boxes + first),
      .out = out, .status = status, .out_height = limit, .out_width = limit, .filter = filter, .antialias = 1, .type = type, .stream = stream};
    if (pass) job.flip = flips + first, job.plus = noise[first], job.minus = minus, job.minus_row = side, job.minus_plane = side * side;
    run(context, &job);
    for (int i = 0; i < n; i++) if (status[i]) exit((fprintf(stderr, "status %d\n", status[i]), 1));
  }
}

static struct jpeg_decompress_struct jpeg;
static gratis_context *context;

static void variant(int v) {
  const struct set *plain = &sets[0], *restarts = &sets[1];
  struct box whole = {0, 0, side, side};
  for (int i = 0; v < 5 && i < plain->count; i++)
    turbo(&jpeg, plain->files[i], v == 0 ? &crops[i] : v == 1 ? &whole : v == 2 ? &crops[i] : v == 3 ? &resized[i] : NULL, v == 2, i);
  switch (v) {
    case 5: ours(context, plain, crops, 0, GRATIS_UINT8, 0, 0); break;
    case 6: ours(context, restarts, crops, 0, GRATIS_UINT8, 0, 0); break;
    case 7: ours(context, plain, crops, 0, GRATIS_FLOAT32, 1, 1); break;
    case 8: ours(context, restarts, crops, 0, GRATIS_FLOAT32, 1, 0); break;
    case 9: ours(context, restarts, crops, 0, GRATIS_FLOAT32, 1, 1); break;
    case 10: ours(context, restarts, crops, 0, GRATIS_BFLOAT16, 1, 1); break;
    case 11: ours(context, restarts, crops, 0, GRATIS_FLOAT16, 1, 1); break;
    case 12: ours(context, restarts, resized, GRATIS_TRIANGLE, GRATIS_FLOAT32, 1, 1); break;
    case 13: ours(context, restarts, resized, 0, GRATIS_UINT8, 0, 0); break;
    case 14: ours(context, plain, resized, GRATIS_TRIANGLE, GRATIS_FLOAT32, 1, 1); break;
  }
}
static const char *names[] = {"libjpeg-turbo crop", "libjpeg-turbo whole image", "libjpeg-turbo crop, C pass to float32",
  "libjpeg-turbo part for a resized crop", "libjpeg-turbo entropy decoding",
  "engine, no restarts, crop uint8", "engine crop uint8", "engine, no restarts, crop float32", "engine crop float32, not streamed",
  "engine crop float32", "engine crop bfloat16", "engine crop float16", "engine resized crop float32",
  "engine part for a resized crop uint8", "engine, no restarts, resized crop float32"};

int main(int argc, char **argv) {
  if (argc < 5) return 2;
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) exit((fprintf(stderr, "%s\n", dlerror()), 1));
  new_context = (gratis_context *(*)(int))dlsym(library, "gratis_new");
  run = (void (*)(gratis_context *, gratis_job *))dlsym(library, "gratis_run");
  best_isa = (int (*)(void))dlsym(library, "gratis_best_isa");
  int rounds = atoi(argv[2]), variants = sizeof names / sizeof *names, isa = argc > 5 ? atoi(argv[5]) : best_isa();
  sets[0] = load(argv[3]), sets[1] = load(argv[4]);
  struct jpeg_error_mgr errors;
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&jpeg);
  jpeg_mem_src(&jpeg, sets[0].files[0].bytes, sets[0].files[0].size);
  jpeg_read_header(&jpeg, TRUE);
  side = jpeg.image_width;
  jpeg_abort_decompress(&jpeg);
  context = new_context(isa);
  int n = sets[0].count;
  crops = calloc(n, sizeof *crops), resized = calloc(n, sizeof *resized);
  flips = calloc(n, 1), noise = calloc(n, sizeof *noise), mean = calloc(3L * side * side, 4);
  outputs = aligned_alloc(64, OUTPUTS * 3L * CROP * CROP * 4);
  memset(outputs, 0, OUTPUTS * 3L * CROP * CROP * 4);
  for (long i = 0; i < 3L * side * side; i++) mean[i] = 100 + i % 7;
  srand(1);
  for (int i = 0; i < n; i++) {
    crops[i] = (struct box){rand() % (side - CROP + 1), rand() % (side - CROP + 1), CROP, CROP};
    double area = 0.08 + 0.92 * rand() / RAND_MAX, ratio = 0.75 + rand() * (4 / 3. - 0.75) / RAND_MAX;
    int w = side * __builtin_sqrt(area * ratio), h = side * __builtin_sqrt(area / ratio);
    w = w > side ? side : w, h = h > side ? side : h;
    resized[i] = (struct box){rand() % (side - h + 1), rand() % (side - w + 1), h, w};
    flips[i] = rand() & 1;
    for (int c = 0; c < 3; c++) noise[i][c] = rand() % 100 / 50.f;
  }
  double (*times)[VARIANTS] = calloc(rounds + 1, sizeof *times);
  for (int r = 0; r <= rounds; r++) /* the first one is not counted; forth and back */
    for (int k = 0; k < variants; k++) {
      int v = r & 1 ? variants - 1 - k : k;
      double began = now();
      variant(v);
      times[r][v] = (now() - began) / n * 1e6;
    }
  for (int v = 0; v < variants; v++) {
    printf("{\"name\": \"%s\", \"us\": [", names[v]);
    for (int r = 1; r <= rounds; r++) printf("%s%.2f", r > 1 ? ", " : "", times[r][v]);
    printf("]}\n");
  }
  return 0;
}
