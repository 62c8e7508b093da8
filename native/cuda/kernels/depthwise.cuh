// y[n, oh, ow, c*m + j] = epilogue(sum over taps of prologue(x[n, iy, ix, c]) * filter[ky, kx, c, j]), NHWC float32.
// Tiled: a block holds the input of tileHeight x tileWidth outputs in shared memory (depthwise_tile.cuh), padding being
// zero after the prologue. 3x3: a thread makes a strip of 4 outputs from a window in registers.
// The data gradient with stride 1 is the same kernel over the gradient with its taps in reverse; with other strides the
// direct one asks every tap which output read this input through it.
// Direct: any window and multiplier through the caches, one output (or 4 channels) per thread. Not fast: multipliers
// above 1, channel counts far from multiples of 32.
#pragma once
#include "../arch/launch.h"
#include "depthwise_tile.cuh"

namespace sepconv::cuda {

struct DepthwiseParameters {
  AnyInput x, filter;
  AnyOutput y;
  Prologue prologue;
  Epilogue epilogue;
  Mask mask;      // of a data gradient, in place of the epilogue
  Window window;  // of a data gradient by reversed taps: from the gradient to dz
  bool reversed;
  int batch, channels, multiplier;
  int tileHeight, tileWidth;  // outputs per block
  int inHeight, inWidth;      // positions of the input tile
};

constexpr int depthwiseThreads = 128, depthwiseMinBlocks = 4;  // 128 registers per thread

template <int N>
__device__ __forceinline__ void storeDepthwise(const DepthwiseParameters& p, const ChannelEpilogue<N>& epilogue,
                                               int64_t index, int channel, Floats<N> value) {
  if (p.mask.x.present()) {
    p.mask.apply<N>(value, index, channel);
    p.y.store<N>(index, value);
  } else {
    epilogue.store(p.epilogue, p.y, index, value);
  }
}

// KERNEL 3 or 5: taps, stride and dilation 1 known at compile time; 0: all at run time, one output per step of a
// thread. The taps of 3x3 stay in registers; those of 5x5 would take 100 of them and come from the caches row by row.
template <int KERNEL, int STRIDE, int VECTOR, class Element>
__global__ void __launch_bounds__(depthwiseThreads, depthwiseMinBlocks)
    depthwiseTiled(const __grid_constant__ DepthwiseParameters p) {
  arch::beginLaunch();
  static_assert(
      (KERNEL == 3 && (STRIDE == 1 || STRIDE == 2)) || (KERNEL == 5 && STRIDE == 1) || (KERNEL == 0 && STRIDE == 0),
      "instantiated variants");
  constexpr int blockChannels = tileChannels<Element>, lanes = blockChannels / VECTOR, strip = KERNEL ? 4 : 1;
  static_assert(depthwiseThreads % lanes == 0, "threads cover whole positions");
  const Window& w = p.window;
  const int tilesX = (w.outWidth + p.tileWidth - 1) / p.tileWidth,
            tilesY = (w.outHeight + p.tileHeight - 1) / p.tileHeight;
  const int n = arch::blockX() / (tilesX * tilesY), tileIndex = arch::blockX() % (tilesX * tilesY);
  const int oy0 = tileIndex / tilesX * p.tileHeight, ox0 = tileIndex % tilesX * p.tileWidth;
  const int channel = arch::blockY() * blockChannels;

  arch::SharedMemory memory;
  const DepthwiseTile<Element, VECTOR, depthwiseThreads> tile(memory, p.inHeight, p.inWidth);
  const TilePlace place{n, oy0 * w.strideHeight - w.top, ox0 * w.strideWidth - w.left, channel};
  const TileSource source{p.x, w.height, w.width, p.channels};
  tile.copy(source, place);
  arch::commitCopies();
  arch::waitCopies<0>();
  tile.apply(source, place, p.prologue);
  arch::syncThreads();

  const int lane = arch::threadIndex() % lanes;
  const int c = channel + lane * VECTOR;
  if (c >= p.channels) return;
  const ChannelEpilogue<VECTOR> epilogue(p.epilogue, c);
  const int lastTap = w.kernelHeight * w.kernelWidth - 1;
  const auto tap = [&](int i) { return p.filter.load<VECTOR>(int64_t{p.reversed ? lastTap - i : i} * p.channels + c); };
  Floats<VECTOR> taps[KERNEL == 3 ? 9 : 1];
  if constexpr (KERNEL == 3) {
    ARCH_UNROLL
    for (int i = 0; i < 9; ++i) taps[i] = tap(i);
  }

  const int strips = p.tileWidth / strip;
  ARCH_NO_UNROLL
  for (int task = arch::threadIndex() / lanes; task < strips * p.tileHeight; task += depthwiseThreads / lanes) {
    const int ty = task / strips, tx = task % strips * strip;
    const int oy = oy0 + ty;
    if (oy >= w.outHeight || ox0 + tx >= w.outWidth) continue;
    Floats<VECTOR> acc[strip];
    ARCH_UNROLL
    for (int i = 0; i < strip; ++i) acc[i] = filled<VECTOR>(0.f);
    if constexpr (KERNEL != 0) {
      constexpr int windowWidth = (strip - 1) * STRIDE + KERNEL;
      // Rows of 5x5 one after the other: all at once, the taps of later rows would be loaded early and spill.
      constexpr int unrolled = KERNEL == 3 ? 3 : 1;
      ARCH_UNROLL_BY(unrolled)
      for (int ky = 0; ky < KERNEL; ++ky) {
        const int row = (ty * STRIDE + ky) * p.inWidth + tx * STRIDE;
        Floats<VECTOR> window[windowWidth];
        ARCH_UNROLL
        for (int i = 0; i < windowWidth; ++i) window[i] = tile.load(row + i);
        ARCH_UNROLL
        for (int kx = 0; kx < KERNEL; ++kx) {
          Floats<VECTOR> weight;
          if constexpr (KERNEL == 3)
            weight = taps[ky * 3 + kx];
          else
            weight = tap(ky * KERNEL + kx);
          ARCH_UNROLL
          for (int i = 0; i < strip; ++i) multiplyAdd(acc[i], window[i * STRIDE + kx], weight);
        }
      }
    } else {
      ARCH_NO_UNROLL
      for (int ky = 0; ky < w.kernelHeight; ++ky) {
        const int row = (ty * w.strideHeight + ky * w.dilationHeight) * p.inWidth + tx * w.strideWidth;
        ARCH_NO_UNROLL
        for (int kx = 0; kx < w.kernelWidth; ++kx)
          multiplyAdd(acc[0], tile.load(row + kx * w.dilationWidth), tap(ky * w.kernelWidth + kx));
      }
    }
    const int64_t y = ((int64_t{n} * w.outHeight + oy) * w.outWidth + ox0 + tx) * p.channels + c;
    ARCH_UNROLL
    for (int i = 0; i < strip; ++i)
      if (ox0 + tx + i < w.outWidth) storeDepthwise(p, epilogue, y + int64_t{i} * p.channels, c, acc[i]);
  }
}

template <int VECTOR>
__global__ void __launch_bounds__(depthwiseThreads, depthwiseMinBlocks)
    depthwiseDirect(const __grid_constant__ DepthwiseParameters p) {
  arch::beginLaunch();
  static_assert(VECTOR == 1 || VECTOR == 4, "4 or 16 bytes");
  const Window& w = p.window;
  const int outChannels = p.channels * p.multiplier, groups = outChannels / VECTOR;
  const int64_t tasks = int64_t{p.batch} * w.outHeight * w.outWidth * groups;
  const int64_t task = int64_t{arch::blockX()} * depthwiseThreads + arch::threadIndex();
  if (task >= tasks) return;
  const int index = static_cast<int>(task), o = index % groups * VECTOR, pixel = index / groups;
  const int c = o / p.multiplier;  // VECTOR 4 only with multiplier 1
  const int ox = pixel % w.outWidth, oy = pixel / w.outWidth % w.outHeight, n = pixel / w.outWidth / w.outHeight;
  const ChannelPrologue<VECTOR> prologue(p.prologue, c);
  Floats<VECTOR> acc = filled<VECTOR>(0.f);
  ARCH_NO_UNROLL
  for (int ky = 0; ky < w.kernelHeight; ++ky) {
    const int iy = oy * w.strideHeight - w.top + ky * w.dilationHeight;
    if (iy < 0 || iy >= w.height) continue;
    ARCH_NO_UNROLL
    for (int kx = 0; kx < w.kernelWidth; ++kx) {
      const int ix = ox * w.strideWidth - w.left + kx * w.dilationWidth;
      if (ix < 0 || ix >= w.width) continue;
      Floats<VECTOR> value = p.x.load<VECTOR>(((int64_t{n} * w.height + iy) * w.width + ix) * p.channels + c);
      prologue.apply(value);
      multiplyAdd(acc, value, p.filter.load<VECTOR>((int64_t{ky} * w.kernelWidth + kx) * outChannels + o));
    }
  }
  ChannelEpilogue<VECTOR>(p.epilogue, o).store(p.epilogue, p.y, int64_t{pixel} * outChannels + o, acc);
}

// dz[n, iy, ix, c]: the gradient of every output that read it, through the tap by which it did.
template <int VECTOR>
__global__ void __launch_bounds__(depthwiseThreads, depthwiseMinBlocks)
    depthwiseInputGradientDirect(const __grid_constant__ DepthwiseParameters p) {
  arch::beginLaunch();
  static_assert(VECTOR == 1 || VECTOR == 4, "4 or 16 bytes");
  const Window& w = p.window;
  const int groups = p.channels / VECTOR, outChannels = p.channels * p.multiplier;
  const int64_t task = int64_t{arch::blockX()} * depthwiseThreads + arch::threadIndex();
  if (task * VECTOR >= p.y.count) return;
  const int index = static_cast<int>(task), c = index % groups * VECTOR, pixel = index / groups;
  const int ix = pixel % w.width, iy = pixel / w.width % w.height, n = pixel / w.width / w.height;
  Floats<VECTOR> acc = filled<VECTOR>(0.f);
  ARCH_NO_UNROLL
  for (int ky = 0; ky < w.kernelHeight; ++ky) {
    const int y = iy + w.top - ky * w.dilationHeight;
    if (y < 0 || y % w.strideHeight || y / w.strideHeight >= w.outHeight) continue;
    ARCH_NO_UNROLL
    for (int kx = 0; kx < w.kernelWidth; ++kx) {
      const int x = ix + w.left - kx * w.dilationWidth;
      if (x < 0 || x % w.strideWidth || x / w.strideWidth >= w.outWidth) continue;
      const int64_t from =
          ((int64_t{n} * w.outHeight + y / w.strideHeight) * w.outWidth + x / w.strideWidth) * outChannels;
      const int64_t tap = (int64_t{ky} * w.kernelWidth + kx) * outChannels;
      ARCH_NO_UNROLL
      for (int j = 0; j < p.multiplier; ++j) {  // VECTOR 4 only with multiplier 1
        const int o = c * p.multiplier + j;
        multiplyAdd(acc, p.x.load<VECTOR>(from + o), p.filter.load<VECTOR>(tap + o));
      }
    }
  }
  p.mask.apply<VECTOR>(acc, task * VECTOR, c);
  p.y.store<VECTOR>(task * VECTOR, acc);
}

}  // namespace sepconv::cuda
