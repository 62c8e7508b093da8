// The left operand of separableConv2d's product, and of its pointwise filter's gradient: the depthwise result, computed
// where it is needed.
#pragma once
#include "gemm.cuh"

namespace sepconv::cuda {

// KERNEL 3: 3x3 taps without dilation, unrolled; 0: any window, at run time. PIXEL_LINES: pixels are lines and channels
// depth, as the product reads it; else the reverse, as the filter's gradient does.
template <int KERNEL, bool PIXEL_LINES>
struct SeparableOperand {
  static constexpr bool depthContiguous = PIXEL_LINES, inMemory = false;
  AnyInput x, filter;  // filter[kh, kw, c, m]
  Input shift;         // [c*m]
  Prologue prologue;
  Activation activation;
  Window window;
  int channels, multiplier;

  struct Pixel {
    int n, iy, ix;  // the window's first position; n -1: none
  };
  struct Channel {
    int k;  // of the depthwise result; -1: none
  };
  using Line = std::conditional_t<PIXEL_LINES, Pixel, Channel>;
  using Depth = std::conditional_t<PIXEL_LINES, Channel, Pixel>;

  __device__ __forceinline__ Pixel pixel(int64_t index, bool inside) const {
    if (!inside) return {-1, 0, 0};
    const int pixel = static_cast<int>(index);  // tensors have less than 2^31 elements
    const int ox = pixel % window.outWidth, oy = pixel / window.outWidth % window.outHeight;
    return {pixel / window.outWidth / window.outHeight, oy * window.strideHeight - window.top,
            ox * window.strideWidth - window.left};
  }
  __device__ __forceinline__ Line line(int64_t index, bool inside, int) const {
    if constexpr (PIXEL_LINES)
      return pixel(index, inside);
    else
      return {inside ? static_cast<int>(index) : -1};
  }
  __device__ __forceinline__ Depth depth(int k, bool inside) const {
    if constexpr (PIXEL_LINES)
      return {inside ? k : -1};
    else
      return pixel(k, inside);
  }

  // N elements that follow each other in the channels.
  template <int N>
  __device__ __forceinline__ Floats<N> compute(const Line& line, const Depth& depth) const {
    if constexpr (PIXEL_LINES)
      return at<N, KERNEL>(line, depth.k);
    else
      return at<N, KERNEL>(depth, line.k);
  }

  // UNROLLED 3: taps unrolled; 0: in loops.
  template <int N, int UNROLLED>
  __device__ __forceinline__ Floats<N> at(const Pixel& from, int k) const {
    if (from.n < 0 || k < 0) return filled<N>(0.f);
    const int c = k / multiplier;  // N is 1 unless the multiplier is
    const ChannelPrologue<N> channel(prologue, c);
    Floats<N> acc = filled<N>(0.f);
    const auto tap = [&](int iy, int ix, int tapIndex) {
      if (static_cast<unsigned>(iy) >= static_cast<unsigned>(window.height) ||
          static_cast<unsigned>(ix) >= static_cast<unsigned>(window.width))
        return;
      Floats<N> value = x.load<N>(((int64_t{from.n} * window.height + iy) * window.width + ix) * channels + c);
      channel.apply(value);
      multiplyAdd(acc, value, filter.load<N>(int64_t{tapIndex} * channels * multiplier + k));
    };
    if constexpr (UNROLLED != 0) {
      ARCH_UNROLL
      for (int t = 0; t < UNROLLED * UNROLLED; ++t) tap(from.iy + t / UNROLLED, from.ix + t % UNROLLED, t);
    } else {
      ARCH_NO_UNROLL
      for (int ky = 0; ky < window.kernelHeight; ++ky) {
        ARCH_NO_UNROLL
        for (int kx = 0; kx < window.kernelWidth; ++kx)
          tap(from.iy + ky * window.dilationHeight, from.ix + kx * window.dilationWidth, ky * window.kernelWidth + kx);
      }
    }
    finish(acc, k);
    return acc;
  }

  // Four channels from k on of `strip` pixels in a row of the output, from pixel `first` on: store(i, values) of each.
  // Where they lie in one row of the image and the window is 3x3 with horizontal stride 1, they share it: 18 reads of x
  // and 9 of the filter instead of 36 each. Element: what x and filter are stored in. Multiplier 1.
  static constexpr int strip = 4;
  template <class Element, class Body>
  __device__ __forceinline__ void computeStrip(int first, int end, int k, const Body& store) const {
    const Pixel from = pixel(first, first < end && k >= 0);
    if (from.n < 0) {
      ARCH_UNROLL
      for (int i = 0; i < strip; ++i) store(i, filled<4>(0.f));
      return;
    }
    if constexpr (KERNEL == 3) {
      if (window.strideWidth == 1 && first + strip <= end && from.ix + window.left + strip <= window.outWidth)
        return sharedWindow<Element>(from, k, store);
    }
    ARCH_NO_UNROLL
    for (int i = 0; i < strip; ++i) store(i, at<4, 0>(pixel(first + i, first + i < end), k));
  }

 private:
  template <int N>
  __device__ __forceinline__ void finish(Floats<N>& acc, int k) const {
    if (shift.present()) {
      const Floats<N> s = shift.load<N>(k);
      ARCH_UNROLL
      for (int i = 0; i < N; ++i) acc[i] += s[i];
    }
    activate(acc, activation);
  }

  template <class Element, class Body>
  __device__ __forceinline__ void sharedWindow(const Pixel& from, int k, const Body& store) const {
    constexpr int columns = strip + 2;
    const arch::Global<Element> image{static_cast<Element*>(const_cast<void*>(x.data)), x.count},
        taps{static_cast<Element*>(const_cast<void*>(filter.data)), filter.count};
    const bool scaled = prologue.scale.present() || prologue.shift.present();
    const ChannelPrologue<4> channel(prologue, k);
    bool inside[columns];
    ARCH_UNROLL
    for (int i = 0; i < columns; ++i)
      inside[i] = static_cast<unsigned>(from.ix + i) < static_cast<unsigned>(window.width);
    Floats<4> acc[strip];
    ARCH_UNROLL
    for (int i = 0; i < strip; ++i) acc[i] = filled<4>(0.f);
    // Rows one after the other: all at once, their loads would take the registers of accumulators.
    ARCH_NO_UNROLL
    for (int ky = 0; ky < 3; ++ky) {
      const int iy = from.iy + ky;
      if (static_cast<unsigned>(iy) >= static_cast<unsigned>(window.height)) continue;
      const int row = ((from.n * window.height + iy) * window.width + from.ix) * channels + k;
      Floats<4> values[columns];
      ARCH_UNROLL
      for (int i = 0; i < columns; ++i)
        values[i] = inside[i] ? toFloats(image.template load<4>(row + i * channels)) : filled<4>(0.f);
      // One branch per row for the prologue; both activations leave the zeros of the padding as they are.
      if (scaled) {
        ARCH_UNROLL
        for (int i = 0; i < columns; ++i) {
          ARCH_UNROLL
          for (int e = 0; e < 4; ++e)
            values[i][e] = inside[i] ? arch::fma(values[i][e], channel.scale[e], channel.shift[e]) : 0.f;
        }
      }
      if (prologue.activation == Activation::relu) {
        ARCH_UNROLL
        for (int i = 0; i < columns; ++i) activate(values[i], Activation::relu);
      } else if (prologue.activation == Activation::elu) {
        ARCH_UNROLL
        for (int i = 0; i < columns; ++i) activate(values[i], Activation::elu);
      }
      ARCH_UNROLL
      for (int kx = 0; kx < 3; ++kx) {
        const Floats<4> weight = toFloats(taps.template load<4>((ky * 3 + kx) * channels + k));
        ARCH_UNROLL
        for (int i = 0; i < strip; ++i) multiplyAdd(acc[i], values[i + kx], weight);
      }
    }
    ARCH_UNROLL
    for (int i = 0; i < strip; ++i) {
      finish(acc[i], k);
      store(i, acc[i]);
    }
  }
};

template <int KERNEL>
using SeparableProduct = GemmParameters<SeparableOperand<KERNEL, true>, MatrixOperand<false>>;
template <int KERNEL>
using SeparableFilterGradient = GemmParameters<SeparableOperand<KERNEL, false>, MatrixOperand<false>>;
// separable_mma.cu; `statistics`: [row tile][mean, squares][column] of what is stored, or nothing.
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const SeparableProduct<3>& p, const Output& statistics);
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const SeparableProduct<0>& p, const Output& statistics);
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const SeparableFilterGradient<3>& p);
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const SeparableFilterGradient<0>& p);

}  // namespace sepconv::cuda
