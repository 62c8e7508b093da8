// separableConv2d: x[n, h, w, c], depthwise[kh, kw, c, m], pointwise[c * m, cout] -> y[n, oh, ow, cout] in one pass:
// the depthwise result of a block of output pixels is computed into its thread's cache, as the left operand of the
// product, and never reaches memory. See gemm.cc for the blocks.
#include <algorithm>

#include "checks.h"
#include "gemm.h"
#include "geometry.h"

namespace sepconv::cpu {
namespace {

class SeparableConv2d final : public Kernel {
 public:
  explicit SeparableConv2d(const CallDescription& call) : simd_(simd()) {
    expectOperands(call, 3, 1);
    const TensorType& x = call.input(0);
    const TensorType& depthwise = call.input(1);
    const TensorType& y = call.outputs[0];
    expectDType(call, "x", x, DType::float32);
    expectDType(call, "y", y, DType::float32);
    if (depthwise.rank() != 4)
      fail(call, "ERR_SHAPE", "depthwise: expected [kh, kw, c, m], got " + formatType(depthwise));
    geometry_ = convolutionGeometry(call, x, y, depthwise.dim(0), depthwise.dim(1));
    channels_ = x.dim(3);
    multiplier_ = depthwise.dim(3);
    k_ = channels_ * multiplier_;
    expectType(call, "depthwise", depthwise,
               {DType::float32, {depthwise.dim(0), depthwise.dim(1), channels_, multiplier_}});
    filter_ = FilterInput(call, 2, simd_.gemm, {k_, y.dim(3)});
    const char* const roles[] = {"inputScale", "inputShift", "depthwiseShift"};
    for (size_t i = 0; i < 3; ++i) {
      present_[i] = call.has(3 + i);
      if (present_[i]) expectType(call, roles[i], call.input(3 + i), {DType::float32, {i < 2 ? channels_ : k_}});
    }
    epilogue_ = EpilogueInputs(call, 6, y.dim(3), y);
    inputActivation_ = activationValue(activation(call.attributes, "inputActivation"));
    intermediateActivation_ = activationValue(activation(call.attributes, "intermediateActivation"));
    if (inputActivation_ == activationValue(Activation::elu)) inputFloats_ = x.elements();
    product_ = MatrixProduct(simd_.gemm, y.rows(), k_, y.dim(3), true, false, strassenFlag(call, k_));
  }

  size_t workspaceBytes() const override {
    return (alignedFloats(filter_.workspaceFloats()) + alignedFloats(inputFloats_) +
            alignedFloats(product_.workspaceFloats())) *
           sizeof(float);
  }

  void run(const Arguments& arguments) const override {
    float* workspace = static_cast<float*>(arguments.workspace);
    const float* filter = filter_.at(arguments, simd_.gemm, workspace);
    workspace += alignedFloats(filter_.workspaceFloats());

    DepthwiseOperands operands{};
    operands.filter = arguments.input(1);
    operands.inputScale = present_[0] ? arguments.input(3) : nullptr;
    operands.inputShift = present_[1] ? arguments.input(4) : nullptr;
    operands.inputActivation = inputActivation_;
    operands.shift = present_[2] ? arguments.input(5) : nullptr;
    operands.activation = intermediateActivation_;
    const float* x = arguments.input(0);
    if (inputFloats_) {  // an exponential per element, not per tap
      activateInput(arguments.pool, operands, x, workspace);
      x = workspace;
      workspace += alignedFloats(inputFloats_);
      operands.inputScale = operands.inputShift = nullptr;
      operands.inputActivation = activationValue(Activation::none);
    }

    const Geometry& g = geometry_;
    const DepthwiseWindow window = {
        g.height,      g.width,        g.width * channels_, channels_,          g.kernelHeight,
        g.kernelWidth, g.strideHeight, g.strideWidth,       g.dilationHeight,   g.dilationWidth,
        g.top,         g.left,         multiplier_,         g.kernelWidth * k_, k_};
    const auto fill = [&](int64_t begin, int64_t end, float* target, Upcoming first) {
      const int64_t all = end - begin, from = begin;
      while (begin < end) {
        const int64_t column = begin % g.outWidth, line = begin / g.outWidth,
                      pixels = std::min(end - begin, g.outWidth - column);
        DepthwiseRun run{};
        run.x = x + line / g.outHeight * g.height * g.width * channels_;
        run.y = target;
        run.yDistance = stagedRow(k_);
        run.row = line % g.outHeight;
        run.column = column;
        run.pixels = pixels;
        run.channels = k_;
        const int64_t done = first.floats * (begin - from) / all,
                      share = first.floats * (begin - from + pixels) / all - done;
        const Upcoming upcoming = {first.data + done, share};
        run.upcoming = &upcoming;
        run.upcomingCount = 1;
        simd_.depthwise.run(window, operands, run);
        begin += pixels;
        target += pixels * stagedRow(k_);
      }
    };
    // The input row that the window's last row of taps meets: the others were read for the block before.
    const auto ahead = [&](int64_t begin, int64_t end) -> Upcoming {
      const int64_t below =
          ((g.kernelHeight - 1) * g.dilationHeight - g.top) * g.width + (g.kernelWidth - 1) * g.dilationWidth - g.left;
      const int64_t pixels = g.batch * g.height * g.width;
      const int64_t from = std::clamp<int64_t>(begin + below, 0, pixels), to = std::min(end + below, pixels);
      return {x + from * channels_, std::max<int64_t>(0, to - from) * channels_};
    };
    const bool unit = g.strideHeight == 1 && g.strideWidth == 1;
    product_.run(arguments.pool, {nullptr, fill, unit ? ahead : MatrixProduct::Ahead()}, filter, arguments.output(),
                 epilogue_.at(arguments), nullptr, nullptr, workspace);
  }

 private:
  void activateInput(ThreadPool& pool, const DepthwiseOperands& operands, const float* x, float* target) const {
    const int64_t pixels = inputFloats_ / channels_;
    forEachChunk(pool, pixels, std::max<int64_t>(1, (1 << 13) / channels_), [&](int64_t begin, int64_t count) {
      simd_.depthwise.prologue(operands, x + begin * channels_, channels_, target + begin * channels_, channels_, count,
                               channels_);
    });
  }

  const SimdTable& simd_;
  Geometry geometry_{};
  int64_t channels_ = 0, multiplier_ = 0, k_ = 0, inputFloats_ = 0;
  bool present_[3] = {};  // inputScale, inputShift, depthwiseShift
  int inputActivation_ = 0, intermediateActivation_ = 0;
  FilterInput filter_;
  EpilogueInputs epilogue_;
  MatrixProduct product_;
};

}  // namespace

std::unique_ptr<Kernel> makeSeparable(const CallDescription& call) { return std::make_unique<SeparableConv2d>(call); }

}  // namespace sepconv::cpu
