// Rows of channels under a pooling window: what depends on the instruction set.
#pragma once
#include <cstddef>

namespace sepconv::cpu {

struct PoolingTable {
  // y[c] = max over the taps of x[tap][c] (+ residual[c]); a NaN among them wins. `taps` are the valid ones, at least
  // one.
  void (*maximum)(const float* const* taps, ptrdiff_t count, const float* residual, ptrdiff_t c, float* y);
  // y[c] = factor * sum over the taps of x[tap][c].
  void (*average)(const float* const* taps, ptrdiff_t count, float factor, ptrdiff_t c, float* y);
  // y[c] += x[c]
  void (*accumulate)(const float* x, ptrdiff_t c, float factor, float* y);
};

}  // namespace sepconv::cpu
