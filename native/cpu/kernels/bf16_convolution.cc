// packFilter, pointwiseConv2d, conv2d (one group) and separableConv2d on bfloat16: matrix products whose left rows lie
// where they are, or are filled into a block in L2 (activated rows, im2col, depthwise results). Everything is rounded
// where the unfused ops would store it: a depthwise result enters the product as bfloat16.
#include <algorithm>
#include <cstring>

#include "bf16.h"
#include "checks.h"
#include "geometry.h"

namespace sepconv::cpu::bf16 {
namespace {

class PackFilter final : public Kernel {
 public:
  explicit PackFilter(const CallDescription& call) : table_(*simd().bf16) {
    expectOperands(call, 1, 1);
    const TensorType& filter = call.input(0);
    if (filter.rank() != 2) fail(call, "ERR_SHAPE", "filter: expected rank 2, got " + formatType(filter));
    const int64_t panel = call.attributes.integer("panel");
    if (panel != simd().gemm.panel)
      fail(call, "ERR_ARGUMENT",
           "panel: the products of this instruction set take panels of " + std::to_string(simd().gemm.panel) +
               " columns, got " + std::to_string(panel));
    panels_ = {filter.dim(0), filter.dim(1), panel};
    expectDType(call, "filter", filter, DType::bfloat16);
    expectType(call, "packed", call.outputs[0], {DType::bfloat16, {panels_.count(), panels_.pairs(), panel, 2}});
  }
  void run(const Arguments& arguments) const override {
    packPanels(arguments.pool, table_, arguments.input<uint16_t>(0), panels_, arguments.output<uint16_t>());
  }

 private:
  const Bf16Table& table_;
  Panels panels_;
};

class Pointwise final : public Kernel {
 public:
  explicit Pointwise(const CallDescription& call)
      : table_(*simd().bf16), statistics_(call.attributes.flag("statistics")) {
    expectOperands(call, 2, statistics_ ? 3 : 1);
    const TensorType& x = call.input(0);
    const TensorType& y = call.outputs[0];
    expectDType(call, "x", x, DType::bfloat16);
    if (x.rank() < 2) fail(call, "ERR_SHAPE", "x: expected rank 2 or more, got " + formatType(x));
    k_ = x.dim(-1);
    TensorType expected = x;
    expected.shape.back() = y.dim(-1);
    expectType(call, "y", y, expected);
    filter_ = FilterInput(call, 1, simd(), {k_, y.dim(-1)});
    epilogue_ = EpilogueInputs(call, 2, y.dim(-1), y);
    inputActivation_ = activationValue(activation(call.attributes, "inputActivation"));
    const bool staged = inputActivation_ != activationValue(Activation::none) || !MatrixProduct::readsInPlace(k_);
    if (statistics_)
      for (size_t i : {1, 2})
        expectType(call, i == 1 ? "mean" : "variance", call.outputs[i], {DType::float32, {y.dim(-1)}});
    product_ = MatrixProduct(simd(), x.rows(), k_, y.dim(-1), staged, statistics_);
  }
  size_t workspaceBytes() const override { return filter_.workspaceBytes() + product_.workspaceBytes(); }
  void run(const Arguments& arguments) const override {
    const uint16_t* filter = filter_.at(arguments, table_, arguments.workspace);
    const uint16_t* x = arguments.input<uint16_t>(0);
    const auto fill = [&](int64_t begin, int64_t end, uint16_t* target) {
      for (int64_t row = begin; row < end; ++row, target += stagedRow(k_))
        table_.activate(x + row * k_, target, k_, inputActivation_);
    };
    product_.run(arguments.pool, x, fill, filter, arguments.output<uint16_t>(), epilogue_.at(arguments),
                 statistics_ ? arguments.output(1) : nullptr, statistics_ ? arguments.output(2) : nullptr,
                 static_cast<char*>(arguments.workspace) + filter_.workspaceBytes());
  }

 private:
  const Bf16Table& table_;
  const bool statistics_;
  int64_t k_ = 0;
  int inputActivation_ = 0;
  FilterInput filter_;
  EpilogueInputs epilogue_;
  MatrixProduct product_;
};

// im2col into the block in L2: what it costs in copies (k elements per pixel) is a tenth of the product from 32 output
// channels on.
class Conv2d final : public Kernel {
 public:
  Conv2d(const CallDescription& call, const Geometry& g) : table_(*simd().bf16), geometry_(g) {
    const TensorType& x = call.input(0);
    const TensorType& y = call.outputs[0];
    channels_ = x.dim(3);
    k_ = g.kernelHeight * g.kernelWidth * channels_;
    filter_ = FilterInput(call, 1, simd(), {g.kernelHeight, g.kernelWidth, channels_, y.dim(3)});
    epilogue_ = EpilogueInputs(call, 2, y.dim(3), y);
    inputActivation_ = activationValue(activation(call.attributes, "inputActivation"));
    plain_ = k_ == channels_ && g.strideHeight == 1 && g.strideWidth == 1 && g.outHeight == g.height &&
             g.outWidth == g.width && inputActivation_ == activationValue(Activation::none) &&
             MatrixProduct::readsInPlace(k_);
    product_ = MatrixProduct(simd(), y.rows(), k_, y.dim(3), !plain_);
  }
  size_t workspaceBytes() const override { return filter_.workspaceBytes(); }
  void run(const Arguments& arguments) const override {
    const uint16_t* filter = filter_.at(arguments, table_, arguments.workspace);
    const uint16_t* x = arguments.input<uint16_t>(0);
    const auto fill = [&](int64_t begin, int64_t end, uint16_t* target) {
      for (int64_t pixel = begin; pixel < end; ++pixel, target += stagedRow(k_)) gather(x, pixel, target);
    };
    product_.run(arguments.pool, x, fill, filter, arguments.output<uint16_t>(), epilogue_.at(arguments));
  }

 private:
  void gather(const uint16_t* x, int64_t pixel, uint16_t* target) const {
    const Geometry& g = geometry_;
    const int64_t ox = pixel % g.outWidth, oy = pixel / g.outWidth % g.outHeight,
                  sample = pixel / (g.outWidth * g.outHeight);
    const int64_t left = ox * g.strideWidth - g.left, width = g.kernelWidth * channels_;
    const bool whole = g.dilationWidth == 1 && left >= 0 && left + g.kernelWidth <= g.width;
    for (int64_t i = 0; i < g.kernelHeight; ++i, target += width) {
      const int64_t row = oy * g.strideHeight - g.top + i * g.dilationHeight;
      if (row < 0 || row >= g.height) {
        std::fill_n(target, width, uint16_t{0});
        continue;
      }
      const uint16_t* source = x + (sample * g.height + row) * g.width * channels_;
      if (whole) {
        table_.activate(source + left * channels_, target, width, inputActivation_);
        continue;
      }
      for (int64_t j = 0; j < g.kernelWidth; ++j) {
        const int64_t column = left + j * g.dilationWidth;
        if (column < 0 || column >= g.width)
          std::fill_n(target + j * channels_, channels_, uint16_t{0});
        else
          table_.activate(source + column * channels_, target + j * channels_, channels_, inputActivation_);
      }
    }
  }

  const Bf16Table& table_;
  const Geometry geometry_;
  int64_t channels_ = 0, k_ = 0;
  int inputActivation_ = 0;
  bool plain_ = false;
  FilterInput filter_;
  EpilogueInputs epilogue_;
  MatrixProduct product_;
};

class SeparableConv2d final : public Kernel {
 public:
  explicit SeparableConv2d(const CallDescription& call) : table_(*simd().bf16) {
    expectOperands(call, 3, 1);
    const TensorType& x = call.input(0);
    const TensorType& depthwise = call.input(1);
    const TensorType& y = call.outputs[0];
    expectDType(call, "x", x, DType::bfloat16);
    expectDType(call, "y", y, DType::bfloat16);
    if (depthwise.rank() != 4)
      fail(call, "ERR_SHAPE", "depthwise: expected [kh, kw, c, m], got " + formatType(depthwise));
    geometry_ = convolutionGeometry(call, x, y, depthwise.dim(0), depthwise.dim(1));
    channels_ = x.dim(3);
    k_ = channels_ * depthwise.dim(3);
    expectType(call, "depthwise", depthwise,
               {DType::bfloat16, {depthwise.dim(0), depthwise.dim(1), channels_, depthwise.dim(3)}});
    filter_ = FilterInput(call, 2, simd(), {k_, y.dim(3)});
    const char* const roles[] = {"inputScale", "inputShift", "depthwiseShift"};
    for (size_t i = 0; i < 3; ++i) {
      present_[i] = call.has(3 + i);
      if (present_[i]) expectType(call, roles[i], call.input(3 + i), {DType::float32, {i < 2 ? channels_ : k_}});
    }
    epilogue_ = EpilogueInputs(call, 6, y.dim(3), y);
    inputActivation_ = activationValue(activation(call.attributes, "inputActivation"));
    intermediateActivation_ = activationValue(activation(call.attributes, "intermediateActivation"));
    product_ = MatrixProduct(simd(), y.rows(), k_, y.dim(3), true);
  }
  size_t workspaceBytes() const override { return filter_.workspaceBytes(); }
  void run(const Arguments& arguments) const override {
    const uint16_t* filter = filter_.at(arguments, table_, arguments.workspace);
    Bf16DepthwiseOperands operands{};
    operands.filter = arguments.input<uint16_t>(1);
    operands.inputScale = present_[0] ? arguments.input(3) : nullptr;
    operands.inputShift = present_[1] ? arguments.input(4) : nullptr;
    operands.inputActivation = inputActivation_;
    operands.shift = present_[2] ? arguments.input(5) : nullptr;
    operands.activation = intermediateActivation_;
    const uint16_t* x = arguments.input<uint16_t>(0);
    const Geometry& g = geometry_;
    const DepthwiseWindow window = {
        g.height,      g.width,        g.width * channels_, channels_,          g.kernelHeight,
        g.kernelWidth, g.strideHeight, g.strideWidth,       g.dilationHeight,   g.dilationWidth,
        g.top,         g.left,         k_ / channels_,      g.kernelWidth * k_, k_};
    const auto fill = [&](int64_t begin, int64_t end, uint16_t* target) {
      while (begin < end) {
        const int64_t column = begin % g.outWidth, line = begin / g.outWidth,
                      pixels = std::min(end - begin, g.outWidth - column);
        Bf16DepthwiseRun run{};
        run.x = x + line / g.outHeight * g.height * g.width * channels_;
        run.y = target;
        run.yDistance = stagedRow(k_);
        run.row = line % g.outHeight;
        run.column = column;
        run.pixels = pixels;
        run.channels = k_;
        table_.depthwise(window, operands, run);
        begin += pixels;
        target += pixels * stagedRow(k_);
      }
    };
    product_.run(arguments.pool, nullptr, fill, filter, arguments.output<uint16_t>(), epilogue_.at(arguments));
  }

 private:
  const Bf16Table& table_;
  Geometry geometry_{};
  int64_t channels_ = 0, k_ = 0;
  bool present_[3] = {};  // inputScale, inputShift, depthwiseShift
  int inputActivation_ = 0, intermediateActivation_ = 0;
  FilterInput filter_;
  EpilogueInputs epilogue_;
  MatrixProduct product_;
};

}  // namespace

std::unique_ptr<Kernel> makePackFilter(const CallDescription& call) { return std::make_unique<PackFilter>(call); }

std::unique_ptr<Kernel> makePointwise(const CallDescription& call) { return std::make_unique<Pointwise>(call); }

std::unique_ptr<Kernel> makeConv2d(const CallDescription& call) {
  if (call.attributes.integer("groups", 1) != 1) return nullptr;
  expectOperands(call, 2, 1);
  const TensorType& x = call.input(0);
  const TensorType& y = call.outputs[0];
  expectDType(call, "x", x, DType::bfloat16);
  expectDType(call, "y", y, DType::bfloat16);
  expectRank4(call, "x", x);
  expectRank4(call, "y", y);
  const std::vector<int64_t> kernel = expectList(call, "kernelSize", 2);
  return std::make_unique<Conv2d>(call, convolutionGeometry(call, x, y, kernel[0], kernel[1]));
}

std::unique_ptr<Kernel> makeSeparable(const CallDescription& call) { return std::make_unique<SeparableConv2d>(call); }

}  // namespace sepconv::cpu::bf16
