// Instantiates the tensor-core kernels of pointwiseConv2d and its gradients.
#include "gemm_mma.cuh"
#include "tensor_cores.cuh"

namespace sepconv::cuda {

void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config, const PointwiseProduct& p,
                       Activation before, const Output& statistics) {
  if (byWarpgroups(config.tile)) return launchWarpgroups(device, name, config, p, before, statistics);
  launchMma(device, name, config, p, 1, before, statistics);
}

void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const PointwiseInputGradient& p) {
  if (byWarpgroups(config.tile)) return launchWarpgroups(device, name, config, p);
  launchMma(device, name, config, p, 1, Activation::none);
}

void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const PointwiseFilterGradient& p, Activation before) {
  if (byWarpgroups(config.tile)) return launchWarpgroups(device, name, config, p, before);
  launchMma(device, name, config, p, 1, before);
}

}  // namespace sepconv::cuda
