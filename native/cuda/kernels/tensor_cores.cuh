// The products that have tensor-core kernels, each instantiated in a file of its own (pointwise_mma.cu, conv2d_mma.cu,
// separable_mma.cu). `before`: none or relu, applied to A. `config.precision` says which format.
#pragma once
#include "gemm.cuh"

namespace sepconv::cuda {

using PointwiseProduct = GemmParameters<MatrixOperand<true>, MatrixOperand<false>>;
using PointwiseInputGradient = GemmParameters<MatrixOperand<true>, MatrixOperand<true>>;
using PointwiseFilterGradient = GemmParameters<MatrixOperand<false>, MatrixOperand<false>>;
using ConvolutionProduct = GemmParameters<WindowOperand<false, true>, MatrixOperand<false>>;
using ConvolutionInputGradient = GemmParameters<WindowOperand<true, true>, MatrixOperand<true>>;
using ConvolutionFilterGradient = GemmParameters<WindowOperand<false, false>, MatrixOperand<false>>;

// The same three products by wgmma, for tiles that are byWarpgroups; pointwise_wgmma.cu, pointwise_wgmma_tf32.cu.
void launchWarpgroups(DeviceInterface& device, const char* name, const MatrixConfig& config, const PointwiseProduct& p,
                      Activation before, const Output& statistics);
void launchWarpgroups(DeviceInterface& device, const char* name, const MatrixConfig& config,
                      const PointwiseInputGradient& p);
void launchWarpgroups(DeviceInterface& device, const char* name, const MatrixConfig& config,
                      const PointwiseFilterGradient& p, Activation before);
void launchWarpgroupsTf32(DeviceInterface& device, const char* name, const MatrixConfig& config,
                          const PointwiseProduct& p, const Output& statistics);
void launchWarpgroupsTf32(DeviceInterface& device, const char* name, const MatrixConfig& config,
                          const PointwiseInputGradient& p);

// `statistics`: [row tile][mean, squares][column] of what is stored, or nothing.
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config, const PointwiseProduct& p,
                       Activation before, const Output& statistics);
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const PointwiseInputGradient& p);
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config,
                       const PointwiseFilterGradient& p, Activation before);
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config, int groups,
                       const ConvolutionProduct& p, Activation before);
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config, int groups,
                       const ConvolutionInputGradient& p);
void launchTensorCores(DeviceInterface& device, const char* name, const MatrixConfig& config, int groups,
                       const ConvolutionFilterGradient& p, Activation before);

}  // namespace sepconv::cuda
