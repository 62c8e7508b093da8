// What loops over contiguous floats share: whole vectors, then the rest.
#pragma once

namespace elementwise {

inline Vector squareRoot(Vector x) {
#if defined(__AVX512F__) && SEPCONV_VECTOR_BYTES == 64
  return (Vector)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__) && SEPCONV_VECTOR_BYTES == 32
  return (Vector)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__) && SEPCONV_VECTOR_BYTES == 16
  return (Vector)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < kWidth; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// Calls body(i, n) for whole vectors (n == kWidth) and once for the rest.
template <class Body>
inline void forEachVector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) body(i, kWidth);
  if (i < n) body(i, static_cast<int>(n - i));
}
inline Vector read(const float* p, int n) { return n == kWidth ? load(p) : loadPartial(p, n); }
inline void write(float* p, Vector v, int n) {
  if (n == kWidth)
    store(p, v);
  else
    storePartial(p, v, n);
}

}  // namespace elementwise
