// The left operand of separableConv2d's product: the depthwise result, computed where it is needed.
#pragma once
#include "gemm.cuh"

namespace sepconv::cuda {

// KERNEL 3: 3x3 taps without dilation, unrolled; 0: any window, at run time.
template <int KERNEL>
struct SeparableOperand {
  static constexpr bool depthContiguous = true, inMemory = false;
  AnyInput x, filter;  // filter[kh, kw, c, m]
  Input shift;         // [c*m]
  Prologue prologue;
  Activation activation;
  Window window;
  int channels, multiplier;

  struct Line {
    int n, iy, ix;  // the window's first position; n -1: none
  };
  struct Depth {
    int k;
    bool inside;
  };
  __device__ __forceinline__ Line line(int64_t index, bool inside, int) const {
    if (!inside) return {-1, 0, 0};
    const int pixel = static_cast<int>(index);  // tensors have less than 2^31 elements
    const int ox = pixel % window.outWidth, oy = pixel / window.outWidth % window.outHeight;
    return {pixel / window.outWidth / window.outHeight, oy * window.strideHeight - window.top,
            ox * window.strideWidth - window.left};
  }

  __device__ __forceinline__ Depth depth(int k, bool inside) const { return {k, inside}; }
  static __device__ __forceinline__ Depth after(const Depth& depth, int i) { return {depth.k + i, depth.inside}; }

  template <int N>
  __device__ __forceinline__ void tap(Floats<N>& acc, const Line& row, int iy, int ix, int tapIndex, int k, int c,
                                      const ChannelPrologue<N>& channel) const {
    if (static_cast<unsigned>(iy) >= static_cast<unsigned>(window.height) ||
        static_cast<unsigned>(ix) >= static_cast<unsigned>(window.width))
      return;
    Floats<N> value = x.load<N>(((int64_t{row.n} * window.height + iy) * window.width + ix) * channels + c);
    channel.apply(value);
    multiplyAdd(acc, value, filter.load<N>(int64_t{tapIndex} * channels * multiplier + k));
  }

  template <int N>
  __device__ __forceinline__ Floats<N> compute(const Line& row, const Depth& depth) const {
    if (row.n < 0 || !depth.inside) return filled<N>(0.f);
    const int k = depth.k;
    const int c = k / multiplier;  // N is 1 unless the multiplier is
    const ChannelPrologue<N> channel(prologue, c);
    Floats<N> acc = filled<N>(0.f);
    if constexpr (KERNEL != 0) {
      ARCH_UNROLL
      for (int t = 0; t < KERNEL * KERNEL; ++t)
        tap(acc, row, row.iy + t / KERNEL, row.ix + t % KERNEL, t, k, c, channel);
    } else {
      ARCH_NO_UNROLL
      for (int ky = 0; ky < window.kernelHeight; ++ky) {
        ARCH_NO_UNROLL
        for (int kx = 0; kx < window.kernelWidth; ++kx)
          tap(acc, row, row.iy + ky * window.dilationHeight, row.ix + kx * window.dilationWidth,
              ky * window.kernelWidth + kx, k, c, channel);
      }
    }
    if (shift.present()) {
      const Floats<N> s = shift.load<N>(k);
      ARCH_UNROLL
      for (int i = 0; i < N; ++i) acc[i] += s[i];
    }
    activate(acc, activation);
    return acc;
  }
};

template <int KERNEL>
using SeparableProduct = GemmParameters<SeparableOperand<KERNEL>, MatrixOperand<false>>;
// separable_mma.cu
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const SeparableProduct<3>& p);
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const SeparableProduct<0>& p);

}  // namespace sepconv::cuda
