// separableConv2d: depthwise and pointwise as one kernel. The left operand of the product is computed where it is
// needed: d[row, c*m + j] = intermediateActivation(depthwise(prologue(x))[c*m + j] + depthwiseShift), from x through
// the caches straight into the shared-memory tile; it never exists in device memory. Each tile of output columns
// computes it again, so this pays where few tiles span them (up to 256 output channels); beyond that two kernels are as
// fast, and with wgmma faster.
#include "grid.cuh"
#include "separable.cuh"

namespace sepconv::cuda {
namespace {

class Separable final : public Kernel {
 public:
  Separable(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkSeparable(call)),
        config_(chooseSeparable(problem_, device, tileOf(call))),
        tiles_(tilesOf(problem_, device)) {
    if (problem_.pointwise.columns > 64 * 65535) refuse(call, "more than 4194240 output channels");
  }

  const MatrixConfig& config() const { return config_; }
  std::string describe() const override { return cuda::describe(config_) + (plain3x3() ? ", 3x3 taps" : ", any taps"); }

  std::vector<std::string> tiles() const override { return tiles_; }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    if (config_.tile == MatrixTile::tile64x128)
      plain3x3() ? start<Tile64x128, 3, 4>(device, arguments) : start<Tile64x128, 0, 4>(device, arguments);
    else if (config_.vector == 4)
      plain3x3() ? start<Tile32x64, 3, 4>(device, arguments) : start<Tile32x64, 0, 4>(device, arguments);
    else
      start<Tile32x64, 0, 1>(device, arguments);
  }

 private:
  // Taps known at compile time; single channels always take the general loop.
  bool plain3x3() const {
    const Window& w = problem_.depthwise.window;
    return config_.vector == 4 && w.kernelHeight == 3 && w.kernelWidth == 3 && w.dilationHeight == 1 &&
           w.dilationWidth == 1;
  }

  template <class T, int KERNEL, int VECTOR>
  void start(DeviceInterface& device, const Arguments& arguments) const {
    const DepthwiseProblem& d = problem_.depthwise;
    const MatrixProblem& m = problem_.pointwise;
    const Window& w = d.window;
    const int64_t outElements = m.rows * m.columns;
    SeparableProduct<KERNEL> p{};
    p.a.x = view(arguments.inputs[0], int64_t{d.batch} * w.height * w.width * d.channels, d.dtype);
    p.a.filter = view(arguments.inputs[1], int64_t{w.kernelHeight} * w.kernelWidth * m.depth, d.dtype);
    p.a.shift = view(arguments.input(5), m.depth);
    p.a.prologue = {view(arguments.input(3), d.channels), view(arguments.input(4), d.channels), d.inputActivation};
    p.a.activation = d.activation;
    p.a.window = w;
    p.a.channels = d.channels;
    p.a.multiplier = d.multiplier;
    p.b = filterOf(view(arguments.inputs[2], storedColumns(m) * m.depth, d.dtype), m.depth, m.columns, m.panel);
    p.store.y = view(arguments.outputs[0], outElements, d.dtype);
    p.store.epilogue = {view(arguments.input(6), m.columns), view(arguments.input(7), m.columns),
                        view(arguments.inputs[8], outElements, d.dtype), m.activation};
    p.store.rowStride = m.columns;
    p.rows = m.rows;
    p.columns = m.columns;
    p.depth = p.depthPerSplit = m.depth;
    p.splits = 1;
    if constexpr (VECTOR == 4) {
      if (config_.precision != Precision::float32) return launchTensorCores(device, "separableConv2d", config_, p);
    }
    launchSimt<T, VECTOR>(device, "separableConv2d", p, 1);
  }

  const SeparableProblem problem_;
  const MatrixConfig config_;
  const std::vector<std::string> tiles_;
};

// The same in two launches, the depthwise result in the workspace.
class SeparableInTwo final : public Kernel {
 public:
  SeparableInTwo(const CallDescription& call, const DeviceProperties& device, const MatrixConfig& config)
      : tiles_(tilesOf(checkSeparable(call), device)) {
    const auto input = [&](size_t index) {
      return call.has(index) ? std::optional<TensorType>(call.input(index)) : std::nullopt;
    };
    CallDescription depthwise = call, pointwise = call;
    TensorType between = call.outputs[0];
    between.shape.back() = call.input(0).dim(-1);
    bytes_ = between.bytes();
    depthwise.kernel = "depthwiseConv2d";
    depthwise.inputs = {input(0), input(1), input(3), input(4), std::nullopt, input(5)};
    depthwise.outputs = {between};
    depthwise.attributes.set("activation", call.attributes.text("intermediateActivation", "none"));
    depthwise.attributes.set("tile", std::string());
    pointwise.kernel = "pointwiseConv2d";
    pointwise.inputs = {between, input(2), input(6), input(7), input(8)};
    pointwise.attributes.set("inputActivation", std::string("none"));
    pointwise.attributes.set("tile", nameOf(config.tile));
    depthwise_ = kernels().at("depthwiseConv2d")(depthwise, device);
    pointwise_ = kernels().at("pointwiseConv2d")(pointwise, device);
  }
  size_t workspaceBytes() const override { return bytes_; }
  std::string describe() const override { return pointwise_->describe() + ", behind " + depthwise_->describe(); }
  std::vector<std::string> tiles() const override { return tiles_; }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const void* const* in = arguments.inputs;
    const void* first[] = {in[0], in[1], in[3], in[4], nullptr, in[5], nullptr};
    depthwise_->launch(device, {first, &arguments.workspace, nullptr});
    const void* second[] = {arguments.workspace, in[2], in[6], in[7], in[8]};
    pointwise_->launch(device, {second, arguments.outputs, nullptr});
  }

 private:
  const std::vector<std::string> tiles_;
  size_t bytes_;
  std::unique_ptr<Kernel> depthwise_, pointwise_;
};

std::unique_ptr<Kernel> makeSeparable(const CallDescription& call, const DeviceProperties& device) {
  auto fused = std::make_unique<Separable>(call, device);
  if (!byWarpgroups(fused->config().tile)) return fused;
  return std::make_unique<SeparableInTwo>(call, device, fused->config());
}

}  // namespace

void registerSeparableKernels(Registry& registry) { registry["separableConv2d"] = makeSeparable; }

}  // namespace sepconv::cuda
