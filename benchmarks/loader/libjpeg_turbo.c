/* What bare libjpeg-turbo costs: decodes JPEGs that are in memory already, again and again, and keeps nothing.
 *   limit crop|huffman SIDE THREADS SECONDS SHARD.tar...
 * crop: a random SIDE x SIDE part by jpeg_crop_scanline and jpeg_skip_scanlines, default DCT and upsampling.
 * huffman: entropy decoding alone. Prints images per second and CPU seconds per 1,000 images as JSON.
 * Compiled and run by loader/bench.py. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <jpeglib.h>

struct image { unsigned char *bytes; size_t size; };
struct worker { pthread_t thread; unsigned random; long count; double cpu; };
static struct image *images;
static int num_images, side, entropy_only;
static double seconds;

static double now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void load(const char *path) {
  unsigned char header[512];
  FILE *tar = fopen(path, "rb");
  if (!tar) { perror(path); exit(1); }
  while (fread(header, 1, 512, tar) == 512 && header[0]) {
    size_t size = strtoull((char *)header + 124, NULL, 8), padded = (size + 511) / 512 * 512;
    unsigned char *bytes = malloc(padded + 1);
    if (fread(bytes, 1, padded, tar) != padded) exit(1);
    if (strstr((char *)header, ".jpg")) {
      images = realloc(images, (num_images + 1) * sizeof *images);
      images[num_images++] = (struct image){bytes, size};
    } else free(bytes);
  }
  fclose(tar);
}

static unsigned below(struct worker *w, unsigned bound) {
  w->random ^= w->random << 13;
  w->random ^= w->random >> 17;
  w->random ^= w->random << 5;
  return w->random % bound;
}

static void decode(struct worker *w, struct jpeg_decompress_struct *jpeg, struct image image, unsigned char *row) {
  jpeg_mem_src(jpeg, image.bytes, image.size);
  jpeg_read_header(jpeg, TRUE);
  if (entropy_only) {
    jpeg_read_coefficients(jpeg);
  } else {
    JDIMENSION x = below(w, jpeg->image_width - side + 1), y = below(w, jpeg->image_height - side + 1), width = side;
    jpeg->out_color_space = JCS_RGB;
    jpeg_start_decompress(jpeg);
    jpeg_crop_scanline(jpeg, &x, &width);
    if (y) jpeg_skip_scanlines(jpeg, y);
    for (int left = side; left > 0;) {
      JSAMPROW rows[4] = {row, row, row, row};
      left -= jpeg_read_scanlines(jpeg, rows, left < 4 ? left : 4);
    }
  }
  jpeg_abort_decompress(jpeg);
}

static void *work(void *argument) {
  struct worker *w = argument;
  struct jpeg_decompress_struct jpeg;
  struct jpeg_error_mgr errors;
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&jpeg);
  unsigned char *row = malloc(3 * 65536);
  double began = now(CLOCK_MONOTONIC), cpu = now(CLOCK_THREAD_CPUTIME_ID);
  while (w->count % 64 || now(CLOCK_MONOTONIC) - began < seconds) {
    decode(w, &jpeg, images[below(w, num_images)], row);
    w->count++;
  }
  w->cpu = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
  return NULL;
}

int main(int argc, char **argv) {
  if (argc < 6) return 2;
  entropy_only = !strcmp(argv[1], "huffman");
  side = atoi(argv[2]);
  int threads = atoi(argv[3]);
  seconds = atof(argv[4]);
  for (int i = 5; i < argc; i++) load(argv[i]);
  struct worker *workers = calloc(threads, sizeof *workers);
  double began = now(CLOCK_MONOTONIC), cpu = 0;
  long count = 0;
  for (int i = 0; i < threads; i++) {
    workers[i].random = 12345 + 777 * i;
    pthread_create(&workers[i].thread, NULL, work, &workers[i]);
  }
  for (int i = 0; i < threads; i++) {
    pthread_join(workers[i].thread, NULL);
    count += workers[i].count;
    cpu += workers[i].cpu;
  }
  printf("{\"rate\": %.1f, \"cost\": %.5f, \"first\": 0, \"megabytes\": 0}\n",
         count / (now(CLOCK_MONOTONIC) - began), 1000 * cpu / count);
  return 0;
}
