// Where the operands of a product C[line of A, line of B] = sum over depth of A[line, depth] * B[line, depth] come
// from. An operand decodes a line and a depth once each and finds their element from both. `depthContiguous` says along
// which of the two its memory runs, hence along which the kernels read N elements at a time. Lines of one group of a
// grouped convolution are numbered from 0.
#pragma once
#include "fused.cuh"

namespace sepconv::cuda {

// A matrix: element (line, depth) at line * lineStride + depth * depthStride, lines in panels where `panel` is set, and
// depth in runs of `run` elements that are `runStride` apart where `run` is set (the taps of a filter).
template <bool DEPTH_CONTIGUOUS>
struct MatrixOperand {
  static constexpr bool depthContiguous = DEPTH_CONTIGUOUS, inMemory = true;
  AnyInput x;
  Activation activation;
  int lineStride, depthStride;
  int panel, panelStride;
  int run, runStride;
  int groupStride;

  // Tensors have less than 2^31 elements. Negative: outside.
  struct Line {
    int base;
  };
  struct Depth {
    int offset;
  };
  __device__ __forceinline__ Line line(int64_t index, bool inside, int group) const {
    const int i = static_cast<int>(index), base = group * groupStride;
    if (!inside) return {-1};
    return {base + (panel ? i / panel * panelStride + i % panel : i * lineStride)};
  }
  __device__ __forceinline__ Depth depth(int k, bool inside) const {
    if (!inside) return {-1};
    return {run ? k / run * runStride + k % run * depthStride : k * depthStride};
  }
  __device__ __forceinline__ bool locate(const Line& line, const Depth& depth, int64_t& index) const {
    index = line.base + depth.offset;
    return line.base >= 0 && depth.offset >= 0;
  }
};

// The window of a convolution over x[n, h, w, channels]: element (pixel, tap and channel) is x under that tap of that
// output pixel. TRANSPOSED: x is the gradient, and the pixel is one of the forward input; an element exists where some
// output read that input through that tap. PIXEL_LINES: pixels are lines, taps and channels depth; else the reverse.
template <bool TRANSPOSED, bool PIXEL_LINES>
struct WindowOperand {
  static constexpr bool depthContiguous = PIXEL_LINES, inMemory = true;
  AnyInput x;
  Activation activation;
  Window window;
  int channels;       // of x
  int groupChannels;  // of one group

  struct Pixel {
    int n, y, x;  // first position under the window; transposed: position plus padding
    bool inside;
  };
  struct Tap {
    int y, x, c;
    bool inside;
  };
  using Line = std::conditional_t<PIXEL_LINES, Pixel, Tap>;
  using Depth = std::conditional_t<PIXEL_LINES, Tap, Pixel>;

  __device__ __forceinline__ Pixel pixel(int64_t index, bool inside) const {
    if (!inside) return {0, 0, 0, false};
    const int i = static_cast<int>(index);
    const int width = TRANSPOSED ? window.width : window.outWidth,
              height = TRANSPOSED ? window.height : window.outHeight;
    const int column = i % width, row = i / width % height, n = i / width / height;
    if constexpr (TRANSPOSED) return {n, row + window.top, column + window.left, true};
    return {n, row * window.strideHeight - window.top, column * window.strideWidth - window.left, true};
  }
  __device__ __forceinline__ Tap tap(int index, bool inside, int group) const {
    const int t = index / groupChannels, c = index % groupChannels;
    return {t / window.kernelWidth * window.dilationHeight, t % window.kernelWidth * window.dilationWidth,
            group * groupChannels + c, inside};
  }
  __device__ __forceinline__ Line line(int64_t index, bool inside, int group) const {
    if constexpr (PIXEL_LINES)
      return pixel(index, inside);
    else
      return tap(static_cast<int>(index), inside, group);
  }
  __device__ __forceinline__ Depth depth(int k, bool inside, int group) const {
    if constexpr (PIXEL_LINES)
      return tap(k, inside, group);
    else
      return pixel(k, inside);
  }
  __device__ __forceinline__ bool locate(const Line& line, const Depth& depth, int64_t& index) const {
    if constexpr (PIXEL_LINES)
      return find(line, depth, index);
    else
      return find(depth, line, index);
  }
  __device__ __forceinline__ bool find(const Pixel& pixel, const Tap& tap, int64_t& index) const {
    bool inside = pixel.inside && tap.inside;
    int y, column;
    if constexpr (TRANSPOSED) {
      y = pixel.y - tap.y;
      column = pixel.x - tap.x;
      inside = inside && y >= 0 && column >= 0 && y % window.strideHeight == 0 && column % window.strideWidth == 0;
      y /= window.strideHeight;
      column /= window.strideWidth;
      inside = inside && y < window.outHeight && column < window.outWidth;
      index = ((int64_t{pixel.n} * window.outHeight + y) * window.outWidth + column) * channels + tap.c;
    } else {
      y = pixel.y + tap.y;
      column = pixel.x + tap.x;
      inside = inside && static_cast<unsigned>(y) < static_cast<unsigned>(window.height) &&
               static_cast<unsigned>(column) < static_cast<unsigned>(window.width);
      index = ((int64_t{pixel.n} * window.height + y) * window.width + column) * channels + tap.c;
    }
    return inside;
  }
};

// The depth of an operand; only windows have groups there.
template <class Operand>
__device__ __forceinline__ typename Operand::Depth depthOf(const Operand& operand, int k, bool inside, int group) {
  if constexpr (std::is_invocable_v<decltype(&Operand::depth), const Operand&, int, bool, int>)
    return operand.depth(k, inside, group);
  else
    return operand.depth(k, inside);
}

// N elements that follow each other in memory, after the activation; zeros outside.
template <int N, class Operand>
__device__ __forceinline__ Floats<N> loadOperand(const Operand& operand, const typename Operand::Line& line,
                                                 const typename Operand::Depth& depth) {
  if constexpr (Operand::inMemory) {
    int64_t index;
    if (!operand.locate(line, depth, index)) return filled<N>(0.f);
    Floats<N> value = operand.x.template load<N>(index);
    activate(value, operand.activation);
    return value;
  } else {
    return operand.template compute<N>(line, depth);
  }
}

// What becomes of C: y[row, group * columns + column] = epilogue(C), or times the mask of a data gradient; or, split
// over depth, a partial sum of its own per split.
struct Store {
  AnyOutput y;
  Epilogue epilogue;
  Mask mask;
  int rowStride;        // elements of a row of y, all groups together
  int64_t splitStride;  // elements of y; 0 where depth is not split
};

template <class A, class B>
struct GemmParameters {
  A a;
  B b;
  Store store;
  int64_t rows;  // of C, lines of A
  int columns;   // of C, lines of B, of one group
  int depth, depthPerSplit, splits;
};

}  // namespace sepconv::cuda
