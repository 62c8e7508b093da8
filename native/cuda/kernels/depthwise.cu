// depthwiseConv2d and its data gradient: check, choose, launch.
#include "depthwise.cuh"
#include "grid.cuh"

namespace sepconv::cuda {
namespace {

using DepthwiseKernel = void (*)(DepthwiseParameters);

template <int VECTOR, class Element>
DepthwiseKernel tiledKernel(DepthwiseVariant variant) {
  if (variant == DepthwiseVariant::tiled3x3) return depthwiseTiled<3, 1, VECTOR, Element>;
  if constexpr (VECTOR == 4) {
    if (variant == DepthwiseVariant::tiled3x3Stride2) return depthwiseTiled<3, 2, VECTOR, Element>;
    if (variant == DepthwiseVariant::tiled5x5) return depthwiseTiled<5, 1, VECTOR, Element>;
  }
  return depthwiseTiled<0, 0, VECTOR, Element>;
}

DepthwiseKernel kernelOf(const DepthwiseConfig& config) {
  if (config.variant == DepthwiseVariant::direct) return config.vector == 4 ? depthwiseDirect<4> : depthwiseDirect<1>;
  if (config.halfTile) return tiledKernel<4, arch::Bfloat16>(config.variant);
  return config.vector == 4 ? tiledKernel<4, float>(config.variant) : tiledKernel<1, float>(config.variant);
}

// Tiles, channels and images of a tiled kernel.
Extent tileGrid(const CallDescription& call, const DepthwiseProblem& problem, const DepthwiseConfig& config) {
  const Window& w = problem.window;
  const int64_t tiles = int64_t{(w.outHeight + config.tileHeight - 1) / config.tileHeight} *
                        ((w.outWidth + config.tileWidth - 1) / config.tileWidth);
  const Extent grid{static_cast<uint32_t>(tiles * problem.batch),
                    static_cast<uint32_t>((problem.channels + config.blockChannels() - 1) / config.blockChannels()), 1};
  if (grid.y > 65535) refuse(call, "more than 2097120 channels");
  return grid;
}

void setTile(DepthwiseParameters& p, const DepthwiseConfig& config) {
  const Window& w = p.window;
  p.tileHeight = config.tileHeight;
  p.tileWidth = config.tileWidth;
  p.inHeight = (config.tileHeight - 1) * w.strideHeight + (w.kernelHeight - 1) * w.dilationHeight + 1;
  p.inWidth = (config.tileWidth - 1) * w.strideWidth + (w.kernelWidth - 1) * w.dilationWidth + 1;
}

uint32_t blocksOf(int64_t tasks) { return static_cast<uint32_t>((tasks + depthwiseThreads - 1) / depthwiseThreads); }

class Depthwise final : public Kernel {
 public:
  Depthwise(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkDepthwise(call)),
        config_(chooseDepthwise(problem_, device, tileOf(call))),
        tiles_(tilesOf(problem_, device)) {
    const Window& w = problem_.window;
    outChannels_ = problem_.channels * problem_.multiplier;
    outElements_ = int64_t{problem_.batch} * w.outHeight * w.outWidth * outChannels_;
    if (config_.variant == DepthwiseVariant::direct)
      grid_.x = blocksOf(outElements_ / config_.vector);
    else
      grid_ = tileGrid(call, problem_, config_);
  }

  std::string describe() const override { return cuda::describe(config_); }
  std::vector<std::string> tiles() const override { return tiles_; }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const Window& w = problem_.window;
    const DType dtype = problem_.dtype;
    DepthwiseParameters p{};
    p.x = view(arguments.inputs[0], int64_t{problem_.batch} * w.height * w.width * problem_.channels, dtype);
    p.filter = view(arguments.inputs[1], int64_t{w.kernelHeight} * w.kernelWidth * outChannels_, dtype);
    p.prologue = {view(arguments.input(2), problem_.channels), view(arguments.input(3), problem_.channels),
                  problem_.inputActivation};
    p.epilogue = {view(arguments.input(4), outChannels_), view(arguments.input(5), outChannels_),
                  view(arguments.inputs[6], outElements_, dtype), problem_.activation};
    p.y = view(arguments.outputs[0], outElements_, dtype);
    p.window = w;
    p.batch = problem_.batch;
    p.channels = problem_.channels;
    p.multiplier = problem_.multiplier;
    setTile(p, config_);
    arch::launch(device, "depthwiseConv2d", kernelOf(config_), grid_, depthwiseThreads, config_.sharedBytes, p);
  }

 private:
  const DepthwiseProblem problem_;
  const DepthwiseConfig config_;
  const std::vector<std::string> tiles_;
  Extent grid_;
  int outChannels_;
  int64_t outElements_;
};

class InputGradient final : public Kernel {
 public:
  InputGradient(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkDepthwiseInputGradient(call)), reversed_(reverse(problem_)) {
    const Window& w = problem_.window;
    elements_ = int64_t{problem_.batch} * w.height * w.width * problem_.channels;
    config_.vector = problem_.multiplier == 1 && problem_.channels % 4 == 0 ? 4 : 1;
    if (w.strideHeight == 1 && w.strideWidth == 1) {
      config_ = chooseDepthwise(reversed_, device, tileOf(call));
      tiles_ = tilesOf(reversed_, device);
    }
    if (config_.variant != DepthwiseVariant::direct)
      grid_ = tileGrid(call, reversed_, config_);
    else
      grid_.x = blocksOf(elements_ / config_.vector);
  }

  std::string describe() const override { return cuda::describe(config_); }
  std::vector<std::string> tiles() const override { return tiles_; }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const Window& w = problem_.window;
    const int64_t outElements =
        int64_t{problem_.batch} * w.outHeight * w.outWidth * problem_.channels * problem_.multiplier;
    const DType dtype = problem_.dtype;
    const bool direct = config_.variant == DepthwiseVariant::direct;
    DepthwiseParameters p{};
    p.x = view(arguments.inputs[0], outElements, dtype);
    p.filter = view(arguments.inputs[1],
                    int64_t{w.kernelHeight} * w.kernelWidth * problem_.channels * problem_.multiplier, dtype);
    p.y = view(arguments.outputs[0], elements_, dtype);
    p.mask = {view(arguments.inputs[2], elements_, dtype), view(arguments.input(3), problem_.channels),
              view(arguments.input(4), problem_.channels), problem_.inputActivation};
    p.window = direct ? w : reversed_.window;
    p.reversed = true;
    p.batch = problem_.batch;
    p.channels = problem_.channels;
    p.multiplier = problem_.multiplier;
    setTile(p, config_);
    const DepthwiseKernel kernel = !direct               ? kernelOf(config_)
                                   : config_.vector == 4 ? depthwiseInputGradientDirect<4>
                                                         : depthwiseInputGradientDirect<1>;
    arch::launch(device, "depthwiseConv2dInputGradient", kernel, grid_, depthwiseThreads, config_.sharedBytes, p);
  }

 private:
  // The forward problem over the gradient that gives dz where the stride is 1.
  static DepthwiseProblem reverse(DepthwiseProblem problem) {
    Window& w = problem.window;
    std::swap(w.height, w.outHeight);
    std::swap(w.width, w.outWidth);
    w.top = (w.kernelHeight - 1) * w.dilationHeight - w.top;
    w.left = (w.kernelWidth - 1) * w.dilationWidth - w.left;
    return problem;
  }

  const DepthwiseProblem problem_, reversed_;
  DepthwiseConfig config_{DepthwiseVariant::direct, 1};
  std::vector<std::string> tiles_;
  Extent grid_;
  int64_t elements_;
};

}  // namespace

void registerDepthwiseKernels(Registry& registry) {
  registry["depthwiseConv2d"] = choose<Depthwise>;
  registry["depthwiseConv2dInputGradient"] = choose<InputGradient>;
}

}  // namespace sepconv::cuda
