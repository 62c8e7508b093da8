// conv2d x[n, h, w, cin], filter[kh, kw, cin / groups, cout] -> y[n, oh, ow, cout] and its gradients, for any kernel,
// stride, dilation, padding and number of groups. A 1x1 kernel at stride 1 is the pointwise product. One channel per
// group, and groups too narrow for a vector, are depthwise convolutions (grouped.h). All others are TapConvolution's
// products, or FilterGradient's.
#include <algorithm>

#include "checks.h"
#include "filter_gradient.h"
#include "geometry.h"
#include "grouped.h"
#include "tap_convolution.h"

namespace sepconv::cpu {
namespace {

bool isPointwise(const CallDescription& call, int64_t kernelHeight, int64_t kernelWidth, int64_t groups) {
  const auto all = [&](const char* name, int64_t wanted) {
    const std::vector<int64_t> values = call.attributes.integers(name);
    return std::all_of(values.begin(), values.end(), [=](int64_t value) { return value == wanted; });
  };
  return kernelHeight == 1 && kernelWidth == 1 && groups == 1 && all("strides", 1) && all("padding", 0);
}

// The same call on a filter of rank 2.
CallDescription pointwiseCall(const CallDescription& call, const char* kernel) {
  CallDescription pointwise = call;
  pointwise.kernel = kernel;
  const auto flatten = [](TensorType& type) {
    if (type.rank() == 4) type.shape.erase(type.shape.begin(), type.shape.begin() + 2);
  };
  if (call.kernel == "conv2dFilterGradient")
    flatten(pointwise.outputs[0]);
  else
    flatten(*pointwise.inputs[1]);  // a packed filter is of rank 3 and stays as it is
  return pointwise;
}

int64_t checkedGroups(const CallDescription& call, int64_t cin, int64_t cout) {
  const int64_t groups = call.attributes.integer("groups", 1);
  if (groups < 1 || cin % groups || cout % groups)
    fail(call, "ERR_SHAPE",
         "groups: " + std::to_string(groups) + " does not divide cin = " + std::to_string(cin) +
             " and cout = " + std::to_string(cout));
  return groups;
}

class Conv2d final : public Kernel {
 public:
  Conv2d(const CallDescription& call, const Geometry& g, int64_t groups) : gemm_(simd().gemm), groups_(groups) {
    const TensorType& x = call.input(0);
    const TensorType& y = call.outputs[0];
    cout_ = y.dim(3);
    const std::vector<int64_t> shape = {g.kernelHeight, g.kernelWidth, x.dim(3) / groups, cout_};
    if (groups > 1 && call.attributes.flag("packed"))
      fail(call, "ERR_ARGUMENT", "packed: a packed filter has one group, got " + std::to_string(groups));
    filter_ = FilterInput(call, 1, gemm_, shape);
    epilogue_ = EpilogueInputs(call, 2, cout_, y);
    TapPhase phase{{}, {}, 0, 0, g.outHeight, g.outWidth};
    for (int64_t i = 0; i < g.kernelHeight; ++i) phase.dy.push_back(i * g.dilationHeight - g.top);
    for (int64_t j = 0; j < g.kernelWidth; ++j) phase.dx.push_back(j * g.dilationWidth - g.left);
    product_ =
        TapConvolution(gemm_,
                       {g.batch, g.height, g.width, x.dim(3), g.outHeight, g.outWidth, cout_, groups, g.strideHeight,
                        g.strideWidth, 1, 1, activationValue(activation(call.attributes, "inputActivation"))},
                       {phase});
  }

  size_t workspaceBytes() const override {
    return static_cast<size_t>(groups_ == 1 ? filter_.workspaceFloats() : product_.packedFloats()) * sizeof(float);
  }

  void run(const Arguments& arguments) const override {
    float* workspace = static_cast<float*>(arguments.workspace);
    const float* packed = groups_ == 1 ? filter_.at(arguments, gemm_, workspace) : packGroups(arguments, workspace);
    product_.run(arguments.pool, arguments.input(0), packed, arguments.output(), epilogue_.at(arguments));
  }

 private:
  const float* packGroups(const Arguments& arguments, float* packed) const {
    const Panels panels = product_.groupPanels(0);
    const float* filter = arguments.input(1);
    arguments.pool.run(groups_ * panels.count(), [&](int64_t unit, int) {
      const int64_t group = unit / panels.count(), column = unit % panels.count() * panels.panel;
      gemm_.packColumns(filter + group * panels.n + column, cout_, panels.k, std::min(panels.panel, panels.n - column),
                        packed + unit * panels.k * panels.panel);
    });
    return packed;
  }

  const GemmTable& gemm_;
  const int64_t groups_;
  int64_t cout_ = 0;
  FilterInput filter_;
  EpilogueInputs epilogue_;
  TapConvolution product_;
};

// Input pixel y gets what output pixel (y + top - i * dilation) / stride multiplied by tap i, where that is whole.
// Input pixels with the same remainder by the stride share their taps: one phase each, in which output pixels are next
// to each other again.
struct PhaseTaps {
  std::vector<int64_t> offsets, taps;  // of the gradient's pixels, ascending; of the kernel
};

PhaseTaps phaseTaps(int64_t remainder, int64_t before, int64_t kernel, int64_t dilation, int64_t stride) {
  PhaseTaps result;
  for (int64_t i = kernel - 1; i >= 0; --i) {
    const int64_t position = remainder + before - i * dilation;
    if (position % stride) continue;
    result.offsets.push_back(position / stride);
    result.taps.push_back(i);
  }
  return result;
}

class Conv2dInputGradient final : public Kernel {
 public:
  Conv2dInputGradient(const CallDescription& call, const Geometry& g, int64_t groups)
      : gemm_(simd().gemm), groups_(groups) {
    const TensorType& dx = call.outputs[0];
    cin_ = dx.dim(3);
    cout_ = call.input(0).dim(3);
    gate_ = GateInput(call, 2, dx);
    std::vector<TapPhase> phases;
    for (int64_t y = 0; y < std::min(g.strideHeight, g.height); ++y)
      for (int64_t x = 0; x < std::min(g.strideWidth, g.width); ++x) {
        PhaseTaps rows = phaseTaps(y, g.top, g.kernelHeight, g.dilationHeight, g.strideHeight);
        PhaseTaps columns = phaseTaps(x, g.left, g.kernelWidth, g.dilationWidth, g.strideWidth);
        phases.push_back({rows.offsets, columns.offsets, y, x, quotientUp(g.height - y, g.strideHeight),
                          quotientUp(g.width - x, g.strideWidth)});
        taps_.emplace_back();
        for (int64_t i : rows.taps)
          for (int64_t j : columns.taps) taps_.back().push_back(i * g.kernelWidth + j);
      }
    product_ = TapConvolution(gemm_,
                              {g.batch, g.outHeight, g.outWidth, cout_, g.height, g.width, cin_, groups, 1, 1,
                               g.strideHeight, g.strideWidth, activationValue(Activation::none)},
                              std::move(phases));
  }

  size_t workspaceBytes() const override { return static_cast<size_t>(product_.packedFloats()) * sizeof(float); }

  void run(const Arguments& arguments) const override {
    float* packed = static_cast<float*>(arguments.workspace);
    const float* filter = arguments.input(1);
    const int64_t channels = cin_ / groups_, targets = cout_ / groups_;
    const int64_t panels = product_.groupPanels(0).count();
    arguments.pool.run(static_cast<int64_t>(taps_.size()) * groups_ * panels, [&](int64_t task, int) {
      const size_t phase = static_cast<size_t>(task / (groups_ * panels));
      const int64_t unit = task % (groups_ * panels), group = unit / panels, column = unit % panels * gemm_.panel;
      float* target = packed + product_.phaseOffset(phase) + unit * product_.groupPanels(phase).k * gemm_.panel;
      for (int64_t tap : taps_[phase]) {
        gemm_.packTransposed(filter + (tap * channels + column) * cout_ + group * targets, cout_, targets,
                             std::min<int64_t>(gemm_.panel, channels - column), target);
        target += targets * gemm_.panel;
      }
    });
    product_.run(arguments.pool, arguments.input(0), packed, arguments.output(), gate_.at(arguments));
  }

 private:
  const GemmTable& gemm_;
  const int64_t groups_;
  int64_t cin_ = 0, cout_ = 0;
  GateInput gate_;
  std::vector<std::vector<int64_t>> taps_;  // of each phase, in the product's order
  TapConvolution product_;
};

class Conv2dFilterGradient final : public Kernel {
 public:
  Conv2dFilterGradient(const CallDescription& call, const Geometry& geometry, int64_t groups)
      : product_(simd().gemm, geometry, call.input(0).dim(3), call.input(1).dim(3), groups,
                 activation(call.attributes, "inputActivation")) {}
  size_t workspaceBytes() const override { return product_.workspaceBytes(); }
  void run(const Arguments& arguments) const override {
    product_.run(arguments.pool, arguments.input(0), arguments.input(1), arguments.output(),
                 static_cast<float*>(arguments.workspace));
  }

 private:
  FilterGradient product_;
};

}  // namespace

std::unique_ptr<Kernel> makeConv2d(const CallDescription& call) {
  expectOperands(call, 2, 1);
  const TensorType& x = call.input(0);
  const TensorType& y = call.outputs[0];
  expectDType(call, "x", x, DType::float32);
  expectDType(call, "y", y, DType::float32);
  expectRank4(call, "x", x);
  expectRank4(call, "y", y);
  const std::vector<int64_t> kernel = expectList(call, "kernelSize", 2);
  const Geometry geometry = convolutionGeometry(call, x, y, kernel[0], kernel[1]);
  const int64_t groups = checkedGroups(call, x.dim(3), y.dim(3));
  if (isPointwise(call, kernel[0], kernel[1], groups)) return makePointwise(pointwiseCall(call, "pointwiseConv2d"));
  if (prefersDepthwise(x.dim(3) / groups, y.dim(3) / groups, groups)) return makeGroupedConv2d(call, geometry, groups);
  return std::make_unique<Conv2d>(call, geometry, groups);
}

std::unique_ptr<Kernel> makeConv2dInputGradient(const CallDescription& call) {
  expectOperands(call, 2, 1);
  const TensorType& gradient = call.input(0);
  const TensorType& filter = call.input(1);
  const TensorType& dx = call.outputs[0];
  expectDType(call, "gradient", gradient, DType::float32);
  expectDType(call, "dx", dx, DType::float32);
  expectRank4(call, "gradient", gradient);
  expectRank4(call, "dx", dx);
  const int64_t groups = checkedGroups(call, dx.dim(3), gradient.dim(3));
  if (filter.rank() != 4)
    fail(call, "ERR_SHAPE", "filter: expected [kh, kw, cin / groups, cout], got " + formatType(filter));
  expectType(call, "filter", filter,
             {DType::float32, {filter.dim(0), filter.dim(1), dx.dim(3) / groups, gradient.dim(3)}});
  const Geometry geometry = convolutionGeometry(call, dx, gradient, filter.dim(0), filter.dim(1));
  if (isPointwise(call, filter.dim(0), filter.dim(1), groups))
    return makePointwiseInputGradient(pointwiseCall(call, "pointwiseConv2dInputGradient"));
  if (prefersDepthwise(dx.dim(3) / groups, dx.dim(3) / groups, groups))
    return makeGroupedInputGradient(call, geometry, groups);
  return std::make_unique<Conv2dInputGradient>(call, geometry, groups);
}

std::unique_ptr<Kernel> makeConv2dFilterGradient(const CallDescription& call) {
  expectOperands(call, 2, 1);
  const TensorType& x = call.input(0);
  const TensorType& gradient = call.input(1);
  expectDType(call, "x", x, DType::float32);
  expectDType(call, "gradient", gradient, DType::float32);
  expectRank4(call, "x", x);
  expectRank4(call, "gradient", gradient);
  const int64_t groups = checkedGroups(call, x.dim(3), gradient.dim(3));
  const std::vector<int64_t> kernel = expectList(call, "kernelSize", 2);
  expectType(call, "dfilter", call.outputs[0],
             {DType::float32, {kernel[0], kernel[1], x.dim(3) / groups, gradient.dim(3)}});
  const Geometry geometry = convolutionGeometry(call, x, gradient, kernel[0], kernel[1]);
  if (isPointwise(call, kernel[0], kernel[1], groups))
    return makePointwiseFilterGradient(pointwiseCall(call, "pointwiseConv2dFilterGradient"));
  if (prefersDepthwise(x.dim(3) / groups, gradient.dim(3) / groups, groups))
    return makeGroupedFilterGradient(call, geometry, groups);
  return std::make_unique<Conv2dFilterGradient>(call, geometry, groups);
}

}  // namespace sepconv::cpu
