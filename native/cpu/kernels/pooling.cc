// maxPool2d (+ residual), avgPool2d and their gradients on [n, h, w, c]. A forward task is one output row; a gradient
// task is a band of input rows and adds up what the windows that touch it give, in the order of the windows; windows on
// the border of two bands are looked at by both.
// Bound by memory: the windows of a row are read from cache after the first touch.
#include <algorithm>
#include <cstring>

#include "../shared_blocks.h"
#include "../simd/table.h"
#include "checks.h"

namespace sepconv::cpu {
namespace {

struct Window {
  int64_t n, h, w, c, oh, ow, kh, kw, sh, sw, top, left;
};

// x[n, h, w, c] under the windows, y[n, oh, ow, c] with one element per window.
Window windowOf(const CallDescription& call, const TensorType& input, const TensorType& output) {
  expectDType(call, "input", input, DType::float32);
  expectDType(call, "output", output, DType::float32);
  const std::vector<int64_t>&x = input.shape, &y = output.shape;
  if (x.size() != 4 || y.size() != 4)
    fail(call, "ERR_SHAPE", "expected [n, h, w, c], got " + formatShape(x) + " and " + formatShape(y));
  const auto size = expectList(call, "windowSize", 2), strides = expectList(call, "strides", 2),
             padding = expectList(call, "padding", 4);
  for (size_t axis = 0; axis < 2; ++axis) {
    const int64_t before = padding[2 * axis], after = padding[2 * axis + 1];
    if (size[axis] < 1 || strides[axis] < 1 || before < 0 || after < 0 || before >= size[axis] || after >= size[axis])
      fail(call, "ERR_ARGUMENT",
           "windows of " + formatShape(size) + " with strides " + formatShape(strides) + " and padding " +
               formatShape(padding) + ": sizes and strides must be at least 1, padding less than the window");
    const int64_t room = x[1 + axis] + before + after - size[axis];
    if (room < 0) fail(call, "ERR_SHAPE", "a window of " + formatShape(size) + " does not fit into " + formatShape(x));
    if (y[1 + axis] != room / strides[axis] + 1)
      fail(call, "ERR_SHAPE", formatShape(y) + " does not follow from " + formatShape(x));
  }
  if (y[0] != x[0] || y[3] != x[3]) fail(call, "ERR_SHAPE", formatShape(y) + " does not follow from " + formatShape(x));
  return {x[0], x[1], x[2], x[3], y[1], y[2], size[0], size[1], strides[0], strides[1], padding[0], padding[2]};
}

// Calls body(row, column) for the taps of output pixel (i, j) that lie inside the input.
template <class Body>
void forEachTap(const Window& window, int64_t i, int64_t j, const Body& body) {
  const int64_t row = i * window.sh - window.top, column = j * window.sw - window.left;
  for (int64_t y = std::max<int64_t>(row, 0); y < std::min(row + window.kh, window.h); ++y)
    for (int64_t x = std::max<int64_t>(column, 0); x < std::min(column + window.kw, window.w); ++x) body(y, x);
}

class Pool2d : public Kernel {
 public:
  Pool2d(const CallDescription& call, bool maximum)
      : window_(windowOf(call, call.input(0), call.outputs[0])),
        maximum_(maximum),
        countPadding_(call.attributes.flag("countPadding")) {
    if (maximum && call.has(1)) expectType(call, "residual", call.input(1), call.outputs[0]);
  }
  void run(const Arguments& arguments) const override {
    const float *x = arguments.input(0), *residual = maximum_ ? arguments.input(1) : nullptr;
    const Window& g = window_;
    runRanges(arguments.pool, g.n * g.oh, [&](int64_t task, int thread) {
      const int64_t image = task / g.oh, i = task % g.oh;
      auto** taps =
          static_cast<const float**>(arguments.pool.scratch(thread, static_cast<size_t>(g.kh * g.kw) * sizeof(float*)));
      // The rows that the next output row reads for the first time come into L2 meanwhile, pixel by pixel.
      const int64_t begin = std::min((image * g.h + i * g.sh - g.top + g.kh) * g.w, g.n * g.h * g.w),
                    fetched = std::min(g.sh * g.w, g.n * g.h * g.w - begin);
      const Upcoming upcoming = {x + begin * g.c, fetched * g.c};
      const int64_t linesPerPixel = Fetch::lines(upcoming) / g.ow + 1;
      Fetch fetch{&upcoming, 1};
      for (int64_t j = 0; j < g.ow; ++j) {
        int64_t count = 0;
        forEachTap(g, i, j, [&](int64_t row, int64_t column) {
          taps[count++] = x + ((image * g.h + row) * g.w + column) * g.c;
        });
        fetch.run(linesPerPixel);
        const int64_t at = (task * g.ow + j) * g.c;
        float* y = arguments.output() + at;
        if (!maximum_)
          simd().pooling.average(taps, count,
                                 1.0f / static_cast<float>(countPadding_ ? g.kh * g.kw : std::max<int64_t>(count, 1)),
                                 g.c, y);
        else if (count)
          simd().pooling.maximum(taps, count, residual ? residual + at : nullptr, g.c, y);
        else
          for (int64_t k = 0; k < g.c; ++k) y[k] = -__builtin_inff();
      }
    });
  }

 private:
  Window window_;
  bool maximum_, countPadding_;
};

// Output rows whose windows begin in a band of input rows, of a gradient's task.
constexpr int64_t kBandRows = 4;

class Pool2dGradient : public Kernel {
 public:
  Pool2dGradient(const CallDescription& call, bool maximum)
      : window_(windowOf(call, call.outputs[0], call.input(0))),
        maximum_(maximum),
        countPadding_(call.attributes.flag("countPadding")) {
    if (maximum) expectType(call, "x", call.input(1), call.outputs[0]);
  }
  void run(const Arguments& arguments) const override {
    const float *dy = arguments.input(0), *x = maximum_ ? arguments.input(1) : nullptr;
    const Window& g = window_;
    const int64_t rows = kBandRows * g.sh, bands = (g.h + rows - 1) / rows, size = g.kh * g.kw;
    arguments.pool.run(g.n * bands, [&](int64_t task, int thread) {
      const int64_t image = task / bands, begin = task % bands * rows, end = std::min(begin + rows, g.h);
      float* dx = arguments.output() + image * g.h * g.w * g.c;
      std::memset(dx + begin * g.w * g.c, 0, static_cast<size_t>((end - begin) * g.w * g.c) * sizeof(float));
      auto** taps =
          static_cast<const float**>(arguments.pool.scratch(thread, static_cast<size_t>(2 * size) * sizeof(float*)));
      auto** targets = const_cast<float**>(taps + size);
      // Rows i with i * sh - top < end and i * sh - top + kh > begin.
      const int64_t first = std::max<int64_t>(0, (begin + g.top - g.kh + g.sh) / g.sh);
      const int64_t last = std::min(g.oh, (end - 1 + g.top) / g.sh + 1);
      for (int64_t i = first; i < last; ++i)
        for (int64_t j = 0; j < g.ow; ++j) {
          const float* gradient = dy + ((image * g.oh + i) * g.ow + j) * g.c;
          int64_t count = 0;
          forEachTap(g, i, j, [&](int64_t row, int64_t column) {
            const int64_t at = (row * g.w + column) * g.c;
            if (maximum_) taps[count] = x + image * g.h * g.w * g.c + at;
            targets[count++] = row >= begin && row < end ? dx + at : nullptr;
          });
          if (maximum_)
            simd().pooling.maximumGradient(taps, targets, count, gradient, g.c);
          else
            spread(gradient, targets, count);
        }
    });
  }

 private:
  void spread(const float* gradient, float* const* targets, int64_t count) const {
    const int64_t divisor = countPadding_ ? window_.kh * window_.kw : std::max<int64_t>(count, 1);
    for (int64_t t = 0; t < count; ++t)
      if (targets[t]) simd().pooling.accumulate(gradient, window_.c, 1.0f / static_cast<float>(divisor), targets[t]);
  }

  Window window_;
  bool maximum_, countPadding_;
};

}  // namespace

void registerPoolingKernels(Registry& registry) {
  registry["maxPool2d"] = [](const CallDescription& call) -> std::unique_ptr<Kernel> {
    expectOperands(call, 1, 1);
    return std::make_unique<Pool2d>(call, true);
  };
  registry["avgPool2d"] = [](const CallDescription& call) -> std::unique_ptr<Kernel> {
    expectOperands(call, 1, 1);
    return std::make_unique<Pool2d>(call, false);
  };
  registry["maxPool2dGradient"] = [](const CallDescription& call) -> std::unique_ptr<Kernel> {
    expectOperands(call, 2, 1);
    return std::make_unique<Pool2dGradient>(call, true);
  };
  registry["avgPool2dGradient"] = [](const CallDescription& call) -> std::unique_ptr<Kernel> {
    expectOperands(call, 1, 1);
    return std::make_unique<Pool2dGradient>(call, false);
  };
}

}  // namespace sepconv::cpu
