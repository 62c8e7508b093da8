// depthwiseConv2d (one filter per channel) and maxPool2d on bfloat16: a task is one output row of one picture.
#include <algorithm>

#include "bf16.h"
#include "checks.h"
#include "geometry.h"

namespace sepconv::cpu::bf16 {
namespace {

class DepthwiseConv2d final : public Kernel {
 public:
  explicit DepthwiseConv2d(const CallDescription& call) : table_(*simd().bf16) {
    const TensorType& x = call.input(0);
    const TensorType& filter = call.input(1);
    const TensorType& y = call.outputs[0];
    expectDType(call, "x", x, DType::bfloat16);
    expectDType(call, "y", y, DType::bfloat16);
    expectRank4(call, "x", x);
    expectRank4(call, "filter", filter);
    geometry_ = convolutionGeometry(call, x, y, filter.dim(0), filter.dim(1));
    channels_ = x.dim(3);
    outChannels_ = channels_ * filter.dim(3);
    expectType(call, "filter", filter, {DType::bfloat16, {filter.dim(0), filter.dim(1), channels_, filter.dim(3)}});
    const char* const roles[] = {"inputScale", "inputShift", "scale", "shift"};
    for (size_t i = 0; i < 4; ++i)
      if (call.has(2 + i))
        expectType(call, roles[i], call.input(2 + i), {DType::float32, {i < 2 ? channels_ : outChannels_}});
    expectShape(call, "output", y, {geometry_.batch, geometry_.outHeight, geometry_.outWidth, outChannels_});
    if (call.has(6)) expectType(call, "residual", call.input(6), y);
    inputActivation_ = activationValue(activation(call.attributes, "inputActivation"));
    activation_ = activationValue(activation(call.attributes, "activation"));
  }
  void run(const Arguments& a) const override {
    const Geometry& g = geometry_;
    const int64_t c = outChannels_;
    const DepthwiseWindow window = {
        g.height,      g.width,        g.width * channels_, channels_,         g.kernelHeight,
        g.kernelWidth, g.strideHeight, g.strideWidth,       g.dilationHeight,  g.dilationWidth,
        g.top,         g.left,         c / channels_,       g.kernelWidth * c, c};
    Bf16DepthwiseOperands operands{};
    operands.filter = a.input<uint16_t>(1);
    operands.inputScale = a.input(2);
    operands.inputShift = a.input(3);
    operands.inputActivation = inputActivation_;
    operands.scale = a.input(4);
    operands.shift = a.input(5);
    operands.activation = activation_;
    a.pool.run(g.batch * g.outHeight, [&](int64_t task, int) {
      const int64_t at = task * g.outWidth * c;
      Bf16DepthwiseRun run{};
      run.x = a.input<uint16_t>(0) + task / g.outHeight * g.height * g.width * channels_;
      run.y = a.output<uint16_t>() + at;
      run.residual = a.input<uint16_t>(6) ? a.input<uint16_t>(6) + at : nullptr;
      run.yDistance = run.residualDistance = c;
      run.row = task % g.outHeight;
      run.pixels = g.outWidth;
      run.channels = c;
      table_.depthwise(window, operands, run);
    });
  }

 private:
  const Bf16Table& table_;
  Geometry geometry_{};
  int64_t channels_ = 0, outChannels_ = 0;
  int inputActivation_ = 0, activation_ = 0;
};

class MaxPool2d final : public Kernel {
 public:
  MaxPool2d(const CallDescription& call, const Geometry& geometry) : table_(*simd().bf16), geometry_(geometry) {
    channels_ = call.input(0).dim(3);
  }
  void run(const Arguments& a) const override {
    const Geometry& g = geometry_;
    const uint16_t *x = a.input<uint16_t>(0), *residual = a.input<uint16_t>(1);
    a.pool.run(g.batch * g.outHeight, [&](int64_t task, int thread) {
      const int64_t image = task / g.outHeight, top = task % g.outHeight * g.strideHeight - g.top;
      auto** taps = static_cast<const uint16_t**>(
          a.pool.scratch(thread, static_cast<size_t>(g.kernelHeight * g.kernelWidth) * sizeof(uint16_t*)));
      for (int64_t j = 0; j < g.outWidth; ++j) {
        const int64_t left = j * g.strideWidth - g.left;
        int64_t count = 0;
        for (int64_t row = std::max<int64_t>(top, 0); row < std::min(top + g.kernelHeight, g.height); ++row)
          for (int64_t column = std::max<int64_t>(left, 0); column < std::min(left + g.kernelWidth, g.width); ++column)
            taps[count++] = x + ((image * g.height + row) * g.width + column) * channels_;
        const int64_t at = (task * g.outWidth + j) * channels_;
        table_.maximum(taps, count, residual ? residual + at : nullptr, channels_, a.output<uint16_t>() + at);
      }
    });
  }

 private:
  const Bf16Table& table_;
  const Geometry geometry_;
  int64_t channels_;
};

}  // namespace

std::unique_ptr<Kernel> makeDepthwise(const CallDescription& call) {
  expectOperands(call, 2, 1);
  return std::make_unique<DepthwiseConv2d>(call);
}

std::unique_ptr<Kernel> makeMaxPool2d(const CallDescription& call) {
  expectOperands(call, 1, 1);
  const TensorType& x = call.input(0);
  const TensorType& y = call.outputs[0];
  expectDType(call, "input", x, DType::bfloat16);
  expectDType(call, "output", y, DType::bfloat16);
  expectRank4(call, "input", x);
  expectRank4(call, "output", y);
  const std::vector<int64_t> size = expectList(call, "windowSize", 2), padding = expectList(call, "padding", 4);
  // A window always touches the picture: it is larger than the padding.
  for (size_t axis = 0; axis < 2; ++axis)
    if (size[axis] < 1 || padding[2 * axis] >= size[axis] || padding[2 * axis + 1] >= size[axis])
      fail(call, "ERR_ARGUMENT",
           "padding " + formatShape(padding) + " must be less than the window " + formatShape(size));
  CallDescription window = call;
  window.attributes.set("dilations", std::vector<double>{1, 1});
  const Geometry geometry = convolutionGeometry(window, x, y, size[0], size[1]);
  expectShape(call, "output", y, {x.dim(0), y.dim(1), y.dim(2), x.dim(3)});
  if (call.has(1)) expectType(call, "residual", call.input(1), y);
  return std::make_unique<MaxPool2d>(call, geometry);
}

}  // namespace sepconv::cpu::bf16
