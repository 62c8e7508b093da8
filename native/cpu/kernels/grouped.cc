// Narrow groups through the depthwise kernels: channels are taken apart ([n, h, w, groups, q] -> [q, n, h, w, groups]),
// each of the q parts goes through a depthwise kernel, partial sums travelling as residuals between two buffers, and
// gradients are put together again.
#include "grouped.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "checks.h"
#include "gemm.h"

namespace sepconv::cpu {
namespace {

constexpr int64_t kTaskFloats = 1 << 14;

struct Parts {
  Parts(const Geometry& geometry, int64_t groups, int64_t cin, int64_t cout)
      : groups(groups),
        count(cin / groups),
        pixels(geometry.batch * geometry.height * geometry.width),
        taps(geometry.kernelHeight * geometry.kernelWidth),
        cout(cout) {}

  // parts[i][pixel][group] = x[pixel][group][i]
  void takeApart(ThreadPool& pool, const float* x, float* parts) const {
    forEachChunk(pool, pixels, pixelsPerTask(), [&](int64_t begin, int64_t n) {
      for (int64_t pixel = begin; pixel < begin + n; ++pixel)
        for (int64_t i = 0; i < count; ++i)
          for (int64_t group = 0; group < groups; ++group)
            parts[(i * pixels + pixel) * groups + group] = x[(pixel * groups + group) * count + i];
    });
  }
  // dx[pixel][group][i] = parts[i][pixel][group] * activation'(x)
  void putTogether(ThreadPool& pool, const float* parts, Activation activation, const float* x, float* dx) const {
    forEachChunk(pool, pixels, pixelsPerTask(), [&](int64_t begin, int64_t n) {
      for (int64_t pixel = begin; pixel < begin + n; ++pixel)
        for (int64_t i = 0; i < count; ++i)
          for (int64_t group = 0; group < groups; ++group) {
            const int64_t element = (pixel * groups + group) * count + i;
            const float part = parts[(i * pixels + pixel) * groups + group];
            if (activation == Activation::none || x[element] > 0)
              dx[element] = part;
            else
              dx[element] = activation == Activation::elu ? part * std::exp(x[element]) : 0.0f;
          }
    });
  }
  // parts[i][tap][output channel] = filter[tap][i][output channel]
  void takeFilterApart(const float* filter, float* parts) const {
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t i = 0; i < count; ++i)
        std::copy_n(filter + (tap * count + i) * cout, cout, parts + (i * taps + tap) * cout);
  }

  int64_t partFloats() const { return pixels * groups; }
  int64_t filterFloats() const { return taps * cout; }

  int64_t groups, count, pixels, taps, cout;

 private:
  int64_t pixelsPerTask() const { return std::max<int64_t>(1, kTaskFloats / (groups * count)); }
};

std::unique_ptr<Kernel> makeInner(const CallDescription& call) { return kernels().at(call.kernel)(call); }

TensorType floats(std::vector<int64_t> shape) { return {DType::float32, std::move(shape)}; }

std::vector<int64_t> partShape(const Geometry& g, int64_t groups) { return {g.batch, g.height, g.width, groups}; }
std::vector<int64_t> filterShape(const Geometry& g, int64_t groups, int64_t cout) {
  return {g.kernelHeight, g.kernelWidth, groups, cout / groups};
}

// A call like `call` of a depthwise kernel.
CallDescription innerCall(const CallDescription& call, const char* kernel,
                          std::vector<std::optional<TensorType>> inputs, TensorType output) {
  CallDescription inner = call;
  inner.kernel = kernel;
  inner.inputs = std::move(inputs);
  inner.outputs = {std::move(output)};
  return inner;
}

class GroupedConv2d final : public Kernel {
 public:
  GroupedConv2d(const CallDescription& call, const Geometry& g, int64_t groups)
      : parts_(g, groups, call.input(0).dim(3), call.outputs[0].dim(3)) {
    const TensorType& y = call.outputs[0];
    if (call.attributes.flag("packed"))
      fail(call, "ERR_ARGUMENT", "packed: a packed filter has one group, got " + std::to_string(groups));
    expectType(call, "filter", call.input(1), floats({g.kernelHeight, g.kernelWidth, parts_.count, parts_.cout}));
    EpilogueInputs(call, 2, parts_.cout, y);
    yFloats_ = y.elements();
    for (size_t i = 0; i < 3; ++i) present_[i] = call.has(2 + i);
    for (int64_t i = 0; i < parts_.count; ++i) {
      const bool first = i == 0, last = i == parts_.count - 1;
      if (!first && !last && kernels_.size() == 2) {  // all those in between are alike
        continue;
      }
      const auto optional = [](bool present, const TensorType& type) {
        return present ? std::optional<TensorType>(type) : std::nullopt;
      };
      CallDescription inner = innerCall(call, "depthwiseConv2d",
                                        {floats(partShape(g, groups)),
                                         floats(filterShape(g, groups, parts_.cout)),
                                         {},
                                         {},
                                         optional(present_[0], floats({parts_.cout})),
                                         optional(present_[1] && first, floats({parts_.cout})),
                                         optional(!first || present_[2], y)},
                                        y);
      if (!last) inner.attributes.set("activation", std::string("none"));
      kernels_.push_back(makeInner(inner));
      innerBytes_ = std::max(innerBytes_, kernels_.back()->workspaceBytes());
    }
  }

  size_t workspaceBytes() const override {
    if (parts_.count == 1) return innerBytes_;
    return (alignedFloats(parts_.count * parts_.partFloats()) + alignedFloats(parts_.count * parts_.filterFloats()) +
            alignedFloats(yFloats_)) *
               sizeof(float) +
           innerBytes_;
  }

  void run(const Arguments& arguments) const override {
    const auto optional = [&](size_t i) { return present_[i] ? arguments.inputs[2 + i] : nullptr; };
    const float* x = arguments.input(0);
    const float* filter = arguments.input(1);
    float* const y = arguments.output();
    float* sums = nullptr;  // the other buffer
    float* workspace = static_cast<float*>(arguments.workspace);
    if (parts_.count > 1) {
      parts_.takeApart(arguments.pool, x, workspace);
      x = workspace;
      workspace += alignedFloats(parts_.count * parts_.partFloats());
      parts_.takeFilterApart(filter, workspace);
      filter = workspace;
      workspace += alignedFloats(parts_.count * parts_.filterFloats());
      sums = workspace;
      workspace += alignedFloats(yFloats_);
    }
    const void* residual = optional(2);
    for (int64_t i = 0; i < parts_.count; ++i) {
      const bool last = i == parts_.count - 1;
      const size_t kernel = last ? kernels_.size() - 1 : i == 0 ? 0 : 1;
      float* target = (parts_.count - 1 - i) % 2 == 0 ? y : sums;  // the last one writes y
      const void* inputs[] = {x + i * parts_.partFloats(),
                              filter + i * parts_.filterFloats(),
                              nullptr,
                              nullptr,
                              optional(0),
                              i == 0 ? optional(1) : nullptr,
                              residual};
      void* outputs[] = {target};
      kernels_[kernel]->run({inputs, std::size(inputs), outputs, workspace, arguments.pool});
      residual = target;
    }
  }

 private:
  Parts parts_;
  int64_t yFloats_ = 0;
  bool present_[3] = {};                          // scale, shift, residual
  std::vector<std::unique_ptr<Kernel>> kernels_;  // of the first part, of those in between, of the last
  size_t innerBytes_ = 0;
};

class GroupedInputGradient final : public Kernel {
 public:
  GroupedInputGradient(const CallDescription& call, const Geometry& g, int64_t groups)
      : parts_(g, groups, call.outputs[0].dim(3), call.input(0).dim(3)),
        activation_(activation(call.attributes, "inputActivation")) {
    GateInput(call, 2, call.outputs[0]);
    const TensorType part = floats(partShape(g, groups));
    const bool gated = parts_.count == 1 && activation_ != Activation::none;
    CallDescription inner = innerCall(call, "depthwiseConv2dInputGradient",
                                      {call.input(0),
                                       floats(filterShape(g, groups, parts_.cout)),
                                       gated ? std::optional<TensorType>(part) : std::nullopt,
                                       {},
                                       {}},
                                      part);
    if (!gated) inner.attributes.set("inputActivation", std::string("none"));
    kernel_ = makeInner(inner);
  }

  size_t workspaceBytes() const override {
    if (parts_.count == 1) return kernel_->workspaceBytes();
    return (alignedFloats(parts_.count * parts_.partFloats()) + alignedFloats(parts_.count * parts_.filterFloats())) *
               sizeof(float) +
           kernel_->workspaceBytes();
  }

  void run(const Arguments& arguments) const override {
    const float* x = activation_ == Activation::none ? nullptr : arguments.input(2);
    if (parts_.count == 1) {
      const void* inputs[] = {arguments.inputs[0], arguments.inputs[1], x, nullptr, nullptr};
      kernel_->run({inputs, std::size(inputs), arguments.outputs, arguments.workspace, arguments.pool});
      return;
    }
    float* const results = static_cast<float*>(arguments.workspace);
    float* const filters = results + alignedFloats(parts_.count * parts_.partFloats());
    float* const inner = filters + alignedFloats(parts_.count * parts_.filterFloats());
    parts_.takeFilterApart(arguments.input(1), filters);
    for (int64_t i = 0; i < parts_.count; ++i) {
      const void* inputs[] = {arguments.inputs[0], filters + i * parts_.filterFloats(), nullptr, nullptr, nullptr};
      void* outputs[] = {results + i * parts_.partFloats()};
      kernel_->run({inputs, std::size(inputs), outputs, inner, arguments.pool});
    }
    parts_.putTogether(arguments.pool, results, activation_, x, arguments.output());
  }

 private:
  Parts parts_;
  Activation activation_;
  std::unique_ptr<Kernel> kernel_;
};

class GroupedFilterGradient final : public Kernel {
 public:
  GroupedFilterGradient(const CallDescription& call, const Geometry& g, int64_t groups)
      : parts_(g, groups, call.input(0).dim(3), call.input(1).dim(3)) {
    kernel_ = makeInner(innerCall(call, "depthwiseConv2dFilterGradient",
                                  {floats(partShape(g, groups)), call.input(1), {}, {}},
                                  floats(filterShape(g, groups, parts_.cout))));
  }

  size_t workspaceBytes() const override {
    if (parts_.count == 1) return kernel_->workspaceBytes();
    return (alignedFloats(parts_.count * parts_.partFloats()) + alignedFloats(parts_.filterFloats())) * sizeof(float) +
           kernel_->workspaceBytes();
  }

  void run(const Arguments& arguments) const override {
    if (parts_.count == 1) {
      const void* inputs[] = {arguments.inputs[0], arguments.inputs[1], nullptr, nullptr};
      kernel_->run({inputs, std::size(inputs), arguments.outputs, arguments.workspace, arguments.pool});
      return;
    }
    float* const x = static_cast<float*>(arguments.workspace);
    float* const result = x + alignedFloats(parts_.count * parts_.partFloats());  // [tap][output channel]
    float* const inner = result + alignedFloats(parts_.filterFloats());
    parts_.takeApart(arguments.pool, arguments.input(0), x);
    for (int64_t i = 0; i < parts_.count; ++i) {
      const void* inputs[] = {x + i * parts_.partFloats(), arguments.inputs[1], nullptr, nullptr};
      void* outputs[] = {result};
      kernel_->run({inputs, std::size(inputs), outputs, inner, arguments.pool});
      for (int64_t tap = 0; tap < parts_.taps; ++tap)
        std::copy_n(result + tap * parts_.cout, parts_.cout,
                    arguments.output() + (tap * parts_.count + i) * parts_.cout);
    }
  }

 private:
  Parts parts_;
  std::unique_ptr<Kernel> kernel_;
};

}  // namespace

// A product computes whole vectors of a group's channels, a depthwise convolution whole vectors of all channels at
// about half the rate, and passes over the result once per part.
bool prefersDepthwise(int64_t channelsPerGroup, int64_t lanes, int64_t groups) {
  if (groups == 1) return false;
  return channelsPerGroup == 1 ||
         (channelsPerGroup <= 16 && lanes * 4 <= simd().width && groups * lanes >= simd().width);
}

std::unique_ptr<Kernel> makeGroupedConv2d(const CallDescription& call, const Geometry& geometry, int64_t groups) {
  return std::make_unique<GroupedConv2d>(call, geometry, groups);
}
std::unique_ptr<Kernel> makeGroupedInputGradient(const CallDescription& call, const Geometry& geometry,
                                                 int64_t groups) {
  return std::make_unique<GroupedInputGradient>(call, geometry, groups);
}
std::unique_ptr<Kernel> makeGroupedFilterGradient(const CallDescription& call, const Geometry& geometry,
                                                  int64_t groups) {
  return std::make_unique<GroupedFilterGradient>(call, geometry, groups);
}

}  // namespace sepconv::cpu
