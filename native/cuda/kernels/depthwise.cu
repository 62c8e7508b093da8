// depthwiseConv2d: check, choose, launch.
#include "../arch/launch.h"
#include "../kernel.h"
#include "depthwise.cuh"

namespace sepconv::cuda {
namespace {

using DepthwiseKernel = void (*)(DepthwiseParameters);

DepthwiseKernel kernelOf(const DepthwiseConfig& config) {
  const bool vector = config.vector == 4;
  switch (config.variant) {
    case DepthwiseVariant::tiled3x3:
      return vector ? depthwiseTiled<3, 1, 4> : depthwiseTiled<3, 1, 1>;
    case DepthwiseVariant::tiled3x3Stride2:
      return depthwiseTiled<3, 2, 4>;
    case DepthwiseVariant::tiled:
      return vector ? depthwiseTiled<0, 0, 4> : depthwiseTiled<0, 0, 1>;
    case DepthwiseVariant::direct:
      break;
  }
  return vector ? depthwiseDirect<4> : depthwiseDirect<1>;
}

class Depthwise final : public Kernel {
 public:
  Depthwise(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkDepthwise(call)), config_(chooseDepthwise(problem_, device)) {
    const Window& w = problem_.window;
    outChannels_ = problem_.channels * problem_.multiplier;
    outElements_ = int64_t{problem_.batch} * w.outHeight * w.outWidth * outChannels_;
    if (config_.variant == DepthwiseVariant::direct) {
      grid_.x = static_cast<uint32_t>((outElements_ / config_.vector + depthwiseThreads - 1) / depthwiseThreads);
    } else {
      const int64_t tiles = int64_t{(w.outHeight + config_.tileHeight - 1) / config_.tileHeight} *
                            ((w.outWidth + config_.tileWidth - 1) / config_.tileWidth);
      grid_.x = static_cast<uint32_t>(tiles * problem_.batch);
      grid_.y = static_cast<uint32_t>((problem_.channels + depthwiseChannels - 1) / depthwiseChannels);
      if (grid_.y > 65535) refuse(call, "more than 2097120 channels");
    }
  }

  std::string describe() const override { return cuda::describe(config_); }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const Window& w = problem_.window;
    DepthwiseParameters p{};
    p.x = view(arguments.input(0), int64_t{problem_.batch} * w.height * w.width * problem_.channels);
    p.filter = view(arguments.input(1), int64_t{w.kernelHeight} * w.kernelWidth * outChannels_);
    p.prologue = {view(arguments.input(2), problem_.channels), view(arguments.input(3), problem_.channels),
                  problem_.inputActivation};
    p.epilogue = {view(arguments.input(4), outChannels_), view(arguments.input(5), outChannels_),
                  view(arguments.input(6), outElements_), problem_.activation};
    p.y = view(arguments.output(), outElements_);
    p.window = w;
    p.batch = problem_.batch;
    p.channels = problem_.channels;
    p.multiplier = problem_.multiplier;
    p.tileHeight = config_.tileHeight;
    p.tileWidth = config_.tileWidth;
    p.inHeight = (config_.tileHeight - 1) * w.strideHeight + (w.kernelHeight - 1) * w.dilationHeight + 1;
    p.inWidth = (config_.tileWidth - 1) * w.strideWidth + (w.kernelWidth - 1) * w.dilationWidth + 1;
    arch::launch(device, "depthwiseConv2d", kernelOf(config_), grid_, depthwiseThreads, config_.sharedBytes, p);
  }

 private:
  const DepthwiseProblem problem_;
  const DepthwiseConfig config_;
  Extent grid_;
  int outChannels_;
  int64_t outElements_;
};

}  // namespace

void registerDepthwiseKernels(Registry& registry) {
  registry["depthwiseConv2d"] = [](const CallDescription& call,
                                   const DeviceProperties& device) -> std::unique_ptr<Kernel> {
    return std::make_unique<Depthwise>(call, device);
  };
}

}  // namespace sepconv::cuda
