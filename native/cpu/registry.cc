#include "kernel.h"

namespace sepconv::cpu {

const Registry& kernels() {
  static const Registry registry = [] {
    Registry all;
    registerGemmKernels(all);
    registerDepthwiseKernels(all);
    registerNormalisationKernels(all);
    registerPoolingKernels(all);
    registerReductionKernels(all);
    registerElementwiseKernels(all);
    registerLossKernels(all);
    registerShapeKernels(all);
    registerUpdateKernels(all);
    registerOptimizerKernels(all);
    registerAllReduceKernels(all);
    return all;
  }();
  return registry;
}

}  // namespace sepconv::cpu
