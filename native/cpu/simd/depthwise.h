// Depthwise convolution of one run of output pixels of one row, and its filter gradient: the primitives under the
// depthwise kernels and under the fused separable ones. Activations are NHWC, a filter is [kh, kw, c, multiplier],
// output channel = c * multiplier + j. Any strides, dilations and multipliers; a kernel 3 or 5 wide at stride 1 keeps
// its filter row and its sums in registers while the input slides past, the others read each input from L1 once per tap
// (some 80 % of that rate).
#pragma once
#include <cstddef>
#include <cstdint>

#include "upcoming.h"

namespace sepconv::cpu {

// What is fixed for all runs of a call. Tap (i, j) of output pixel (row, column) reads input pixel
//   (row * strideHeight - top + i * dilationHeight, column * strideWidth - left + j * dilationWidth)
// and contributes nothing where that lies outside [0, height) x [0, width). top and left may be negative. Distances are
// in floats; those of the filter may be negative (a rotated kernel) or skip taps (one phase of a strided input
// gradient).
struct DepthwiseWindow {
  ptrdiff_t height, width;
  ptrdiff_t rowDistance, pixelDistance;  // between input rows, between input pixels
  ptrdiff_t kernelHeight, kernelWidth;   // zero is allowed: a sum over no taps
  ptrdiff_t strideHeight, strideWidth, dilationHeight, dilationWidth;
  ptrdiff_t top, left;
  ptrdiff_t multiplier;
  ptrdiff_t filterRowDistance, filterTapDistance;  // between taps below and beside each other
};

// Values per channel, each starting at the first channel of the run; null where absent. Activations: values of
// sepconv::Activation.
struct DepthwiseOperands {
  const float* filter;
  const float*
      inputScale;  // prologue, per input channel: inputActivation(x * inputScale + inputShift), zeros around it
  const float* inputShift;
  int inputActivation;
  const float* scale;  // epilogue, per output channel: activation(sum * scale + shift + residual)
  const float* shift;
  int activation;
  const float* gateScale;  // then, per output channel, times gateActivation'(gate * gateScale + gateShift)
  const float* gateShift;
  int gateActivation;
};

// Output pixels [column, column + pixels) of output row `row`. Pointers are at the first channel of the run: x at input
// pixel (0, 0); y, residual and gate at the first output pixel, their pixels yDistance, residualDistance, gateDistance
// floats apart. `channels` counts output channels, a multiple of the multiplier. y must not overlap any input: channels
// that do not fill a vector are computed in a last vector that overlaps the one before.
struct DepthwiseRun {
  const float* x;
  float* y;
  const float* residual;  // null: none
  const float* gate;      // null: none
  ptrdiff_t yDistance, residualDistance, gateDistance;
  ptrdiff_t row, column, pixels, channels;
  // Fetched evenly over the run.
  const Upcoming* upcoming = nullptr;
  ptrdiff_t upcomingCount = 0;
};

// Adds the products of output pixels [column, column + pixels) of output row `row` with their inputs to `sums`, laid
// out [kernelHeight][kernelWidth][sumDistance] with `channels` (output channels) in use.
struct DepthwiseFilterGradientRun {
  const float* x;         // as in DepthwiseRun
  const float* gradient;  // of the first output pixel
  float* sums;
  ptrdiff_t gradientDistance, sumDistance;
  ptrdiff_t row, column, pixels, channels;
};

struct DepthwiseTable {
  void (*run)(const DepthwiseWindow& window, const DepthwiseOperands& operands, const DepthwiseRun& run);
  // Uses the prologue of the operands alone.
  void (*filterGradient)(const DepthwiseWindow& window, const DepthwiseOperands& operands,
                         const DepthwiseFilterGradientRun& run);
  // y = the prologue of x: `pixels` pixels of `channels` channels. For prologues that are dearer than a pass over
  // memory: with elu, `run` evaluates the exponential anew for every tap, so kernels stage their input with this
  // instead.
  void (*prologue)(const DepthwiseOperands& operands, const float* x, ptrdiff_t xDistance, float* y,
                   ptrdiff_t yDistance, ptrdiff_t pixels, ptrdiff_t channels);
  // y[channel] = the gate of (sum over j of x[channel * multiplier + j]): the input gradient of a multiplier above 1.
  // `channels` counts y's.
  void (*sumMultiplier)(const DepthwiseOperands& operands, const float* x, ptrdiff_t xDistance, float* y,
                        ptrdiff_t yDistance, const float* gate, ptrdiff_t gateDistance, ptrdiff_t pixels,
                        ptrdiff_t channels, ptrdiff_t multiplier);
};

}  // namespace sepconv::cpu
