// depthwiseConv2d and its gradients over the row primitives of simd/depthwise.h. A task is one output row of one
// picture (the input gradient: one input row). The input gradient is a convolution of the gradient with the rotated
// filter; with strides, input rows and columns fall into residue classes, each a stride-1 convolution with every
// stride-th tap. The filter gradient adds blocks of rows, cut by shape, into partial sums that are combined in order.
// depthwiseConv2dGradients does both row by row, so that what they share comes from memory once.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "../shared_blocks.h"
#include "../simd/table.h"
#include "geometry.h"

namespace sepconv::cpu {
namespace {

struct Shape {
  Geometry g;
  int64_t channels, multiplier;
  int64_t outChannels() const { return channels * multiplier; }
  int64_t inputFloats() const { return g.batch * g.height * g.width * channels; }
};

// x[n, h, w, c], y[n, oh, ow, c * m], kernel kh x kw.
Shape shapeOf(const CallDescription& call, const TensorType& x, const TensorType& y, int64_t kh, int64_t kw,
              int64_t multiplier) {
  const Geometry g = convolutionGeometry(call, x, y, kh, kw);
  expectDType(call, "x", x, DType::float32);
  expectType(call, "output", y, {DType::float32, {g.batch, g.outHeight, g.outWidth, x.dim(3) * multiplier}});
  return {g, x.dim(3), multiplier};
}

const TensorType& filterOf(const CallDescription& call, int64_t channels) {
  const TensorType& filter = call.input(1);
  expectDType(call, "filter", filter, DType::float32);
  if (filter.rank() != 4) fail(call, "ERR_SHAPE", "filter: expected [kh, kw, c, m], got " + formatType(filter));
  if (filter.dim(2) != channels)
    fail(call, "ERR_SHAPE", "filter: expected " + std::to_string(channels) + " channels, got " + formatType(filter));
  return filter;
}

void expectVector(const CallDescription& call, size_t input, const char* role, int64_t size) {
  if (call.has(input)) expectType(call, role, call.input(input), {DType::float32, {size}});
}

DepthwiseWindow windowOf(const Shape& s) {
  const Geometry& g = s.g;
  return {g.height,
          g.width,
          g.width * s.channels,
          s.channels,
          g.kernelHeight,
          g.kernelWidth,
          g.strideHeight,
          g.strideWidth,
          g.dilationHeight,
          g.dilationWidth,
          g.top,
          g.left,
          s.multiplier,
          g.kernelWidth * s.outChannels(),
          s.outChannels()};
}

constexpr int64_t kPrologueRows = 64;  // pixels per task when an input is staged

// The input after an exponential prologue, staged in the workspace; x itself where the row primitives apply the
// prologue on the way.
class Staging {
 public:
  Staging(const Shape& s, Activation activation)
      : pixels_(s.inputFloats() / s.channels), channels_(s.channels), needed_(activation == Activation::elu) {}
  size_t bytes() const { return needed_ ? static_cast<size_t>(pixels_ * channels_) * sizeof(float) : 0; }
  const float* run(ThreadPool& pool, DepthwiseOperands& operands, const float* x, void* workspace) const {
    if (!needed_) return x;
    auto* staged = static_cast<float*>(workspace);
    forEachChunk(pool, pixels_, kPrologueRows, [&](int64_t begin, int64_t count) {
      simd().depthwise.prologue(operands, x + begin * channels_, channels_, staged + begin * channels_, channels_,
                                count, channels_);
    });
    operands.inputScale = operands.inputShift = nullptr;
    operands.inputActivation = 0;
    return staged;
  }

 private:
  int64_t pixels_, channels_;
  bool needed_;
};

class DepthwiseConv2d : public Kernel {
 public:
  explicit DepthwiseConv2d(const CallDescription& call)
      : shape_(make(call)),
        inputActivation_(activation(call.attributes, "inputActivation")),
        activation_(activation(call.attributes, "activation")),
        staging_(shape_, inputActivation_) {
    expectVector(call, 2, "inputScale", shape_.channels);
    expectVector(call, 3, "inputShift", shape_.channels);
    expectVector(call, 4, "scale", shape_.outChannels());
    expectVector(call, 5, "shift", shape_.outChannels());
    if (call.has(6)) expectType(call, "residual", call.input(6), call.outputs[0]);
  }
  size_t workspaceBytes() const override { return staging_.bytes(); }
  void run(const Arguments& a) const override {
    const Geometry& g = shape_.g;
    DepthwiseOperands operands{a.input(1),
                               a.input(2),
                               a.input(3),
                               static_cast<int>(inputActivation_),
                               a.input(4),
                               a.input(5),
                               static_cast<int>(activation_),
                               nullptr,
                               nullptr,
                               0};
    const float* x = staging_.run(a.pool, operands, a.input(0), a.workspace);
    const DepthwiseWindow window = windowOf(shape_);
    const int64_t c = shape_.outChannels();
    runRanges(a.pool, g.batch * g.outHeight, [&](int64_t task, int) {
      const int64_t at = task * g.outWidth * c;
      const float* residual = a.input(6) ? a.input(6) + at : nullptr;
      simd().depthwise.run(window, operands,
                           {x + task / g.outHeight * g.height * g.width * shape_.channels, a.output() + at, residual,
                            nullptr, c, c, 0, task % g.outHeight, 0, g.outWidth, c});
    });
  }

 private:
  static Shape make(const CallDescription& call) {
    expectOperands(call, 2, 1);
    const TensorType& x = call.input(0);
    expectRank4(call, "x", x);
    const TensorType& filter = filterOf(call, x.dim(3));
    return shapeOf(call, x, call.outputs[0], filter.dim(0), filter.dim(1), filter.dim(3));
  }
  Shape shape_;
  Activation inputActivation_, activation_;
  Staging staging_;
};

// The taps of one residue class along one axis: input position `residue + stride * q` reads gradient position q - top +
// t * step for t in [0, taps), where t counts taps of the filter from `last` downwards in steps of `period`.
struct Phase {
  int64_t taps = 0, last = 0, period = 1, step = 1, top = 0;
};

Phase phaseOf(int64_t residue, int64_t before, int64_t kernel, int64_t stride, int64_t dilation) {
  Phase phase;
  const int64_t common = std::gcd(stride, dilation);
  phase.period = stride / common;
  phase.step = dilation / common;
  int64_t first = -1;
  for (int64_t i = 0; i < std::min(phase.period, kernel) && first < 0; ++i)
    if ((residue + before - i * dilation) % stride == 0) first = i;
  if (first < 0) return phase;
  phase.taps = (kernel - 1 - first) / phase.period + 1;
  phase.last = first + phase.period * (phase.taps - 1);
  phase.top = -(residue + before - phase.last * dilation) / stride;
  return phase;
}

class DepthwiseConv2dInputGradient : public Kernel {
 public:
  explicit DepthwiseConv2dInputGradient(const CallDescription& call)
      : shape_(make(call)), inputActivation_(activation(call.attributes, "inputActivation")) {
    if (inputActivation_ != Activation::none) {
      if (!call.has(2)) fail(call, "ERR_SHAPE", "x is missing");
      expectType(call, "x", call.input(2), call.outputs[0]);
    }
    expectVector(call, 3, "inputScale", shape_.channels);
    expectVector(call, 4, "inputShift", shape_.channels);
  }
  void run(const Arguments& a) const override {
    const Geometry& g = shape_.g;
    const int64_t c = shape_.channels, m = shape_.multiplier, cm = shape_.outChannels();
    const float* x = inputActivation_ == Activation::none ? nullptr : a.input(2);
    DepthwiseOperands gate{};
    gate.gateScale = a.input(3);
    gate.gateShift = a.input(4);
    gate.gateActivation = static_cast<int>(inputActivation_);
    runRanges(a.pool, g.batch * g.height, [&](int64_t task, int thread) {
      const int64_t image = task / g.height, row = task % g.height;
      const float* gradient = a.input(0) + image * g.outHeight * g.outWidth * cm;
      const Phase vertical = phaseOf(row % g.strideHeight, g.top, g.kernelHeight, g.strideHeight, g.dilationHeight);
      auto* sums = m > 1
                       ? static_cast<float*>(a.pool.scratch(thread, static_cast<size_t>(g.width * cm) * sizeof(float)))
                       : nullptr;
      for (int64_t column = 0; column < std::min(g.strideWidth, g.width); ++column) {
        const Phase horizontal = phaseOf(column, g.left, g.kernelWidth, g.strideWidth, g.dilationWidth);
        const int64_t pixels = (g.width - column + g.strideWidth - 1) / g.strideWidth;
        const int64_t at = (task * g.width + column) * c, distance = g.strideWidth * c;
        const DepthwiseWindow window{g.outHeight,
                                     g.outWidth,
                                     g.outWidth * cm,
                                     cm,
                                     vertical.taps,
                                     horizontal.taps,
                                     1,
                                     1,
                                     vertical.step,
                                     horizontal.step,
                                     vertical.top,
                                     horizontal.top,
                                     1,
                                     -vertical.period * g.kernelWidth * cm,
                                     -horizontal.period * cm};
        DepthwiseOperands operands = m == 1 ? gate : DepthwiseOperands{};
        operands.filter = a.input(1) + (vertical.last * g.kernelWidth + horizontal.last) * cm;
        const float* gated = x ? x + at : nullptr;
        float* y = a.output() + at;
        if (m == 1) {
          simd().depthwise.run(
              window, operands,
              {gradient, y, nullptr, gated, distance, 0, distance, row / g.strideHeight, 0, pixels, cm});
        } else {
          simd().depthwise.run(window, operands,
                               {gradient, sums, nullptr, nullptr, cm, 0, 0, row / g.strideHeight, 0, pixels, cm});
          simd().depthwise.sumMultiplier(gate, sums, cm, y, distance, gated, distance, pixels, c, m);
        }
      }
    });
  }

 private:
  static Shape make(const CallDescription& call) {
    expectOperands(call, 2, 1);
    const TensorType& x = call.outputs[0];
    expectRank4(call, "dz", x);
    const TensorType& filter = filterOf(call, x.dim(3));
    return shapeOf(call, x, call.input(0), filter.dim(0), filter.dim(1), filter.dim(3));
  }
  Shape shape_;
  Activation inputActivation_;
};

// Blocks of rows with partial sums of their own, cut by shape: a block is worth a task when it reads some ten times
// what its partial sums take.
struct SummedBlocks {
  int64_t rows = 0, perBlock = 1, count = 0;
  SummedBlocks() = default;
  SummedBlocks(int64_t rows, int64_t taps, int64_t width)
      : rows(rows),
        perBlock(std::max<int64_t>({1, (rows + 31) / 32, 10 * taps / std::max<int64_t>(width, 1)})),
        count((rows + perBlock - 1) / perBlock) {}
  int64_t begin(int64_t block) const { return block * perBlock; }
  int64_t end(int64_t block) const { return std::min(rows, (block + 1) * perBlock); }
  // Of element i of partial sums that lie `distance` floats apart.
  double sum(const float* partial, int64_t distance, int64_t i) const {
    double total = 0;
    for (int64_t block = 0; block < count; ++block) total += partial[block * distance + i];
    return total;
  }
};

class DepthwiseConv2dFilterGradient : public Kernel {
 public:
  explicit DepthwiseConv2dFilterGradient(const CallDescription& call)
      : shape_(make(call)),
        inputActivation_(activation(call.attributes, "inputActivation")),
        staging_(shape_, inputActivation_) {
    expectVector(call, 2, "inputScale", shape_.channels);
    expectVector(call, 3, "inputShift", shape_.channels);
    const Geometry& g = shape_.g;
    blocks_ = SummedBlocks(g.batch * g.outHeight, g.kernelHeight * g.kernelWidth, g.outWidth);
    staged_ = (staging_.bytes() + 63) / 64 * 64;
  }
  size_t workspaceBytes() const override {
    return staged_ + static_cast<size_t>(blocks_.count * filterSize()) * sizeof(float);
  }
  void run(const Arguments& a) const override {
    const Geometry& g = shape_.g;
    const int64_t cm = shape_.outChannels(), size = filterSize();
    DepthwiseOperands operands{};
    operands.inputScale = a.input(2);
    operands.inputShift = a.input(3);
    operands.inputActivation = static_cast<int>(inputActivation_);
    const float* x = staging_.run(a.pool, operands, a.input(0), a.workspace);
    auto* partial = reinterpret_cast<float*>(static_cast<char*>(a.workspace) + staged_);
    const DepthwiseWindow window = windowOf(shape_);
    // From the last block to the first: the input gradient of the pointwise half was written upwards, so its end is
    // still in L3, and the depthwise input gradient, which follows, starts where this stops.
    a.pool.run(blocks_.count, [&](int64_t task, int) {
      const int64_t block = blocks_.count - 1 - task;
      float* sums = partial + block * size;
      std::fill(sums, sums + size, 0.0f);
      for (int64_t row = blocks_.begin(block); row < blocks_.end(block); ++row)
        simd().depthwise.filterGradient(
            window, operands,
            {x + row / g.outHeight * g.height * g.width * shape_.channels, a.input(1) + row * g.outWidth * cm, sums, cm,
             cm, row % g.outHeight, 0, g.outWidth, cm});
    });
    forEachChunk(a.pool, size, 1024, [&](int64_t begin, int64_t count) {
      for (int64_t i = begin; i < begin + count; ++i) a.output()[i] = static_cast<float>(blocks_.sum(partial, size, i));
    });
  }

 private:
  static Shape make(const CallDescription& call) {
    expectOperands(call, 2, 1);
    const TensorType& filter = call.outputs[0];
    if (filter.rank() != 4) fail(call, "ERR_SHAPE", "expected a filter [kh, kw, c, m], got " + formatType(filter));
    expectRank4(call, "x", call.input(0));
    const std::vector<int64_t> kernel = expectList(call, "kernelSize", 2);
    expectType(call, "filter", filter, {DType::float32, {kernel[0], kernel[1], call.input(0).dim(3), filter.dim(3)}});
    return shapeOf(call, call.input(0), call.input(1), filter.dim(0), filter.dim(1), filter.dim(3));
  }
  int64_t filterSize() const { return shape_.g.kernelHeight * shape_.g.kernelWidth * shape_.outChannels(); }
  Shape shape_;
  Activation inputActivation_;
  Staging staging_;
  SummedBlocks blocks_;
  size_t staged_;
};

// Both gradients at stride 1, row by row of x: the row's dz, what else the gradient of x consists of, the sums that
// batch norm's gradient wants, and the filter gradient's share of the output row. x, gradient and dz then pass through
// memory once: three rows of each are 440 KB at 147 x 128, less than an L2.
class DepthwiseConv2dGradients : public Kernel {
 public:
  explicit DepthwiseConv2dGradients(const CallDescription& call)
      : shape_(make(call)),
        inputActivation_(activation(call.attributes, "inputActivation")),
        staging_(shape_, inputActivation_),
        staged_((staging_.bytes() + 63) / 64 * 64),
        sums_(call.has(6)),
        epsilon_(sums_ ? call.attributes.number("epsilon") : 0) {
    const std::string masked = call.attributes.text("masked");
    if (masked != "none" && masked != "own" && masked != "sum")
      fail(call, "ERR_ARGUMENT", "masked must be none, own or sum, got '" + masked + "'");
    own_ = masked == "own";
    gated_ = masked != "none" && inputActivation_ != Activation::none;
    const int64_t c = shape_.channels;
    for (size_t i : {3, 4, 6, 7}) expectVector(call, i, "inputScale, inputShift, mean or variance", c);
    if (call.has(5)) expectType(call, "residual", call.input(5), call.input(0));
    if (sums_ != call.has(7)) fail(call, "ERR_SHAPE", "mean and variance come together");
    expectType(call, "dz", call.outputs[0], call.input(0));
    for (size_t i = 2; i < call.outputs.size(); ++i) expectType(call, "sums", call.outputs[i], {DType::float32, {c}});
    blocks_ = SummedBlocks(shape_.g.batch * shape_.g.height, 9, shape_.g.width);
  }
  size_t workspaceBytes() const override {
    return staged_ + static_cast<size_t>(blocks_.count * partialFloats()) * sizeof(float);
  }
  void run(const Arguments& a) const override {
    const Geometry& g = shape_.g;
    const int64_t c = shape_.channels, row = g.width * c, outRow = g.outWidth * c;
    DepthwiseOperands forward{};  // the prologue
    forward.inputScale = a.input(3);
    forward.inputShift = a.input(4);
    forward.inputActivation = static_cast<int>(inputActivation_);
    const float *x = a.input(0), *gradient = a.input(1), *residual = a.input(5), *mean = a.input(6);
    const float* z = staging_.run(a.pool, forward, x, a.workspace);
    // The gradient, filtered by the taps in reverse.
    DepthwiseOperands backward{};
    backward.filter = a.input(2) + 8 * c;
    if (gated_) {
      backward.gateScale = a.input(3);
      backward.gateShift = a.input(4);
      backward.gateActivation = static_cast<int>(inputActivation_);
    }
    const bool addedBefore = residual && !(own_ && gated_), addedAfter = residual && !addedBefore;
    const DepthwiseWindow window = windowOf(shape_),
                          reversed = {g.outHeight, g.outWidth, outRow,    c,          3, 3,      1, 1,
                                      1,           1,          2 - g.top, 2 - g.left, 1, -3 * c, -c};
    auto* partial = reinterpret_cast<float*>(static_cast<char*>(a.workspace) + staged_);
    // From the last block to the first: the kernel before wrote the gradient upwards and left its end in L3.
    a.pool.run(blocks_.count, [&](int64_t task, int thread) {
      const int64_t block = blocks_.count - 1 - task;
      float* dfilter = partial + block * partialFloats();
      float* moments = dfilter + 9 * c;
      std::fill(dfilter, dfilter + partialFloats(), 0.0f);
      auto* own = static_cast<float*>(a.pool.scratch(thread, static_cast<size_t>(2 * c) * sizeof(float)));
      for (int64_t line = blocks_.begin(block); line < blocks_.end(block); ++line) {
        const int64_t image = line / g.height, y = line % g.height;
        const float* slopes = gradient + image * g.outHeight * outRow;
        const float* input = x + line * row;
        float* dz = a.output() + line * row;
        simd().depthwise.run(reversed, backward,
                             {slopes, dz, addedBefore ? residual + line * row : nullptr, gated_ ? input : nullptr, c, c,
                              c, y, 0, g.width, c});
        if (addedAfter) simd().normalisation.scaleShift(dz, nullptr, nullptr, residual + line * row, 0, g.width, c, dz);
        if (sums_) {
          simd().normalisation.gradientSums(dz, input, mean, g.width, c, own, own + c);
          for (int64_t j = 0; j < 2 * c; ++j) moments[j] += own[j];
        }
        // Output rows beyond the last row of x are its task's too.
        const int64_t last = y + 1 == g.height ? g.outHeight : std::min(y + 1, g.outHeight);
        for (int64_t o = y; o < last; ++o)
          simd().depthwise.filterGradient(
              window, forward, {z + image * g.height * row, slopes + o * outRow, dfilter, c, c, o, 0, g.outWidth, c});
      }
    });
    const float* variance = a.input(7);
    forEachChunk(a.pool, partialFloats(), 1024, [&](int64_t begin, int64_t count) {
      for (int64_t i = begin; i < begin + count; ++i) {
        const double sum = blocks_.sum(partial, partialFloats(), i);
        if (i < 9 * c)
          a.output(1)[i] = static_cast<float>(sum);
        else if (i < 10 * c)
          a.output(3)[i - 9 * c] = static_cast<float>(sum);
        else
          a.output(2)[i - 10 * c] = static_cast<float>(sum / std::sqrt(variance[i - 10 * c] + epsilon_));
      }
    });
  }

 private:
  static Shape make(const CallDescription& call) {
    expectOperands(call, 3, call.has(6) ? 4 : 2);
    const TensorType &x = call.input(0), &filter = call.input(2);
    expectRank4(call, "x", x);
    const Shape shape = shapeOf(call, x, call.input(1), 3, 3, 1);
    const Geometry& g = shape.g;
    expectType(call, "filter", filter, {DType::float32, {3, 3, x.dim(3), 1}});
    expectType(call, "dfilter", call.outputs[1], filter);
    if (g.strideHeight != 1 || g.strideWidth != 1 || g.dilationHeight != 1 || g.dilationWidth != 1)
      fail(call, "ERR_ARGUMENT", "strides and dilations must be 1");
    return shape;
  }
  // [3, 3, c] of dfilter, then sum dz and sum dz * (x - mean).
  int64_t partialFloats() const { return (sums_ ? 11 : 9) * shape_.channels; }
  Shape shape_;
  Activation inputActivation_;
  Staging staging_;
  size_t staged_;
  bool sums_, own_ = false, gated_ = false;
  double epsilon_;
  SummedBlocks blocks_;
};

}  // namespace

void registerDepthwiseKernels(Registry& registry) {
  registry["depthwiseConv2d"] = [](const CallDescription& call) -> std::unique_ptr<Kernel> {
    return std::make_unique<DepthwiseConv2d>(call);
  };
  registry["depthwiseConv2dInputGradient"] = [](const CallDescription& call) -> std::unique_ptr<Kernel> {
    return std::make_unique<DepthwiseConv2dInputGradient>(call);
  };
  registry["depthwiseConv2dGradients"] = [](const CallDescription& call) -> std::unique_ptr<Kernel> {
    return std::make_unique<DepthwiseConv2dGradients>(call);
  };
  registry["depthwiseConv2dFilterGradient"] = [](const CallDescription& call) -> std::unique_ptr<Kernel> {
    return std::make_unique<DepthwiseConv2dFilterGradient>(call);
  };
}

}  // namespace sepconv::cpu
