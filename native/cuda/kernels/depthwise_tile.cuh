// What the depthwise kernels keep in shared memory: a rectangle of positions of 128 bytes each, 32 channels of float32
// or 64 of bfloat16, so that threads next to each other meet all banks once. It is copied asynchronously, 16 bytes at a
// time, as it lies in memory; bfloat16 whose channels do not come in eights is converted on the way.
#pragma once
#include "../arch/async_copy.h"
#include "../arch/sync.h"
#include "../choose.h"
#include "fused.cuh"

namespace sepconv::cuda {

template <class Element>
constexpr int tileChannels = tileBytes / static_cast<int>(sizeof(Element));

// A tensor [n, height, width, channels].
struct TileSource {
  const AnyInput& x;
  int height, width, channels;
};
// Where a tile starts; y and x may lie in the padding.
struct TilePlace {
  int n, y, x, channel;
};

// VECTOR: channels that one thread computes.
template <class Element, int VECTOR, int THREADS>
class DepthwiseTile {
  static constexpr bool half = sizeof(Element) == 2;
  static constexpr int copied = VECTOR == 1 ? 1 : 16 / static_cast<int>(sizeof(Element));
  static constexpr int copyLanes = tileChannels<Element> / copied, lanes = tileChannels<Element> / VECTOR;
  static_assert(VECTOR == 4 || (VECTOR == 1 && !half), "instantiated variants");
  static_assert(THREADS % copyLanes == 0, "threads cover whole positions");

 public:
  __device__ __forceinline__ DepthwiseTile(arch::SharedMemory& memory, int height, int width)
      : height_(height),
        width_(width),
        data_(memory.array<Element>(height * width * tileChannels<Element>)),
        lane_(arch::threadIndex() % lanes) {}

  // Starts the copies; zeros outside of the source.
  __device__ __forceinline__ void copy(const TileSource& from, const TilePlace& place) const {
    overOwn(from, place, [&](int at, int64_t index, bool valid) {
      if constexpr (half) {
        const arch::Global<const Element> x{static_cast<const Element*>(from.x.data), from.x.count};
        arch::copyAsync<copied>(data_, at, x, index, valid);
      } else if (from.x.dtype == DType::float32) {
        arch::copyAsync<copied>(data_, at, Input{static_cast<const float*>(from.x.data), from.x.count}, index, valid);
      } else {
        data_.template store<copied>(at, valid ? from.x.template load<copied>(index) : filled<copied>(0.f));
      }
    });
  }

  // Once per element, by the thread that copied it: no barrier is needed in between, only this thread's copies must be
  // complete. In a bfloat16 tile the result is rounded, as it would be if it were a tensor of its own.
  __device__ __forceinline__ void apply(const TileSource& from, const TilePlace& place,
                                        const Prologue& prologue) const {
    const int channel = place.channel + arch::threadIndex() % copyLanes * copied;
    if (!prologue.present() || channel >= from.channels) return;
    // Four channels at a time: eight would hold 16 registers of scale and shift.
    constexpr int part = copied < 4 ? copied : 4;
    ARCH_UNROLL
    for (int first = 0; first < copied; first += part) {
      const ChannelPrologue<part> own(prologue, channel + first);
      overOwn(from, place, [&](int at, int64_t, bool valid) {
        if (!valid) return;
        Floats<part> value = loadAt<part>(at + first);
        own.apply(value);
        storeAt<part>(at + first, value);
      });
    }
  }

  // This thread's channels of a position, counted row by row.
  __device__ __forceinline__ Floats<VECTOR> load(int position) const {
    return loadAt<VECTOR>(position * tileChannels<Element> + lane_ * VECTOR);
  }

 private:
  // Calls body(place in the tile, index in the source, whether it exists) for the vectors that this thread copies.
  template <class Body>
  __device__ __forceinline__ void overOwn(const TileSource& from, const TilePlace& place, const Body& body) const {
    const int lane = arch::threadIndex() % copyLanes, c = place.channel + lane * copied;
    for (int position = arch::threadIndex() / copyLanes; position < height_ * width_; position += THREADS / copyLanes) {
      const int y = place.y + position / width_, x = place.x + position % width_;
      const bool valid = c < from.channels && static_cast<unsigned>(y) < static_cast<unsigned>(from.height) &&
                         static_cast<unsigned>(x) < static_cast<unsigned>(from.width);
      body(position * tileChannels<Element> + lane * copied,
           ((int64_t{place.n} * from.height + y) * from.width + x) * from.channels + c, valid);
    }
  }
  template <int N>
  __device__ __forceinline__ Floats<N> loadAt(int at) const {
    const arch::Vec<Element, N> stored = data_.template load<N>(at);
    Floats<N> value;
    ARCH_UNROLL
    for (int i = 0; i < N; ++i) {
      if constexpr (half)
        value[i] = arch::toFloat(stored[i]);
      else
        value[i] = stored[i];
    }
    return value;
  }
  template <int N>
  __device__ __forceinline__ void storeAt(int at, const Floats<N>& value) const {
    arch::Vec<Element, N> stored;
    ARCH_UNROLL
    for (int i = 0; i < N; ++i) {
      if constexpr (half)
        stored[i] = arch::toBfloat16(value[i]);
      else
        stored[i] = value[i];
    }
    data_.template store<N>(at, stored);
  }

  const int height_, width_;
  const arch::Shared<Element> data_;
  const int lane_;
};

}  // namespace sepconv::cuda
