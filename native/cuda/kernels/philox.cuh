// Philox4x32-10 (Salmon et al. 2011): four words as a function of a counter and a key, the same bits as
// src/ops/philox.ts.
#pragma once
#include "../arch/math.h"
#include "../arch/memory.h"

namespace sepconv::cuda {

__device__ __forceinline__ arch::Vec<uint32_t, 4> philox(arch::Vec<uint32_t, 4> counter, uint32_t key0, uint32_t key1) {
  ARCH_UNROLL
  for (int round = 0; round < 10; ++round) {
    constexpr uint32_t factor0 = 0xd2511f53, factor1 = 0xcd9e8d57;
    const uint32_t high0 = arch::multiplyHigh(counter[0], factor0), high1 = arch::multiplyHigh(counter[2], factor1);
    counter = {high1 ^ counter[1] ^ key0, counter[2] * factor1, high0 ^ counter[3] ^ key1, counter[0] * factor0};
    key0 += 0x9e3779b9;
    key1 += 0xbb67ae85;
  }
  return counter;
}

}  // namespace sepconv::cuda
