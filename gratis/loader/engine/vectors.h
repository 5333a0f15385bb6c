/* Vectors of one instruction set under common names. Operators + - * & >> work on them as they are; what follows is the
 * rest. "lo" and "hi" interleave the lower and upper halves of each 128 bits, as x86 does. */
#define INLINE static inline __attribute__((always_inline))
#define VECTOR(type, name) typedef type name __attribute__((vector_size(BYTES), aligned(BYTES), may_alias))

#if defined(GRATIS_ISA_AVX512)
#include <immintrin.h>
#define BYTES 64
#elif defined(GRATIS_ISA_AVX2)
#include <immintrin.h>
#define BYTES 32
#else
#define BYTES 16
#endif
VECTOR(int8_t, v8);
VECTOR(int16_t, v16);
VECTOR(uint16_t, u16);
VECTOR(int32_t, v32);
VECTOR(uint32_t, u32);
VECTOR(float, vf);
enum { QUADS = BYTES / 16, WORDS = BYTES / 2, FLOATS = BYTES / 4 };

#define SPLAT(type, value) ((type){0} + (value))

#if defined(__clang__)
#define SHUFFLE(mask, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(mask, a, b, ...) __builtin_shuffle(a, b, (mask){__VA_ARGS__})
#endif
#define SHUFFLE_FLOATS(v, ...) SHUFFLE(v32, v, v, __VA_ARGS__)

#if defined(GRATIS_ISA_AVX512)
typedef __m512i raw;
#define OP2(name, type, result, intrinsic) \
  INLINE result name(type a, type b) { return (result)intrinsic((raw)a, (raw)b); }
OP2(lo8, v8, v8, _mm512_unpacklo_epi8)
OP2(hi8, v8, v8, _mm512_unpackhi_epi8)
OP2(lo16, v16, v16, _mm512_unpacklo_epi16)
OP2(hi16, v16, v16, _mm512_unpackhi_epi16)
OP2(lo32, v32, v32, _mm512_unpacklo_epi32)
OP2(hi32, v32, v32, _mm512_unpackhi_epi32)
OP2(lo64, v32, v32, _mm512_unpacklo_epi64)
OP2(hi64, v32, v32, _mm512_unpackhi_epi64)
OP2(madd, v16, v32, _mm512_madd_epi16)
OP2(mul_round, v16, v16, _mm512_mulhrs_epi16) /* (a * b + (1 << 14)) >> 15 */
OP2(smaller, v16, v16, _mm512_min_epi16)
OP2(larger, v16, v16, _mm512_max_epi16)
OP2(pack32, v32, v16, _mm512_packs_epi32)
OP2(pack16, v16, v8, _mm512_packs_epi16)
INLINE v16 bytes(const uint8_t *p) { return (v16)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)p)); }
INLINE void put_bytes(uint8_t *p, v16 a) {
  _mm256_storeu_si256((void *)p, _mm512_cvtusepi16_epi8(_mm512_max_epi16((raw)a, _mm512_setzero_si512())));
}
/* Of each of four blocks two rows of 8 bytes, which lie beside those of the other blocks. */
INLINE void put_rows(v8 a, uint8_t *one, uint8_t *two) {
  raw b = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), (raw)a);
  _mm256_storeu_si256((void *)one, _mm512_castsi512_si256(b));
  _mm256_storeu_si256((void *)two, _mm512_extracti64x4_epi64(b, 1));
}
INLINE vf pixels(const uint8_t *p) { return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p))); }
INLINE vf fused(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE void put_floats(void *p, vf a, int stream) {
  if (stream) _mm512_stream_ps(p, (__m512)a);
  else _mm512_storeu_ps(p, (__m512)a);
}
INLINE void put_halves(void *p, u32 a, int stream) {
  __m256i b = _mm512_cvtepi32_epi16((raw)a);
  if (stream) _mm256_stream_si256(p, b);
  else _mm256_storeu_si256(p, b);
}
INLINE u32 float16(vf a) { return (u32)_mm512_cvtepu16_epi32(_mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT)); }
INLINE vf as_float16(vf a) { return (vf)_mm512_cvtph_ps(_mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT)); }

#elif defined(GRATIS_ISA_AVX2)
typedef __m256i raw;
#define OP2(name, type, result, intrinsic) \
  INLINE result name(type a, type b) { return (result)intrinsic((raw)a, (raw)b); }
OP2(lo8, v8, v8, _mm256_unpacklo_epi8)
OP2(hi8, v8, v8, _mm256_unpackhi_epi8)
OP2(lo16, v16, v16, _mm256_unpacklo_epi16)
OP2(hi16, v16, v16, _mm256_unpackhi_epi16)
OP2(lo32, v32, v32, _mm256_unpacklo_epi32)
OP2(hi32, v32, v32, _mm256_unpackhi_epi32)
OP2(lo64, v32, v32, _mm256_unpacklo_epi64)
OP2(hi64, v32, v32, _mm256_unpackhi_epi64)
OP2(madd, v16, v32, _mm256_madd_epi16)
OP2(mul_round, v16, v16, _mm256_mulhrs_epi16)
OP2(smaller, v16, v16, _mm256_min_epi16)
OP2(larger, v16, v16, _mm256_max_epi16)
OP2(pack32, v32, v16, _mm256_packs_epi32)
OP2(pack16, v16, v8, _mm256_packs_epi16)
INLINE v16 bytes(const uint8_t *p) { return (v16)_mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)p)); }
INLINE void put_bytes(uint8_t *p, v16 a) {
  raw b = _mm256_permute4x64_epi64(_mm256_packus_epi16((raw)a, (raw)a), 0x08);
  _mm_storeu_si128((void *)p, _mm256_castsi256_si128(b));
}
INLINE void put_rows(v8 a, uint8_t *one, uint8_t *two) {
  raw b = _mm256_permute4x64_epi64((raw)a, 0xD8);
  _mm_storeu_si128((void *)one, _mm256_castsi256_si128(b));
  _mm_storeu_si128((void *)two, _mm256_extracti128_si256(b, 1));
}
INLINE vf pixels(const uint8_t *p) { return (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p))); }
INLINE vf fused(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE void put_floats(void *p, vf a, int stream) {
  if (stream) _mm256_stream_ps(p, (__m256)a);
  else _mm256_storeu_ps(p, (__m256)a);
}
INLINE void put_halves(void *p, u32 a, int stream) {
  __m128i b = _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32((raw)a, (raw)a), 0x08));
  if (stream) _mm_stream_si128(p, b);
  else _mm_storeu_si128(p, b);
}
INLINE u32 float16(vf a) { return (u32)_mm256_cvtepu16_epi32(_mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT)); }
INLINE vf as_float16(vf a) { return (vf)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT)); }

#else
#define SHUFFLE2(name, type, ...) \
  INLINE type name(type a, type b) { return SHUFFLE(type, a, b, __VA_ARGS__); }
SHUFFLE2(lo8, v8, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
SHUFFLE2(hi8, v8, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
SHUFFLE2(lo16, v16, 0, 8, 1, 9, 2, 10, 3, 11)
SHUFFLE2(hi16, v16, 4, 12, 5, 13, 6, 14, 7, 15)
SHUFFLE2(lo32, v32, 0, 4, 1, 5)
SHUFFLE2(hi32, v32, 2, 6, 3, 7)
SHUFFLE2(lo64, v32, 0, 1, 4, 5)
SHUFFLE2(hi64, v32, 2, 3, 6, 7)
INLINE v32 even(v16 a) { return (v32)((u32)a << 16) >> 16; }
INLINE v32 odd(v16 a) { return (v32)a >> 16; }
INLINE v32 madd(v16 a, v16 b) { return (v32)((u32)(even(a) * even(b)) + (u32)(odd(a) * odd(b))); }
INLINE v16 mul_round(v16 a, v16 b) {
  u32 low = (u32)((even(a) * even(b) + (1 << 14)) >> 15), high = (u32)((odd(a) * odd(b) + (1 << 14)) >> 15);
  return (v16)((low & 0xFFFFu) | high << 16);
}
INLINE v16 smaller(v16 a, v16 b) {
  v16 first = a < b;
  return (a & first) | (b & ~first);
}
INLINE v16 larger(v16 a, v16 b) {
  v16 first = a > b;
  return (a & first) | (b & ~first);
}
INLINE v32 clamp32(v32 a, int low, int high) {
  v32 below = a < low, above = a > high;
  return (a & ~below & ~above) | (below & low) | (above & high);
}
INLINE v16 clamp16(v16 a, short low, short high) { return smaller(larger(a, SPLAT(v16, low)), SPLAT(v16, high)); }
INLINE v16 pack32(v32 a, v32 b) {
  v16 x = (v16)clamp32(a, -32768, 32767), y = (v16)clamp32(b, -32768, 32767);
  return SHUFFLE(v16, x, y, 0, 2, 4, 6, 8, 10, 12, 14);
}
INLINE v8 pack16(v16 a, v16 b) {
  v8 x = (v8)clamp16(a, -128, 127), y = (v8)clamp16(b, -128, 127);
  return SHUFFLE(v8, x, y, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
INLINE v16 bytes(const uint8_t *p) {
  v8 a = {0};
  memcpy(&a, p, 8);
  return (v16)lo8(a, (v8){0});
}
INLINE void put_bytes(uint8_t *p, v16 a) {
  v8 x = (v8)clamp16(a, 0, 255);
  v8 y = SHUFFLE(v8, x, x, 0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  memcpy(p, &y, 8);
}
INLINE void put_rows(v8 a, uint8_t *one, uint8_t *two) {
  memcpy(one, &a, 8);
  memcpy(two, (const char *)&a + 8, 8);
}
INLINE vf pixels(const uint8_t *p) { return (vf){p[0], p[1], p[2], p[3]}; }
INLINE vf fused(vf a, vf b, vf c) {
  vf r;
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  for (int i = 0; i < 4; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
#else /* 8 bits times 24 are exact in double, and so is the sum unless one addend is 2**21 times the other */
  for (int i = 0; i < 4; i++) r[i] = (float)((double)a[i] * b[i] + c[i]);
#endif
  return r;
}
INLINE void put_floats(void *p, vf a, int stream) {
  (void)stream;
  memcpy(p, &a, 16);
}
INLINE void put_halves(void *p, u32 a, int stream) {
  (void)stream;
  uint16_t b[4] = {(uint16_t)a[0], (uint16_t)a[1], (uint16_t)a[2], (uint16_t)a[3]};
  memcpy(p, b, 8);
}
INLINE u32 float16(vf a) { /* to the nearest, ties to even; subnormals by adding 1/2, where float32 has their last place */
  u32 bits = (u32)a, sign = bits >> 16 & 0x8000u, size = bits & 0x7FFFFFFFu;
  u32 normal = (size - 0x38000000u + 0xFFFu + (size >> 13 & 1u)) >> 13;
  u32 small = (u32)((vf)size + 0.5f) - 0x3F000000u;
  u32 is_small = (u32)(size < SPLAT(u32, 0x38800000u)), is_huge = (u32)(size >= SPLAT(u32, 0x477FF000u));
  u32 value = (normal & ~is_small) | (small & is_small);
  value = (value & ~is_huge) | (is_huge & 0x7C00u);
  return value | sign;
}
#endif

/* With 16 bits more: to the nearest, ties to even; not for NaNs with payloads. */
INLINE u32 long_bfloat16(vf a) {
#if defined(GRATIS_ISA_AVX512) /* plus 0x7FFF and the last bit that is kept, as minus the complement of 0x7FFE and that bit */
  raw bits = (raw)a, last = _mm512_srli_epi32(bits, 16);
  return (u32)_mm512_sub_epi32(bits, _mm512_ternarylogic_epi32(last, _mm512_set1_epi32(1), _mm512_set1_epi32(0x7FFE), 0x15));
#else
  u32 bits = (u32)a;
  return bits + 0x7FFFu + (bits >> 16 & 1u);
#endif
}

INLINE u32 bfloat16(vf a) { return long_bfloat16(a) >> 16; }
