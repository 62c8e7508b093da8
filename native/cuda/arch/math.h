// Arithmetic that has an instruction of its own, and bfloat16, which is stored but not computed with.
#pragma once
#include <math.h>

#include "platform.h"

namespace sepconv::arch {

// a * b + c, rounded once. The emulator rounds twice: a call of fmaf per product would make it five times slower.
__device__ __forceinline__ float fma(float a, float b, float c) {
#if defined(__CUDACC__)
  return __fmaf_rn(a, b, c);
#else
  return a * b + c;
#endif
}

// The high 32 of the 64 bits of a * b.
__device__ __forceinline__ uint32_t multiplyHigh(uint32_t a, uint32_t b) {
#if defined(__CUDACC__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
#endif
}

// Nearest int32, ties to even, saturating; NaN becomes 0 (cvt.rni.s32.f32).
__device__ __forceinline__ int32_t roundToInt(float x) {
#if defined(__CUDACC__)
  return __float2int_rn(x);
#else
  if (x != x) return 0;
  if (x >= 2147483648.f) return INT32_MAX;
  return x < -2147483648.f ? INT32_MIN : static_cast<int32_t>(nearbyintf(x));
#endif
}

__device__ __forceinline__ uint32_t floatBits(float x) {
#if defined(__CUDACC__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
#endif
}

__device__ __forceinline__ float bitsFloat(uint32_t bits) {
#if defined(__CUDACC__)
  return __uint_as_float(bits);
#else
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
#endif
}

// The upper half of a float32.
struct Bfloat16 {
  uint16_t bits;
};

__device__ __forceinline__ float toFloat(Bfloat16 x) { return bitsFloat(uint32_t{x.bits} << 16); }

// Nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ Bfloat16 toBfloat16(float x) {
#if defined(__CUDACC__)
  Bfloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
#else
  const uint32_t bits = floatBits(x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}

// max(x, 0); NaN stays NaN.
__device__ __forceinline__ float reluKeepingNaN(float x) {
#if defined(__CUDACC__)
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(0.f));
  return result;
#else
  return x > 0.f || x != x ? x : 0.f;
#endif
}

}  // namespace sepconv::arch
