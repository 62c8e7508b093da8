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
  // y[c] += x[c] * factor
  void (*accumulate)(const float* x, ptrdiff_t c, float factor, float* y);
  // targets[tap][c] += gradient[c] at the first tap with the greatest x[tap][c] (the first NaN where there is one); a
  // target may be null.
  void (*maximumGradient)(const float* const* taps, float* const* targets, ptrdiff_t count, const float* gradient,
                          ptrdiff_t c);
};

}  // namespace sepconv::cpu
