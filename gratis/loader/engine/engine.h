/* The engine: baseline JPEGs to finished views of a batch. README.md of this folder says what the parts are.
 *
 * Everything a caller sees is in the first half of this file. The library has no global state but constants, takes no
 * locks and keeps nothing between calls but the scratch memory of a context. */
#ifndef GRATIS_ENGINE_H
#define GRATIS_ENGINE_H
#include <stddef.h>
#include <stdint.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the engine is written for little-endian machines"
#endif

#define GRATIS_ENGINE_VERSION 7

/* What became of a sample. Below 32: decoded, or not decoded because another decoder has to; the file may be good.
 * From 32: damaged. From 64: the call's fault. */
enum gratis_status {
  GRATIS_OK = 0,
  GRATIS_NOT_JPEG = 1,       /* no SOI at its beginning */
  GRATIS_NOT_BASELINE = 2,   /* progressive, extended, lossless or arithmetic, or not 8 bits deep */
  GRATIS_SAMPLING = 3,       /* neither 4:2:0 nor 4:4:4 nor grey with sampling factors of 1 */
  GRATIS_COMPONENTS = 4,     /* components not numbered 1, 2, 3 (grey: any), or several scans */
  GRATIS_ADOBE = 5,          /* an Adobe segment: it may say another colour space */
  GRATIS_EXIF = 6,           /* an EXIF segment: it may say that the picture is rotated */
  GRATIS_TABLES = 7,         /* a table that is missing, has 16 bits or has symbols that baseline files have not */
  GRATIS_SEGMENT = 8,        /* a segment of the header that is not known here, or repeated, or of another length */
  GRATIS_SIZE = 9,           /* more pixels than GRATIS_MOST_PIXELS, or none, or not the shape that is asked for */
  GRATIS_MEMORY = 10,        /* not enough memory */
  GRATIS_TRUNCATED = 32,     /* the file ends before its EOI, or inside its header */
  GRATIS_MARKER = 33,        /* a restart marker out of order, or one marker too many or too few */
  GRATIS_CODE = 34,          /* bits that are no code, or a run beyond the end of a block */
  GRATIS_LENGTH = 35,        /* a segment with too little or too much data for its MCUs */
  GRATIS_RECTANGLE = 64,     /* a rectangle that is empty or not inside the image, or of another size than the output;
                              * a window that is not inside the resized rectangle */
};
#define GRATIS_MOST_PIXELS 100000000

enum gratis_type { GRATIS_FLOAT32, GRATIS_BFLOAT16, GRATIS_FLOAT16, GRATIS_UINT8 };
enum gratis_filter { GRATIS_CROP, GRATIS_TRIANGLE, GRATIS_CUBIC };
/* Operations on the pixels of a view, and what of a step's values each reads; see operations.h. */
enum gratis_op {
  GRATIS_NOTHING,
  GRATIS_BRIGHTNESS,   /* factor */
  GRATIS_CONTRAST,     /* factor, 1 - factor */
  GRATIS_SATURATION,   /* factor, 1 - factor */
  GRATIS_HUE,          /* turns, -0.5 to 0.5 */
  GRATIS_GREY,
  GRATIS_POSTERIZE,    /* bits that are kept */
  GRATIS_SOLARIZE,     /* threshold, 0 to 256 */
  GRATIS_SOLARIZE_ADD, /* what is added below 128 */
  GRATIS_AUTOCONTRAST,
  GRATIS_EQUALIZE,
  GRATIS_SHARPNESS,    /* 1 - factor */
  GRATIS_BLUR,         /* sigma across, down; odd number of taps across, down: at most GRATIS_MOST_TAPS and less than twice
                        * the view's width and height */
  GRATIS_AFFINE,       /* matrix [2][3] from output to source, both from -1 to 1; whether bilinear; whether filled; fill [3] */
  GRATIS_KEEP,         /* first keeps the image, then each variant of it, after which the image is again what it was */
  GRATIS_MIX,          /* weights of what was kept, in that order */
};
#define GRATIS_VALUES 12 /* of a step */
#define GRATIS_MOST_TAPS 127

enum gratis_isa { GRATIS_PORTABLE, GRATIS_AVX2, GRATIS_AVX512 };

/* How a batch is mixed while it is made: each sample's views with those of the one before it, the first one's with the last
 * one's, image * lam + before * rest in float32 of values of the type, from there to the type; or, with a box, the one before
 * in the box and the image around it. Views of samples that failed, and of those behind them, are undefined until
 * gratis_augment brings them. The type is not uint8, and out_height is not 0. */
typedef struct {
  int64_t total;    /* samples of the batch */
  int64_t mixed;    /* of them, from the first on, are written; one behind those only precedes the first */
  int32_t *arrived; /* [total]: halves of each that threads have left to others; 0 at first */
  float lam, rest;
  int32_t is_box, box[4]; /* y, x, height, width, inside the view */
} gratis_neighbours;

/* A batch. Every array belongs to the caller and is read, except those behind out, status, next and neighbours.
 *
 * A view is the rectangle of an image, resized to out_height x out_width (filter CROP: it has that size already, or any
 * if out_height is 0), or with targets the window of out_height x out_width in the rectangle that is resized to its
 * target; rounded to 8 bits, mirrored if flip, changed by the steps of its program in order, and then, if the type is not
 * uint8,
 *   fmaf(pixel, scale[channel], plus[channel] - minus[place]), if channels_last
 *   fmaf(pixel, scale[channel], plus[channel]) - minus[place]
 * in float32, and from there to the type. Shape [3][height][width], or [height][width][3] if channels_last; if that is 2, and
 * the type uint8, [height][width][4] with 255 behind each pixel. */
typedef struct {
  int64_t samples;
  int64_t views;                 /* of each sample; arrays of views have samples * views entries, a sample's adjacent */
  const uint8_t *const *data;    /* [samples] the files' bytes */
  const int64_t *size;           /* [samples] in bytes */
  const int32_t *shape;          /* [samples][2]: height and width that the image must have, or NULL: any */
  const int32_t *rectangles;     /* [samples*views][4]: y, x, height, width, in pixels of the image */
  const int32_t *targets;        /* [samples*views][4]: height and width that the rectangle is resized to, y and x of the
                                  * window there; or NULL: the window is the whole. Not for filter CROP */
  const uint8_t *flip;           /* [samples*views], or NULL: none */
  const float *scale;            /* [3], or NULL: 1 */
  const float *plus;             /* [samples*views][3], or NULL: 0 */
  const float *const *minus;     /* [samples*views] the first element for each view, or NULL: 0 */
  int64_t minus_row;             /* floats from one row of minus to the next */
  int64_t minus_plane;           /* floats from one channel to the next; unused if channels_last (then interleaved) */
  void *const *out;              /* [samples*views], aligned to the type */
  int32_t *status;               /* [samples] a gratis_status each; other than OK: its views are undefined */
  int64_t next;                  /* the first sample nobody has taken; threads share it. 0 at first */
  int32_t out_height, out_width; /* in pixels */
  int32_t filter, antialias, type, channels_last; /* antialias: the filter widens where it shrinks */
  int32_t stream;                /* 1: write around the caches where alignment (64 bytes) allows, for large batches */
  int32_t steps;                 /* of each view's program */
  const int32_t *ops;            /* [samples*views][steps]: a gratis_op each, or NULL: no programs. Then out_height is not 0 */
  const float *values;           /* [samples*views][steps][GRATIS_VALUES] */
  int64_t out_plane;             /* bytes from one channel of planes to the next; 0: height * width values */
  gratis_neighbours *neighbours; /* NULL: nothing is mixed */
  int64_t shares;                /* a thread takes one of so many shares of the samples that are left; 0: one sample */
} gratis_job;

typedef struct { int32_t width, height, components, restart_interval; } gratis_info;

#define GRATIS_AT_ONCE 16384 /* elements of an image, at most, that are mixed at a time: they stay in the cache */

/* Each image of a finished batch with the one before it: image * lam + before * rest in float32, from there to the type
 * (uint8: to the nearest); or, where lam is 0, the one before alone. */
typedef struct {
  void *rows;             /* the first image */
  const void *before;     /* what precedes it; NULL: the last of these */
  int64_t images, row_bytes;
  const int64_t *segment; /* [segments][2]: elements of an image that are mixed, from which one on, how many */
  const int64_t *group;   /* [groups + 1]: segments [group[g], group[g + 1]), of GRATIS_AT_ONCE elements at most together */
  int64_t groups;
  int64_t next;           /* the first group nobody has taken; threads share it. 0 at first */
  float lam, rest;
  int32_t type;
} gratis_mixing;

/* Boxes of images of a finished batch, to a colour each or, where there are no colours, to standard normals: those of
 * pixel p = y * width + x are made of Philox's words for (counter, epoch, purpose + 256 p). */
typedef struct {
  void *rows;               /* the first image */
  int64_t images, row_bytes;
  const int64_t *first;     /* [images + 1]: boxes of image i are [first[i], first[i + 1]), the last one on top */
  const int32_t *boxes;     /* [][4]: y, x, height, width, inside the image */
  const float *colours;     /* [boxes][3] as written, or NULL */
  const uint32_t *counters; /* [images][2] */
  uint32_t key[2], epoch, purpose;
  int64_t next;             /* the first image nobody has taken; threads share it. 0 at first */
  int32_t height, width, type, channels_last;
} gratis_erasing;

typedef struct gratis_context gratis_context;

#define GRATIS_API __attribute__((visibility("default")))
GRATIS_API int gratis_engine_version(void);
/* The best instruction set of this machine for which this library has code. */
GRATIS_API int gratis_best_isa(void);
/* Scratch memory for one thread at a time; NULL if there is none or no code for that instruction set. */
GRATIS_API gratis_context *gratis_new(int isa);
GRATIS_API void gratis_free(gratis_context *context);
/* The header alone: a gratis_status, and what it says. */
GRATIS_API int gratis_probe(const uint8_t *data, int64_t size, gratis_info *info);
/* Takes samples of the job until none is left; as many threads as have a context of their own may do so at once. */
GRATIS_API void gratis_run(gratis_context *context, gratis_job *job);
/* Programs and all that follows, of views that are decoded and resized already: pixels [samples*views], RGB triplets in
 * rows that are stride bytes apart. The job's data, size and rectangles are not read; status of samples for which there
 * was no memory is set. Shared by threads as gratis_run. Where samples of a batch are mixed, it is of the same batch, with
 * the same neighbours: next and samples say which of them are brought. */
GRATIS_API void gratis_augment(gratis_context *context, gratis_job *job, const uint8_t *const *pixels, int64_t stride);

/* As many threads as one likes, with the same job. isa: as of gratis_new. */
GRATIS_API void gratis_mix(int isa, gratis_mixing *job);
GRATIS_API void gratis_erase(int isa, gratis_erasing *job);
/* One whole image of height x width pixels to out, uint8, channels_last as of a job: a gratis_status. */
GRATIS_API int gratis_decode(gratis_context *context, const uint8_t *data, int64_t size, int32_t height, int32_t width,
                             int32_t channels_last, uint8_t *out);
/* The file that libjpeg-turbo makes of an image in 4:2:0, its Huffman tables fitted to it, with a restart marker behind
 * each row of MCUs: its bytes, 0 if there was no memory or a side is not from 1 to 65,500. channels: bytes of a pixel, 3 or 4,
 * of which the last does not count. quality: 1 to 100. *file is valid until the context is used again. */
GRATIS_API int64_t gratis_encode(gratis_context *context, const uint8_t *pixels, int32_t channels, int32_t height,
                                 int32_t width, int32_t quality, const uint8_t **file);

/* ---- inside ---- */

#define LOOKUP 12        /* bits that one look into a table for AC coefficients decodes */
#define DC_LOOKUP 9
#define PADDING 512      /* zeros behind the unstuffed data: no block takes more than 216 bytes */
#define BLOCKS 24        /* of a chunk: 4 MCUs of 4:2:0, 8 of 4:4:4, 24 of grey */
#define GROUPS (BLOCKS / 4)
#define MARGIN 64        /* bytes before and behind rows of planes that may be read or written, for whole vectors */
#define LANES 4          /* images or rows that one thread decodes in turns, at most */
#define CACHED_WEIGHTS 512 /* of resized crops: a set for each side of a part, usually at most 256 of them */

/* AC: bits 0-7 all bits taken, 8-15 the step of k, 16-31 the value. Where bits 0-7 are 0 the value was not in sight:
 * bits 16-23 its size, 24-31 the code's length, or 0 for a code longer than LOOKUP, which `far` has. */
typedef struct {
  uint32_t near[1 << LOOKUP];
  uint32_t far[2048];
  uint32_t far_first, far_count; /* 16-bit windows that `far` is about */
} ac_table;

typedef struct { /* entries: length << 8 | size; 0 for a code longer than DC_LOOKUP */
  uint16_t near[1 << DC_LOOKUP];
  uint16_t far[1024];
  uint32_t far_first, far_count;
} dc_table;

/* One of the blocks of a chunk, in the order of the scan. */
typedef struct {
  const ac_table *ac;
  const dc_table *dc;
  uint16_t place; /* of the block in the lane's coefficients, in int16 */
  uint16_t component;
} block;

/* Four blocks that lie beside each other, and are transformed together. */
typedef struct { uint8_t component, x, y; } group;

typedef struct { int64_t begin, end; } segment; /* of the unstuffed data */

/* A Huffman table as in the file: 16 counts, then up to 256 symbols. */
typedef struct { int defined, count; uint8_t bytes[16 + 256]; } huffman;

typedef struct {
  int width, height, components, subsampled, restart_interval;
  int64_t scan; /* where the entropy-coded data begin */
  uint8_t quantisation[3];
  uint8_t dc[3], ac[3];
  uint32_t defined; /* bit i: quantisation table i */
  uint8_t quant[4][64]; /* in zigzag order */
  huffman huff[2][2];   /* [0: DC, 1: AC][number] */
} header;

typedef struct { int top, bottom, left, right; } area; /* pixels, [top, bottom) and [left, right) */

/* Of a view. */
typedef struct {
  area part;  /* of the image, that it is made of */
  int64_t at; /* where its rows, resampled across, begin in the buffer */
  int done;   /* rows of the output */
} view_state;

/* An image that is being decoded. */
typedef struct {
  header head;
  int64_t sample;
  int busy, failed;
  area wanted;                /* holds all views */
  int columns, rows, mcu;     /* MCUs across and down; their side in pixels */
  int chunk;                  /* MCUs of a chunk */
  int blocks, groups;         /* blocks of an MCU, groups of a chunk */
  group group[GROUPS];
  block block[BLOCKS + 1];
  int first_row, last_row;    /* MCU rows that are wanted: [first, last) */
  int first_column, last_column;
  int rows_each;              /* MCU rows of a unit: what one lane decodes at a time. 0: one unit */
  int next_unit, units, open_units;
  uint8_t *bytes;             /* unstuffed */
  int64_t bytes_capacity;
  segment *segments;
  int64_t segments_capacity;
  int num_segments, first_segment, last_segment; /* of the whole file; those that are wanted: [first, last) */
  uint8_t *planes;
  int64_t planes_capacity;
  int64_t stride[3];
  uint8_t *plane[3];          /* its first row is that of first_row */
  int chroma_width, chroma_height;
  int16_t quant[3][64 * 4] __attribute__((aligned(64))); /* a row four times beside itself, as coefficients lie */
  huffman built[2][2];        /* what the tables below were made of */
  dc_table dc[2];
  ac_table ac[2];
} image;

typedef struct {
  const uint8_t *p;       /* the next byte to load */
  uint64_t buffer;        /* the next bits, from the top */
  uint32_t valid;         /* how many of them count, in its lowest 6 bits */
  uint32_t k;             /* place in the block, zigzag */
  const ac_table *ac;
  int16_t *block;
  const block *program, *stop;
  struct lane_rest *rest;
} lane;

typedef struct lane_rest { /* what is not looked at with every symbol */
  image *image;
  int16_t *coefficients;    /* [BLOCKS][64] as groups: [group][row][4 blocks][8] */
  const uint8_t *limit;     /* the end of the segment */
  const uint8_t *begin;     /* and its beginning */
  uint32_t error;           /* 64: a run beyond the end or no code; 128: beyond the end of the segment */
  int prediction[3];
  int row, column, last_row;/* MCUs */
  int left;                 /* MCUs of the segment */
  int segment;
  int count;                /* MCUs of this chunk */
} lane_rest;

/* Along one axis: `source` pixels are resized to `target`, of which `count` are made, from the one numbered `from` on. */
typedef struct { int source, target, from, count, filter, antialias; } resampling;

/* Its weights, in 1 << precision, as torch rounds them for uint8. They are about source pixels [begin, end): output i is
 * the sum over taps of weights[i][t] * source[begin + first[i] + t]. The same again in groups of outputs for vectors of
 * bytes: the pixels from base[group] on are shuffled to [tap pair][output][2 taps] and multiplied by pairs. */
typedef struct {
  resampling of;
  int begin, end;
  int taps, precision; /* taps: even, weights of those that are too many are 0 */
  int groups;          /* 0: more pixels to a group than a vector holds */
  int32_t *first;      /* [count] */
  int16_t *weights;    /* [count][taps] */
  int32_t *base;       /* [groups] */
  uint8_t *shuffle;    /* [groups][taps / 2][4 * outputs]: 0x80 where a zero belongs */
  int16_t *pairs;      /* [groups][taps / 2][2 * outputs] */
} weights;

/* The pixels of one view, as planes, while its program runs. Behind each plane there is a MARGIN. */
typedef struct {
  int height, width, variants; /* variants: kept so far, beside the image itself */
  int64_t count, plane;        /* pixels; bytes from one channel to the next */
  uint8_t *pixels, *other;     /* [3] planes; `other` is where an operation may write, which then swaps them */
  uint8_t *kept;               /* [1 + variants][3] planes */
  uint8_t *rows;               /* scratch of 16 * width + 8 * GRATIS_MOST_TAPS bytes */
  uint32_t *spread;            /* scratch of (height + 4) * (width + 4) */
} canvas;

/* Of a quantisation table, by row: what coefficients 0 to 3 of blocks beside each other, and 4 to 7, are multiplied by, and
 * what is added away from zero before the fraction is cut off. */
typedef struct { float inverse[8][2][16], half[8][2][16]; } quantiser;

/* An image that is being encoded, a row of MCUs at a time: planes of bytes, their coefficients, then symbols. A symbol has
 * the bits of its value from bit 16 on; bits 8-9: the table, 2 * chroma + AC; bits 4-7: zeros before it; 0-3: the value's
 * size. */
typedef struct {
  const uint8_t *pixels;
  int width, height, channels, columns; /* columns: MCUs across */
  int stride;                /* of luma: whole vectors of pixels */
  quantiser quant[2];        /* of luma, of chroma */
  uint32_t *row;             /* [stride] */
  uint8_t *luma, *chroma[2]; /* [16][stride], [8][stride / 2] */
  uint8_t *whole[2];         /* [2][stride]: chroma of two rows, not yet halved */
  int16_t *coefficients[3];  /* [2][stride / 8][64], [stride / 16][64] */
  uint32_t counts[4 * 256];  /* of symbols, by table */
} encoding;

/* A sample's views as bytes in the output's layout, until those are finished that are mixed of them. */
typedef struct {
  int64_t sample;
  int as_itself, as_before; /* what it is still needed for */
  uint8_t *pixels;          /* [views][3 * height * width] */
  int64_t capacity;
} pending;

/* A sample that is mixed while its rows are made. */
typedef struct {
  const gratis_job *job; /* NULL: none is */
  const pending *itself;
  pending *before;
  int view, done; /* which of its views; rows that are mixed */
} blending;

#define PENDING 5 /* in the usual order two do; a lane that stays behind needs more. The last one: of other threads */

/* What code for one instruction set does. */
typedef struct {
  int lanes;
  int outputs, window; /* of a group of weights: how many, of how many bytes at most. 0: no groups */
  int (*run)(lane *lanes, int count); /* decodes until one has finished its chunk, and says which */
  void (*begin_block)(lane *);        /* of the first block of a chunk */
  void (*transform)(const image *, int16_t *coefficients, int row, int column);
  void (*convert)(const image *, int y, int x, int width, uint8_t *const rgb[3]);
  void (*finish)(const gratis_job *, int64_t view, int y, int height, int width, const uint8_t *const rgb[3], uint8_t *scratch);
  void (*across)(const weights *, const uint8_t *const in[3], uint8_t *const out[3]);
  void (*down)(const weights *, int y, const uint8_t *rows, int64_t stride, uint8_t *out, int width);
  void (*blend)(const gratis_job *, int64_t view, int64_t before, const uint8_t *itself, const uint8_t *other, int from, int to);
  void (*mix)(void *to, const void *other, int64_t n, int64_t ahead, float lam, float rest, int type);
  void (*erase)(const gratis_erasing *, int64_t image);
  void (*operate)(canvas *, int op, const float *values);
  uint32_t *(*encode_row)(encoding *, int row, uint32_t *symbols);
  uint8_t *(*put_symbols)(const uint32_t *symbols, const uint32_t *end, const uint64_t *codes, uint8_t *out);
  void (*fence)(void);
} kernels;

struct gratis_context {
  const kernels *kernels;
  lane lanes[LANES];
  lane_rest rests[LANES];
  image *images[LANES];
  uint8_t *rows;      /* scratch: rows of RGB, one of a resized crop, and what finish needs */
  view_state *views;  /* of an image */
  uint8_t *resampled; /* rows of resized crops: resampled across, not yet down */
  int64_t rows_capacity, views_capacity, resampled_capacity;
  weights weights[CACHED_WEIGHTS];
  canvas canvas;
  uint8_t *canvas_memory, *kept;
  int64_t canvas_capacity, kept_capacity;
  encoding encoding;
  uint8_t *encoding_memory, *symbols, *file;
  int64_t encoding_capacity, symbols_capacity, file_capacity;
  int64_t taken, taken_end; /* samples of the job that this thread has taken: [taken, taken_end) */
  pending pending[PENDING];
  blending blending;
  int waits; /* whether rows that are made are those of a view that waits */
};

extern const kernels gratis_kernels_portable, gratis_kernels_avx2, gratis_kernels_avx512;
extern const uint8_t gratis_place[256];
extern const uint16_t gratis_natural[64]; /* the places of a block's coefficients, in zigzag order, in the order of rows */

/* engine.c */
const kernels *gratis_kernels_of(int isa); /* NULL: there is no code for it */

/* header.c */
int gratis_read_header(const uint8_t *data, int64_t size, header *head);
int gratis_build_tables(image *);
int gratis_unstuff(image *, const uint8_t *data, int64_t size);
void *gratis_grow(void *memory, int64_t *capacity, int64_t size);

/* views.c */
/* The part of an image that a view is made of: a gratis_status. */
int gratis_part_of_view(gratis_context *, const gratis_job *, int64_t view, area *part);
/* All views of an image whose rows are decoded: a gratis_status. */
int gratis_make_views(gratis_context *, const gratis_job *, const image *);

/* augment.c */
/* The same with their programs, if there are any. */
int gratis_finish_image(gratis_context *, const gratis_job *, image *);

/* partners.c */
int64_t gratis_pending_bytes(const gratis_job *); /* of a view */
/* Room for a sample's pixels, NULL if there is no memory. Its views, one after the other, are mixed while they are made if
 * the one before it is there: `gratis_blend_rows`, when rows below `end` are made. */
pending *gratis_begin_pending(gratis_context *, const gratis_job *, int64_t sample);
void gratis_blend_rows(gratis_context *, int end);
/* All views are there: mixes what else can be. Or one could not be made. */
void gratis_end_pending(gratis_context *, const gratis_job *, pending *, int status);
/* Leaves to other threads what waits for theirs. */
void gratis_leave_pending(gratis_context *, const gratis_job *);

/* weights.c */
int gratis_make_weights(weights *, const resampling *, const kernels *);
void gratis_drop_weights(weights *); /* of what make_weights made, or zeros */
#endif
