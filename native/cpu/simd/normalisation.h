// Passes over rows of channels, [rows, c]: the pieces of batch normalisation that depend on the instruction set.
#pragma once
#include <cstddef>

namespace sepconv::cpu {

struct NormalisationTable {
  // mean[c] and sum of squared deviations m2[c] of one block of rows (two passes over a block that fits the L2 cache).
  void (*moments)(const float* x, ptrdiff_t rows, ptrdiff_t c, float* mean, float* m2);
  // y = activation(x * scale + shift + residual); scale, shift and residual may be null. y may be x.
  void (*scaleShift)(const float* x, const float* scale, const float* shift, const float* residual, int activation,
                     ptrdiff_t rows, ptrdiff_t c, float* y);
  // sum[c] = sum of dy, product[c] = sum of dy * (x - mean) over one block of rows.
  void (*gradientSums)(const float* dy, const float* x, const float* mean, ptrdiff_t rows, ptrdiff_t c, float* sum,
                       float* product);
  // dx = a[c] * dy + b[c] * (x - mean[c]) + d[c]. dx may be dy.
  void (*gradientApply)(const float* dy, const float* x, const float* mean, const float* a, const float* b,
                        const float* d, ptrdiff_t rows, ptrdiff_t c, float* dx);
};

}  // namespace sepconv::cpu
