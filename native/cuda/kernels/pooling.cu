// maxPool2d (with residual), avgPool2d and their gradients, NHWC: a thread per output element, or four channels of it.
// Gradients gather: an input element asks every window over it whether it won (maximum) or by what that window divides
// (mean), so nothing is written twice and no order matters. Windows overlap little (3x3 by 2 in Xception), so what is
// read again comes from the caches.
#include "../arch/sync.h"
#include "fused.cuh"
#include "grid.cuh"

namespace sepconv::cuda {
namespace {

struct PoolParameters {
  AnyInput x, dy, residual;  // dy: of the gradients
  AnyOutput y;               // dx in the gradients
  Window window;
  int channels;
  bool countPadding;
};

struct Position {
  int n, y, x, c;
};

// The task's place in [n, height, width, channels / VECTOR].
template <int VECTOR>
__device__ __forceinline__ Position positionOf(int64_t task, int height, int width, int channels) {
  const int groups = channels / VECTOR, index = static_cast<int>(task), pixel = index / groups;
  return {pixel / width / height, pixel / width % height, pixel % width, index % groups * VECTOR};
}

__device__ __forceinline__ int64_t inputIndex(const PoolParameters& p, int n, int y, int x, int c) {
  return ((int64_t{n} * p.window.height + y) * p.window.width + x) * p.channels + c;
}
__device__ __forceinline__ int64_t outputIndex(const PoolParameters& p, int n, int y, int x, int c) {
  return ((int64_t{n} * p.window.outHeight + y) * p.window.outWidth + x) * p.channels + c;
}

// The part of a window at output `o` that lies inside: [first, end) of the axis.
struct Span {
  int first, end;
};
__device__ __forceinline__ Span spanOf(int o, int stride, int before, int kernel, int size) {
  const int start = o * stride - before, end = start + kernel;
  return {start < 0 ? 0 : start, end > size ? size : end};
}
// Rows and columns of x in the window of an output.
struct Area {
  Span rows, columns;
};
__device__ __forceinline__ Area areaOf(const Window& w, int oy, int ox) {
  return {spanOf(oy, w.strideHeight, w.top, w.kernelHeight, w.height),
          spanOf(ox, w.strideWidth, w.left, w.kernelWidth, w.width)};
}
// Outputs whose window covers input `i`: [first, end).
__device__ __forceinline__ Span windowsOver(int i, int stride, int before, int kernel, int outputs) {
  const int last = (i + before) / stride, reach = i + before - kernel + 1;
  const int first = reach <= 0 ? 0 : (reach + stride - 1) / stride;
  return {first, last + 1 < outputs ? last + 1 : outputs};
}

// Calls body(value) for every element of x in the window of the output `at`, row by row.
template <int VECTOR, class Body>
__device__ __forceinline__ void overWindow(const PoolParameters& p, const Position& at, const Body& body) {
  const Window& w = p.window;
  const auto [rows, columns] = areaOf(w, at.y, at.x);
  ARCH_NO_UNROLL
  for (int y = rows.first; y < rows.end; ++y) {
    ARCH_NO_UNROLL
    for (int x = columns.first; x < columns.end; ++x) body(p.x.load<VECTOR>(inputIndex(p, at.n, y, x, at.c)));
  }
}

// Calls body(oy, ox) for every window over the input `at`. One loop: the convergence barriers of deeper nests go to
// local memory.
template <class Body>
__device__ __forceinline__ void overWindows(const PoolParameters& p, const Position& at, const Body& body) {
  const Window& w = p.window;
  const Span oys = windowsOver(at.y, w.strideHeight, w.top, w.kernelHeight, w.outHeight);
  const Span oxs = windowsOver(at.x, w.strideWidth, w.left, w.kernelWidth, w.outWidth);
  const int across = oxs.end - oxs.first, windows = (oys.end - oys.first) * across;
  ARCH_NO_UNROLL
  for (int i = 0; i < windows; ++i) {
    body(oys.first + i / across, oxs.first + i % across);
  }
}

template <int VECTOR>
__global__ void __launch_bounds__(gridThreads) maxPool(const __grid_constant__ PoolParameters p) {
  arch::beginLaunch();
  const int64_t to = taskIndex() * VECTOR;
  if (to >= p.y.count) return;
  Floats<VECTOR> best = filled<VECTOR>(-INFINITY);
  overWindow<VECTOR>(p, positionOf<VECTOR>(taskIndex(), p.window.outHeight, p.window.outWidth, p.channels),
                     [&](const Floats<VECTOR>& value) {
                       ARCH_UNROLL
                       for (int e = 0; e < VECTOR; ++e)
                         best[e] = value[e] > best[e] || value[e] != value[e] ? value[e] : best[e];
                     });
  if (p.residual.present()) {
    const Floats<VECTOR> residual = p.residual.load<VECTOR>(to);
    ARCH_UNROLL
    for (int e = 0; e < VECTOR; ++e) best[e] += residual[e];
  }
  p.y.store<VECTOR>(to, best);
}

// Element x of the window, compared with all of it (and never beaten by itself), wins over every earlier one that is
// smaller and every later one that is not larger; a NaN wins over all but an earlier NaN.
template <int VECTOR>
__global__ void __launch_bounds__(gridThreads) maxPoolGradient(const __grid_constant__ PoolParameters p) {
  arch::beginLaunch();
  const int64_t to = taskIndex() * VECTOR;
  if (to >= p.y.count) return;
  const Window& w = p.window;
  const Position at = positionOf<VECTOR>(taskIndex(), w.height, w.width, p.channels);
  const Floats<VECTOR> own = p.x.load<VECTOR>(to);
  Floats<VECTOR> sum = filled<VECTOR>(0.f);
  overWindows(p, at, [&](int oy, int ox) {
    const auto [rows, columns] = areaOf(w, oy, ox);
    const int width = columns.end - columns.first, positions = (rows.end - rows.first) * width;
    uint32_t beaten = 0;  // a bit per channel
    ARCH_NO_UNROLL
    for (int j = 0; j < positions; ++j) {
      const int y = rows.first + j / width, x = columns.first + j % width;
      const bool earlier = y < at.y || (y == at.y && x < at.x);
      const Floats<VECTOR> other = p.x.load<VECTOR>(inputIndex(p, at.n, y, x, at.c));
      ARCH_UNROLL
      for (int e = 0; e < VECTOR; ++e) {
        const bool otherNaN = other[e] != other[e], ownNaN = own[e] != own[e];
        const bool larger = earlier ? other[e] >= own[e] : other[e] > own[e];
        beaten |= static_cast<uint32_t>(ownNaN ? otherNaN && earlier : otherNaN || larger) << e;
      }
    }
    const Floats<VECTOR> dy = p.dy.load<VECTOR>(outputIndex(p, at.n, oy, ox, at.c));
    ARCH_UNROLL
    for (int e = 0; e < VECTOR; ++e) sum[e] += beaten >> e & 1 ? 0.f : dy[e];
  });
  p.y.store<VECTOR>(to, sum);
}

// One over what the window at (oy, ox) divides by.
__device__ __forceinline__ float shareOf(const PoolParameters& p, int oy, int ox) {
  const Window& w = p.window;
  if (p.countPadding) return 1.f / static_cast<float>(w.kernelHeight * w.kernelWidth);
  const auto [rows, columns] = areaOf(w, oy, ox);
  return 1.f / static_cast<float>((rows.end - rows.first) * (columns.end - columns.first));
}

template <int VECTOR>
__global__ void __launch_bounds__(gridThreads) avgPool(const __grid_constant__ PoolParameters p) {
  arch::beginLaunch();
  const int64_t to = taskIndex() * VECTOR;
  if (to >= p.y.count) return;
  const Position at = positionOf<VECTOR>(taskIndex(), p.window.outHeight, p.window.outWidth, p.channels);
  Floats<VECTOR> sum = filled<VECTOR>(0.f);
  overWindow<VECTOR>(p, at, [&](const Floats<VECTOR>& value) {
    ARCH_UNROLL
    for (int e = 0; e < VECTOR; ++e) sum[e] += value[e];
  });
  const float share = shareOf(p, at.y, at.x);
  ARCH_UNROLL
  for (int e = 0; e < VECTOR; ++e) sum[e] *= share;
  p.y.store<VECTOR>(to, sum);
}

template <int VECTOR>
__global__ void __launch_bounds__(gridThreads) avgPoolGradient(const __grid_constant__ PoolParameters p) {
  arch::beginLaunch();
  const int64_t to = taskIndex() * VECTOR;
  if (to >= p.y.count) return;
  const Position at = positionOf<VECTOR>(taskIndex(), p.window.height, p.window.width, p.channels);
  Floats<VECTOR> sum = filled<VECTOR>(0.f);
  overWindows(p, at, [&](int oy, int ox) {
    multiplyAdd(sum, p.dy.load<VECTOR>(outputIndex(p, at.n, oy, ox, at.c)), filled<VECTOR>(shareOf(p, oy, ox)));
  });
  p.y.store<VECTOR>(to, sum);
}

enum class Pool : uint8_t { max, maxGradient, average, averageGradient };

template <Pool POOL>
class PoolKernel final : public Kernel {
 public:
  explicit PoolKernel(const CallDescription& call) {
    TensorType first = requireFloating(call, 0, POOL == Pool::max || POOL == Pool::average ? "x" : "dy", 4);
    x_ = first;
    if (POOL == Pool::maxGradient) x_ = requireFloating(call, 1, "x", 4);
    if (POOL == Pool::averageGradient) {
      const auto size = requireIntegers(call, "inputSize", 2, 1);
      x_.shape = {first.shape[0], size[0], size[1], first.shape[3]};
    }
    p_.window = poolWindow(call, x_);
    y_ = {x_.dtype, {x_.shape[0], p_.window.outHeight, p_.window.outWidth, x_.shape[3]}};
    p_.channels = static_cast<int>(x_.shape[3]);
    p_.countPadding = call.attributes.flag("countPadding");
    if (POOL == Pool::max) requireLike(call, 1, "residual", y_);
    if (gradient) requireLike(call, 0, "dy", y_);
    requireOutputLike(call, 0, gradient ? x_ : y_);
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const int64_t nx = x_.elements(), ny = y_.elements();
    PoolParameters p = p_;
    if (POOL == Pool::max || POOL == Pool::average) p.x = view(arguments.inputs[0], nx, x_.dtype);
    if (POOL == Pool::max) p.residual = view(arguments.inputs[1], ny, x_.dtype);
    if (gradient) p.dy = view(arguments.inputs[0], ny, x_.dtype);
    if (POOL == Pool::maxGradient) p.x = view(arguments.inputs[1], nx, x_.dtype);
    p.y = view(arguments.outputs[0], gradient ? nx : ny, x_.dtype);
    if (p.channels % 4 == 0)
      launchTasks(device, name(), kernel<4>(), p.y.count / 4, p);
    else
      launchTasks(device, name(), kernel<1>(), p.y.count, p);
  }

 private:
  static constexpr bool gradient = POOL == Pool::maxGradient || POOL == Pool::averageGradient;
  static const char* name() {
    constexpr const char* names[] = {"maxPool2d", "maxPool2dGradient", "avgPool2d", "avgPool2dGradient"};
    return names[static_cast<int>(POOL)];
  }
  template <int VECTOR>
  static void (*kernel())(PoolParameters) {
    if (POOL == Pool::max) return maxPool<VECTOR>;
    if (POOL == Pool::maxGradient) return maxPoolGradient<VECTOR>;
    return POOL == Pool::average ? avgPool<VECTOR> : avgPoolGradient<VECTOR>;
  }

  TensorType x_, y_;
  PoolParameters p_{};
};

}  // namespace

void registerPoolingKernels(Registry& registry) {
  registry["maxPool2d"] = make<PoolKernel<Pool::max>>;
  registry["maxPool2dGradient"] = make<PoolKernel<Pool::maxGradient>>;
  registry["avgPool2d"] = make<PoolKernel<Pool::average>>;
  registry["avgPool2dGradient"] = make<PoolKernel<Pool::averageGradient>>;
}

}  // namespace sepconv::cuda
