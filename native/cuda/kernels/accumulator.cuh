// Sums of many float32 whose rounding errors do not grow with their number: the sum, and what its additions lost
// (Neumaier 1974). Four operations more than a plain sum, hidden behind memory.
#pragma once
#include <math.h>

#include "../arch/platform.h"

namespace sepconv::cuda {

struct Accumulator {
  float sum, lost;

  __device__ __forceinline__ void add(float value) {
    const float next = sum + value;
    // An infinite or NaN sum has lost nothing that would help.
    const float error = fabsf(sum) >= fabsf(value) ? (sum - next) + value : (value - next) + sum;
    lost += next - next == 0.f ? error : 0.f;
    sum = next;
  }
  __device__ __forceinline__ void add(const Accumulator& other) {
    add(other.sum);
    lost += other.lost;
  }
  __device__ __forceinline__ float value() const { return sum + lost; }
};

}  // namespace sepconv::cuda
