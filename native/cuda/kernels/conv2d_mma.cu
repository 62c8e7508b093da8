// Instantiates the tensor-core kernels of conv2d and its gradients: implicit products whose windows are copied
// asynchronously straight from x, zeros where a tap falls into the padding.
#include "gemm_mma.cuh"
#include "tensor_cores.cuh"

namespace sepconv::cuda {

void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config, int groups,
                       const ConvolutionProduct& p, Activation before) {
  launchMma(device, name, config, p, groups, before);
}

void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config, int groups,
                       const ConvolutionInputGradient& p) {
  launchMma(device, name, config, p, groups, Activation::none);
}

void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config, int groups,
                       const ConvolutionFilterGradient& p, Activation before) {
  launchMma(device, name, config, p, groups, before);
}

}  // namespace sepconv::cuda
