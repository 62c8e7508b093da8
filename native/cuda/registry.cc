// The ops that the CUDA executor has, by name.
#include "kernel.h"

namespace sepconv::cuda {

const Registry& kernels() {
  static const Registry registry = [] {
    Registry all;
    registerDepthwiseKernels(all);
    registerPointwiseKernels(all);
    registerSeparableKernels(all);
    registerStatisticsKernels(all);
    registerShapeKernels(all);
    return all;
  }();
  return registry;
}

}  // namespace sepconv::cuda
