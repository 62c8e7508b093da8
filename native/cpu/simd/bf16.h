// bfloat16 storage with float32 arithmetic: products, depthwise convolution, pooling and conversion. Widening is a
// shift, so every instruction set has these loops; AVX512-BF16 multiplies pairs (vdpbf16ps: four multiply-adds per lane
// and cycle where an FMA has two) and rounds in one instruction. bfloat16 is uint16_t here, its bits.
#pragma once
#include <cstddef>
#include <cstdint>

#include "depthwise.h"

namespace sepconv::cpu {

// y = activation(sum * scale[column] + shift[column] + residual), then times gateActivation'(gate), rounded once. Null:
// 1, 0, 0 and no gate. residual and gate are laid out as the output.
struct Bf16Epilogue {
  const float* scale;
  const float* shift;
  const uint16_t* residual;
  const uint16_t* gate;
  int activation;
  int gateActivation;
};

// c[row, column] = epilogue(sum over k of a[row, k] * b[k, column]) in pairs of k: a's rows are `pairs` 32-bit words,
// aRow elements apart; b lies in panels [ceil(columns / panel)][pairs][panel][2], zero beyond columns. Where k is odd
// the last element of both is zero.
struct Bf16Product {
  const uint16_t* a;
  ptrdiff_t aRow;
  ptrdiff_t pairs;
  const uint16_t* b;
  uint16_t* c;
  ptrdiff_t cRow;
  ptrdiff_t rows, columns;
  Bf16Epilogue epilogue;  // pointers to the values of c's first element
};

// As DepthwiseOperands and DepthwiseRun (depthwise.h); the vectors per channel are float32.
struct Bf16DepthwiseOperands {
  const uint16_t* filter;
  const float* inputScale;
  const float* inputShift;
  int inputActivation;
  const float* scale;
  const float* shift;
  int activation;
  int gateActivation;
  const float* gateScale;
  const float* gateShift;
};
struct Bf16DepthwiseRun {
  const uint16_t* x;
  uint16_t* y;
  const uint16_t* residual;
  const uint16_t* gate;
  ptrdiff_t yDistance, residualDistance, gateDistance;
  ptrdiff_t row, column, pixels, channels;
};

struct Bf16FilterGradientRun {
  const uint16_t* x;
  const uint16_t* gradient;  // of the first output pixel
  float* sums;
  ptrdiff_t gradientDistance, sumDistance;
  ptrdiff_t row, column, pixels, channels;
};

// As OuterProduct (gemm.h): a in panels [ceil(rows / aPanel)][pairs][aPanel][2], b in panels [ceil(columns /
// panel)][pairs][panel][2].
struct Bf16OuterProduct {
  const uint16_t* a;
  ptrdiff_t aPanel;  // 1 .. Bf16Table::rows
  const uint16_t* b;
  ptrdiff_t pairs;
  float* c;
  ptrdiff_t cRow;
  ptrdiff_t rows, columns;
  bool accumulate;
};

struct Bf16Table {
  bool pairs;  // whether products are by instructions on pairs
  int rows;    // most rows of a product's tile; its columns are GemmTable::panel
  void (*product)(const Bf16Product& product);
  // packed[k / 2][width][2] = source[k * row + j] for j < columns, then zeros; activated.
  void (*packColumns)(const uint16_t* source, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t columns, ptrdiff_t width,
                      int activation, uint16_t* packed);
  // packed[k / 2][panel][2] = source[j * row + k]: the panel of a transposed filter.
  void (*packTransposed)(const uint16_t* source, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t columns, uint16_t* packed);
  // target = activation(source); n elements.
  void (*activate)(const uint16_t* source, uint16_t* target, ptrdiff_t n, int activation);
  void (*depthwise)(const DepthwiseWindow& window, const Bf16DepthwiseOperands& operands, const Bf16DepthwiseRun& run);
  // y[c] = max over the taps of x[tap][c] (+ residual[c]); a NaN among them wins. At least one tap.
  void (*maximum)(const uint16_t* const* taps, ptrdiff_t count, const uint16_t* residual, ptrdiff_t c, uint16_t* y);
  // Mean and sum of squared deviations from it of every column.
  void (*columnMoments)(const uint16_t* source, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t columns, float* mean,
                        float* deviations);
  // sums[kh][kw][sumDistance] += the products of a run's gradients with their inputs, after the operands' prologue;
  // stride and dilation are any, the multiplier is 1.
  void (*depthwiseFilterGradient)(const DepthwiseWindow& window, const Bf16DepthwiseOperands& operands,
                                  const Bf16FilterGradientRun& run);
  // c[row, column] (+)= sum over k of a[k, row] * b[k, column], both packed in pairs of k: a in panels of aPanel rows.
  void (*outerProduct)(const Bf16OuterProduct& product);
  // Batch norm over [rows, c], as NormalisationTable.
  void (*scaleShift)(const uint16_t* x, const float* scale, const float* shift, const uint16_t* residual,
                     int activation, ptrdiff_t rows, ptrdiff_t c, uint16_t* y);
  void (*gradientSums)(const uint16_t* dy, const uint16_t* x, const float* mean, ptrdiff_t rows, ptrdiff_t c,
                       float* sum, float* product);
  void (*gradientApply)(const uint16_t* dy, const uint16_t* x, const float* mean, const float* a, const float* b,
                        const float* d, ptrdiff_t rows, ptrdiff_t c, uint16_t* dx);
  void (*widen)(const uint16_t* source, float* target, ptrdiff_t n);
  // To nearest, ties to even; NaN stays NaN.
  void (*narrow)(const float* source, uint16_t* target, ptrdiff_t n);
};

}  // namespace sepconv::cpu
