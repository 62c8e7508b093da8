// The ops that the CUDA executor has, by name.
#include "kernel.h"

namespace sepconv::cuda {

const Registry& kernels() {
  static const Registry registry = [] {
    Registry all;
    registerArchCheck(all);
    registerCastKernel(all);
    registerConv2dKernels(all);
    registerDepthwiseKernels(all);
    registerDepthwiseFilterGradient(all);
    registerDropoutKernel(all);
    registerElementwiseKernels(all);
    registerLayoutKernels(all);
    registerLossKernels(all);
    registerNormalisationKernels(all);
    registerPointwiseKernels(all);
    registerPoolingKernels(all);
    registerReductionKernels(all);
    registerSeparableKernels(all);
    registerShapeKernels(all);
    registerStatisticsKernels(all);
    registerUpdateKernels(all);
    return all;
  }();
  return registry;
}

}  // namespace sepconv::cuda
