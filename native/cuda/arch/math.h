// Arithmetic that has an instruction of its own.
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

}  // namespace sepconv::arch
