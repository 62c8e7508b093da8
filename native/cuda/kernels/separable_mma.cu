// Instantiates the tensor-core kernels of separableConv2d and of its pointwise filter's gradient: 3x3 and any window.
#include "gemm_mma.cuh"
#include "separable.cuh"

namespace sepconv::cuda {

void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const SeparableProduct<3>& p, const Output& statistics) {
  launchMma(device, name, config, p, 1, Activation::none, statistics);
}
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const SeparableProduct<0>& p, const Output& statistics) {
  launchMma(device, name, config, p, 1, Activation::none, statistics);
}
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const SeparableFilterGradient<3>& p) {
  launchMma(device, name, config, p, 1, Activation::none);
}
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const SeparableFilterGradient<0>& p) {
  launchMma(device, name, config, p, 1, Activation::none);
}

}  // namespace sepconv::cuda
