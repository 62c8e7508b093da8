// separableConv2d on compute capability 9.0 where its product takes longer than memory: the depthwise kernel into the
// workspace, then the pointwise one by wgmma. Fused, every tile of columns would wait for the depthwise to be computed
// again.
#include "../choose.h"
#include "../kernel.h"

namespace sepconv::cuda {
namespace {

class SeparableInTwo final : public Kernel {
 public:
  SeparableInTwo(const CallDescription& call, const DeviceProperties& device, MatrixTile tile) {
    const SeparableProblem problem = checkSeparable(call);
    tiles_ = tilesOf(problem);
    for (const MatrixTile known : tilesInTwo(problem, device)) tiles_.push_back(nameOf(known));
    const auto input = [&](size_t index) {
      return call.has(index) ? std::optional<TensorType>(call.input(index)) : std::nullopt;
    };
    TensorType between = call.outputs[0];
    between.shape.back() = call.input(0).dim(-1);
    bytes_ = (between.bytes() + 255) / 256 * 256;
    CallDescription depthwise = call, pointwise = call;
    depthwise.kernel = "depthwiseConv2d";
    depthwise.inputs = {input(0), input(1), input(3), input(4), std::nullopt, input(5)};
    depthwise.outputs = {between};
    depthwise.attributes.set("activation", call.attributes.text("intermediateActivation", "none"));
    depthwise.attributes.set("tile", std::string());
    pointwise.kernel = "pointwiseConv2d";
    pointwise.inputs = {between, input(2), input(6), input(7), input(8)};
    pointwise.attributes.set("inputActivation", std::string("none"));
    pointwise.attributes.set("tile", nameOf(tile));
    depthwise_ = kernels().at("depthwiseConv2d")(depthwise, device);
    pointwise_ = kernels().at("pointwiseConv2d")(pointwise, device);
  }
  size_t workspaceBytes() const override { return bytes_ + pointwise_->workspaceBytes(); }
  std::string describe() const override { return pointwise_->describe() + ", behind " + depthwise_->describe(); }
  std::vector<std::string> tiles() const override { return tiles_; }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const void* const* in = arguments.inputs;
    const void* first[mostInputs] = {in[0], in[1], in[3], in[4], nullptr, in[5]};
    depthwise_->launch(device, {first, &arguments.workspace, nullptr});
    const void* second[mostInputs] = {arguments.workspace, in[2], in[6], in[7], in[8]};
    pointwise_->launch(device, {second, arguments.outputs, static_cast<char*>(arguments.workspace) + bytes_});
  }

 private:
  static constexpr size_t mostInputs = 16;  // kernels index up to their last optional input
  std::vector<std::string> tiles_;
  size_t bytes_;
  std::unique_ptr<Kernel> depthwise_, pointwise_;
};

Factory fused = nullptr;

std::unique_ptr<Kernel> makeSeparable(const CallDescription& call, const DeviceProperties& device) {
  if (const auto tile = chooseInTwo(checkSeparable(call), device, tileOf(call)))
    return std::make_unique<SeparableInTwo>(call, device, *tile);
  return fused(call, device);
}

}  // namespace

void registerSeparableInTwo(Registry& registry) {
  fused = registry.at("separableConv2d");
  registry["separableConv2d"] = makeSeparable;
}

}  // namespace sepconv::cuda
