// Vectors of SEPCONV_VECTOR_BYTES bytes by GCC's and clang's vector extensions, inside the namespace of one instruction
// set. No header of the C++ library may be included by the .inl files: an inline function compiled here with AVX-512
// flags could become the one copy that the linker keeps for every processor.
#include <stddef.h>
#include <stdint.h>

#define SEPCONV_JOIN_(a, b) a##b
#define SEPCONV_JOIN(a, b) SEPCONV_JOIN_(a, b)

typedef float Vector __attribute__((vector_size(SEPCONV_VECTOR_BYTES)));
typedef float VectorUnaligned __attribute__((vector_size(SEPCONV_VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t VectorInt __attribute__((vector_size(SEPCONV_VECTOR_BYTES)));
enum { kWidth = SEPCONV_VECTOR_BYTES / 4 };

static inline Vector load(const float* p) { return *reinterpret_cast<const VectorUnaligned*>(p); }
static inline void store(float* p, Vector v) { *reinterpret_cast<VectorUnaligned*>(p) = v; }
static inline Vector broadcast(float x) { return x - Vector{}; }
// b where a is NaN: callers order the operands for that. GCC 12 compares and selects where AVX-512 has one instruction.
static inline Vector maximum(Vector a, Vector b) {
#if defined(__AVX512F__) && SEPCONV_VECTOR_BYTES == 64
  return (Vector)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}
static inline Vector minimum(Vector a, Vector b) {
#if defined(__AVX512F__) && SEPCONV_VECTOR_BYTES == 64
  return (Vector)_mm512_min_ps((__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}
// x, from now on in a register: left to itself the compiler loads a value anew for every multiply-add that takes it.
static inline Vector inRegister(Vector x) {
#if defined(__AVX512F__) && SEPCONV_VECTOR_BYTES == 64
  asm("" : "+v"(x));
#elif defined(__SSE2__) && (SEPCONV_VECTOR_BYTES == 16 || (defined(__AVX__) && SEPCONV_VECTOR_BYTES == 32))
  asm("" : "+x"(x));
#elif defined(__aarch64__) && SEPCONV_VECTOR_BYTES == 16
  asm("" : "+w"(x));
#endif
  return x;
}

// The first n < kWidth floats; the rest is zero and not read (not written).
static inline VectorInt firstLanes(int n) {
  VectorInt lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = i;
  return lane < n;
}
static inline Vector loadPartial(const float* p, int n) {
#if defined(__AVX512F__) && SEPCONV_VECTOR_BYTES == 64
  return (Vector)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#elif defined(__AVX__) && SEPCONV_VECTOR_BYTES == 32
  return (Vector)_mm256_maskload_ps(p, (__m256i)firstLanes(n));
#else
  Vector v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}
static inline void storePartial(float* p, Vector v, int n) {
#if defined(__AVX512F__) && SEPCONV_VECTOR_BYTES == 64
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#elif defined(__AVX__) && SEPCONV_VECTOR_BYTES == 32
  _mm256_maskstore_ps(p, (__m256i)firstLanes(n), (__m256)v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}
