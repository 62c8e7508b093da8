// Count, mean and sum of squared deviations of some values (Welford; merged after Chan et al.): free of cancellation.
#pragma once
#include "../arch/math.h"
#include "../arch/sync.h"

namespace sepconv::cuda {

struct Moments {
  float count, mean, squares;
};

__device__ __forceinline__ void add(Moments& m, float value) {
  m.count += 1.f;
  const float delta = value - m.mean;
  m.mean += delta / m.count;
  m.squares = arch::fma(delta, value - m.mean, m.squares);
}

__device__ __forceinline__ Moments merge(const Moments& a, const Moments& b) {
  const float count = a.count + b.count;
  if (count == 0.f) return a;
  const float delta = b.mean - a.mean, share = b.count / count;
  return {count, arch::fma(delta, share, a.mean), a.squares + b.squares + delta * delta * a.count * share};
}

// Merged with those of lane ^ mask; both lanes get the same bits.
__device__ __forceinline__ Moments mergeAcross(const Moments& m, int mask) {
  const Moments other{arch::shuffleXor(m.count, mask), arch::shuffleXor(m.mean, mask),
                      arch::shuffleXor(m.squares, mask)};
  return arch::threadIndex() & mask ? merge(other, m) : merge(m, other);
}

}  // namespace sepconv::cuda
