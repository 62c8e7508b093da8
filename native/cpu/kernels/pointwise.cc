// packFilter, pointwiseConv2d (x[rows, cin] filter[cin, cout], the dense layer too) and its two gradients: products
// over all pixels. The input gradient multiplies by the transposed filter, packed anew in every run (1 / rows of the
// work); the filter gradient is FilterGradient's product over pixels. An input activation is applied to rows staged in
// cache, so the product never sees it.
#include <algorithm>

#include "checks.h"
#include "filter_gradient.h"
#include "gemm.h"

namespace sepconv::cpu {
namespace {

class PackFilter final : public Kernel {
 public:
  explicit PackFilter(const CallDescription& call) : gemm_(simd().gemm) {
    expectOperands(call, 1, 1);
    const TensorType& filter = call.input(0);
    if (filter.rank() != 2) fail(call, "ERR_SHAPE", "filter: expected rank 2, got " + formatType(filter));
    const int64_t panel = call.attributes.integer("panel");
    if (panel != gemm_.panel)
      fail(call, "ERR_ARGUMENT",
           "panel: the products of this instruction set take panels of " + std::to_string(gemm_.panel) +
               " columns, got " + std::to_string(panel));
    panels_ = {filter.dim(0), filter.dim(1), panel};
    expectDType(call, "filter", filter, DType::float32);
    expectType(call, "packed", call.outputs[0], {DType::float32, {panels_.count(), panels_.k, panel}});
  }
  void run(const Arguments& arguments) const override {
    packPanels(arguments.pool, gemm_, arguments.input(0), panels_.n, panels_, arguments.output());
  }

 private:
  const GemmTable& gemm_;
  Panels panels_;
};

// `type` with another last dimension.
TensorType withChannels(const TensorType& type, int64_t channels) {
  TensorType changed = type;
  changed.shape.back() = channels;
  return changed;
}

const TensorType& expectMatrix(const CallDescription& call, const char* role, const TensorType& type) {
  expectDType(call, role, type, DType::float32);
  if (type.rank() < 2)
    fail(call, "ERR_SHAPE", std::string(role) + ": expected rank 2 or more, got " + formatType(type));
  return type;
}

class Pointwise final : public Kernel {
 public:
  explicit Pointwise(const CallDescription& call)
      : gemm_(simd().gemm), statistics_(call.attributes.flag("statistics")) {
    expectOperands(call, 2, statistics_ ? 3 : 1);
    const TensorType& x = expectMatrix(call, "x", call.input(0));
    const TensorType& y = expectMatrix(call, "y", call.outputs[0]);
    rows_ = x.rows();
    k_ = x.dim(-1);
    const int64_t n = y.dim(-1);
    expectType(call, "y", y, withChannels(x, n));
    filter_ = FilterInput(call, 1, gemm_, {k_, n});
    epilogue_ = EpilogueInputs(call, 2, n, y);
    if (statistics_)
      for (size_t i : {1, 2}) expectType(call, i == 1 ? "mean" : "variance", call.outputs[i], {DType::float32, {n}});
    inputActivation_ = activationValue(activation(call.attributes, "inputActivation"));
    const bool strassen = strassenFlag(call, k_);
    if (strassen && statistics_)
      fail(call, "ERR_ARGUMENT", "strassen: batch statistics come with plain products alone");
    staged_ = inputActivation_ != activationValue(Activation::none) || collidingRows(gemm_, k_) || strassen;
    product_ = MatrixProduct(gemm_, rows_, k_, n, staged_, statistics_, strassen);
  }

  size_t workspaceBytes() const override {
    return (alignedFloats(filter_.workspaceFloats()) + alignedFloats(product_.workspaceFloats())) * sizeof(float);
  }

  void run(const Arguments& arguments) const override {
    float* workspace = static_cast<float*>(arguments.workspace);
    const float* filter = filter_.at(arguments, gemm_, workspace);
    const float* x = arguments.input(0);
    const auto fill = [&](int64_t begin, int64_t end, float* target, Upcoming) {
      for (int64_t row = begin; row < end; ++row, target += stagedRow(k_))
        gemm_.activate(x + row * k_, target, k_, inputActivation_);
    };
    const auto ahead = [&](int64_t begin, int64_t end) { return Upcoming{x + begin * k_, (end - begin) * k_}; };
    product_.run(arguments.pool, {staged_ ? nullptr : x, fill, ahead}, filter, arguments.output(),
                 epilogue_.at(arguments), statistics_ ? arguments.output(1) : nullptr,
                 statistics_ ? arguments.output(2) : nullptr, workspace + alignedFloats(filter_.workspaceFloats()));
  }

 private:
  const GemmTable& gemm_;
  const bool statistics_;
  int64_t rows_ = 0, k_ = 0;
  int inputActivation_ = 0;
  bool staged_ = false;
  FilterInput filter_;
  EpilogueInputs epilogue_;
  MatrixProduct product_;
};

class PointwiseInputGradient final : public Kernel {
 public:
  explicit PointwiseInputGradient(const CallDescription& call) : gemm_(simd().gemm) {
    expectOperands(call, 2, 1);
    const TensorType& gradient = expectMatrix(call, "gradient", call.input(0));
    const TensorType& dx = expectMatrix(call, "dx", call.outputs[0]);
    k_ = gradient.dim(-1);
    const int64_t n = dx.dim(-1);
    expectType(call, "filter", call.input(1), {DType::float32, {n, k_}});
    expectType(call, "dx", dx, withChannels(gradient, n));
    gate_ = GateInput(call, 2, dx);
    staged_ = collidingRows(gemm_, k_);
    product_ = MatrixProduct(gemm_, gradient.rows(), k_, n, staged_, false);
  }

  size_t workspaceBytes() const override {
    return (alignedFloats(product_.panels().floats()) + alignedFloats(product_.workspaceFloats())) * sizeof(float);
  }

  void run(const Arguments& arguments) const override {
    float* packed = static_cast<float*>(arguments.workspace);
    packTransposedPanels(arguments.pool, gemm_, arguments.input(1), k_, product_.panels(), packed);
    const float* gradient = arguments.input(0);
    const auto fill = [&](int64_t begin, int64_t end, float* target, Upcoming) {
      for (int64_t row = begin; row < end; ++row, target += stagedRow(k_)) std::copy_n(gradient + row * k_, k_, target);
    };
    const auto ahead = [&](int64_t begin, int64_t end) { return Upcoming{gradient + begin * k_, (end - begin) * k_}; };
    product_.run(arguments.pool, {staged_ ? nullptr : gradient, fill, ahead}, packed, arguments.output(),
                 gate_.at(arguments), nullptr, nullptr, packed + alignedFloats(product_.panels().floats()));
  }

 private:
  const GemmTable& gemm_;
  int64_t k_ = 0;
  bool staged_ = false;
  GateInput gate_;
  MatrixProduct product_;
};

class PointwiseFilterGradient final : public Kernel {
 public:
  explicit PointwiseFilterGradient(const CallDescription& call) {
    expectOperands(call, 2, 1);
    const TensorType& x = expectMatrix(call, "x", call.input(0));
    const TensorType& gradient = expectMatrix(call, "gradient", call.input(1));
    const int64_t cin = x.dim(-1), cout = gradient.dim(-1);
    expectType(call, "gradient", gradient, withChannels(x, cout));
    expectType(call, "dfilter", call.outputs[0], {DType::float32, {cin, cout}});
    Geometry pixels{};  // one row of pixels under a 1x1 kernel
    pixels.batch = pixels.height = pixels.outHeight = pixels.kernelHeight = pixels.kernelWidth = 1;
    pixels.width = pixels.outWidth = x.rows();
    pixels.strideHeight = pixels.strideWidth = pixels.dilationHeight = pixels.dilationWidth = 1;
    product_ = FilterGradient(simd().gemm, pixels, cin, cout, 1, activation(call.attributes, "inputActivation"));
  }
  size_t workspaceBytes() const override { return product_.workspaceBytes(); }
  void run(const Arguments& arguments) const override {
    product_.run(arguments.pool, arguments.input(0), arguments.input(1), arguments.output(),
                 static_cast<float*>(arguments.workspace));
  }

 private:
  FilterGradient product_;
};

}  // namespace

std::unique_ptr<Kernel> makePackFilter(const CallDescription& call) { return std::make_unique<PackFilter>(call); }
std::unique_ptr<Kernel> makePointwise(const CallDescription& call) { return std::make_unique<Pointwise>(call); }
std::unique_ptr<Kernel> makePointwiseInputGradient(const CallDescription& call) {
  return std::make_unique<PointwiseInputGradient>(call);
}
std::unique_ptr<Kernel> makePointwiseFilterGradient(const CallDescription& call) {
  return std::make_unique<PointwiseFilterGradient>(call);
}

void registerGemmKernels(Registry& registry) {
  registry["packFilter"] = makePackFilter;
  registry["pointwiseConv2d"] = makePointwise;
  registry["pointwiseConv2dInputGradient"] = makePointwiseInputGradient;
  registry["pointwiseConv2dFilterGradient"] = makePointwiseFilterGradient;
  registry["conv2d"] = makeConv2d;
  registry["conv2dInputGradient"] = makeConv2dInputGradient;
  registry["conv2dFilterGradient"] = makeConv2dFilterGradient;
  registry["separableConv2d"] = makeSeparable;
}

}  // namespace sepconv::cpu
