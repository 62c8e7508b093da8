// bfloat16 for ops that have no loops of their own on it: operands are widened into the workspace, the float32 kernel
// runs, results are rounded. One pass more over each operand, so the ops that a network spends its time in have kernels
// of their own (bf16.h) or take blocks of either storage (float_blocks.h).
#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "bf16.h"
#include "checks.h"

namespace sepconv::cpu::bf16 {
namespace {

constexpr int64_t kChunk = 16384;

// Which operands of a call are stored alike; all others are what they are in float32 programs.
struct Stored {
  std::vector<size_t> inputs;
  bool output;  // the first one
};
const std::unordered_map<std::string, Stored>& storedOperands() {
  static const std::unordered_map<std::string, Stored> all = {
      {"conv2d", {{0, 1, 4}, true}},
      {"conv2dInputGradient", {{0, 1, 2}, true}},
      {"conv2dFilterGradient", {{0, 1}, false}},
      {"depthwiseConv2dInputGradient", {{0, 1, 2}, true}},
      {"depthwiseConv2dFilterGradient", {{0, 1}, false}},
      {"depthwiseConv2dGradients", {{0, 1, 2, 5}, true}},
      {"maxPool2dGradient", {{0, 1}, true}},
      {"avgPool2d", {{0}, true}},
      {"avgPool2dGradient", {{0}, true}},
      {"binary", {{0, 1}, true}},
      {"select", {{1, 2}, true}},
      {"dropout", {{0}, true}},
      {"reduce", {{0}, true}},
      {"softmax", {{0}, true}},
      {"softmaxGradient", {{0, 1}, true}},
  };
  return all;
}

class ViaFloat32 final : public Kernel {
 public:
  ViaFloat32(const CallDescription& call, Factory factory) : table_(*simd().bf16), outputCount_(call.outputs.size()) {
    const auto found = storedOperands().find(call.kernel);
    if (found == storedOperands().end()) fail(call, "ERR_DTYPE", "takes float32, got bfloat16");
    const auto expect = [&](const std::string& role, const TensorType& type, bool stored) {
      if (stored || type.dtype == DType::bfloat16)
        expectDType(call, role.c_str(), type, stored ? DType::bfloat16 : DType::float32);
      return stored;
    };
    CallDescription wide = call;
    for (size_t i = 0; i < call.inputs.size(); ++i) {
      const auto& list = found->second.inputs;
      const bool stored = std::find(list.begin(), list.end(), i) != list.end();
      if (call.has(i) && expect("input " + std::to_string(i), call.input(i), stored))
        inputs_.push_back(place(i, *wide.inputs[i]));
    }
    for (size_t i = 0; i < call.outputs.size(); ++i)
      if (expect("output " + std::to_string(i), call.outputs[i], i == 0 && found->second.output))
        outputs_.push_back(place(i, wide.outputs[i]));
    kernel_ = factory(wide);
  }
  size_t workspaceBytes() const override { return bytes_ + kernel_->workspaceBytes(); }
  void run(const Arguments& a) const override {
    auto* workspace = static_cast<char*>(a.workspace);
    std::vector<const void*> inputs(a.inputs, a.inputs + a.inputCount);
    for (const Place& p : inputs_) {
      if (p.index >= inputs.size() || !inputs[p.index]) continue;
      const uint16_t* from = a.input<uint16_t>(p.index);
      auto* to = reinterpret_cast<float*>(workspace + p.offset);
      forEachChunk(a.pool, p.elements, kChunk,
                   [&](int64_t begin, int64_t n) { table_.widen(from + begin, to + begin, n); });
      inputs[p.index] = to;
    }
    std::vector<void*> outputs(a.outputs, a.outputs + outputCount_);
    for (const Place& p : outputs_) outputs[p.index] = workspace + p.offset;
    kernel_->run({inputs.data(), inputs.size(), outputs.data(), workspace + bytes_, a.pool});
    for (const Place& p : outputs_) {
      const auto* from = reinterpret_cast<const float*>(workspace + p.offset);
      uint16_t* to = a.output<uint16_t>(p.index);
      forEachChunk(a.pool, p.elements, kChunk,
                   [&](int64_t begin, int64_t n) { table_.narrow(from + begin, to + begin, n); });
    }
  }

 private:
  struct Place {
    size_t index, offset;
    int64_t elements;
  };
  // Gives the operand float32 storage in the workspace.
  Place place(size_t index, TensorType& type) {
    type.dtype = DType::float32;
    const Place result{index, bytes_, type.elements()};
    bytes_ += aligned(type.bytes());
    return result;
  }

  const Bf16Table& table_;
  const size_t outputCount_;
  std::vector<Place> inputs_, outputs_;
  size_t bytes_ = 0;
  std::unique_ptr<Kernel> kernel_;
};

// Whether the kernel takes bfloat16 as it is: it looks at sizes of elements alone, or works block by block through
// FloatBlocks.
bool takesHalf(const CallDescription& call) {
  static const std::unordered_set<std::string> names = {"cast",
                                                        "copy",
                                                        "concat",
                                                        "slice",
                                                        "transpose",
                                                        "pad",
                                                        "broadcastTo",
                                                        "unary",
                                                        "unaryGradient",
                                                        "scaleShift",
                                                        "batchNormGradient",
                                                        "batchNormInputGradient",
                                                        "batchNormStatistics"};
  if (call.kernel != "binary") return names.count(call.kernel) > 0;
  return call.has(0) && call.has(1) && call.input(0).shape == call.input(1).shape;
}

}  // namespace

std::unique_ptr<Kernel> makeKernel(const CallDescription& call, const Registry& kernels) {
  static const Registry own = {
      {"packFilter", makePackFilter},
      {"pointwiseConv2d", makePointwise},
      {"conv2d", makeConv2d},
      {"separableConv2d", makeSeparable},
      {"depthwiseConv2d", makeDepthwise},
      {"maxPool2d", makeMaxPool2d},
      {"pointwiseConv2dInputGradient", makePointwiseInputGradient},
      {"pointwiseConv2dFilterGradient", makePointwiseFilterGradient},
      {"depthwiseConv2dInputGradient", makeDepthwiseInputGradient},
      {"depthwiseConv2dFilterGradient", makeDepthwiseFilterGradient},
  };
  if (const auto found = own.find(call.kernel); found != own.end())
    if (std::unique_ptr<Kernel> kernel = found->second(call)) return kernel;
  const Factory factory = kernels.at(call.kernel);
  if (takesHalf(call)) return factory(call);
  return std::make_unique<ViaFloat32>(call, factory);
}

}  // namespace sepconv::cpu::bf16
