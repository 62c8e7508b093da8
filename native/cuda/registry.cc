// The ops that the CUDA executor has, by name.
#include "kernel.h"
#include "problem.h"
#include "vendor/vendor.h"

namespace sepconv::cuda {

void requireOutputs(const CallDescription& call) {
  const size_t inputs = call.inputs.size();
  size_t expected = 1;
  if (call.kernel == "batchNormStatistics" || call.kernel == "batchNormCoefficients") expected = 2;
  if (call.kernel == "batchNormGradient") expected = 3;
  if ((call.kernel == "pointwiseConv2d" || call.kernel == "separableConv2d") && call.attributes.flag("statistics"))
    expected = 3;
  if (call.kernel == "depthwiseConv2dGradients") expected = call.has(6) ? 4 : 2;
  // Scalars and groups whose gradient is read only; `averaged`: one more scalar, and an average per group.
  const auto update = [&](size_t scalars, size_t group) {
    const size_t averaged = call.attributes.flag("averaged") ? 1 : 0;
    return inputs < scalars + averaged ? 0
                                       : (inputs - scalars - averaged) / (group + averaged) * (group - 1 + averaged);
  };
  if (call.kernel == "sgdUpdate") expected = update(3, 3);
  if (call.kernel == "rmspropUpdate") expected = update(3, 4);
  if (call.kernel == "adamUpdate") expected = 1 + update(4, 4);
  if (call.kernel == "allReduceStart" || call.kernel == "allReduceWait") expected = inputs;
  if (call.kernel == "averageUpdate") expected = inputs < 2 ? 0 : (inputs - 2) / 2;
  if (call.outputs.size() != expected)
    refuse(call, "expected " + std::to_string(expected) + " outputs, got " + std::to_string(call.outputs.size()));
}

const Registry& kernels() {
  static const Registry registry = [] {
    Registry all;
    registerArchCheck(all);
    registerArchCheckHopper(all);
    registerCastKernel(all);
    registerConv2dKernels(all);
    registerDepthwiseKernels(all);
    registerDepthwiseFilterGradient(all);
    registerDepthwiseGradients(all);
    registerDropoutKernel(all);
    registerElementwiseKernels(all);
    registerLayoutKernels(all);
    registerLossKernels(all);
    registerNormalisationKernels(all);
    registerOptimizerKernels(all);
    registerPeakKernel(all);
    registerPointwiseKernels(all);
    registerPoolingKernels(all);
    registerReductionKernels(all);
    registerSeparableKernels(all);
    registerSeparableInTwo(all);
    registerShapeKernels(all);
    registerStatisticsKernels(all);
    registerUpdateKernels(all);
    registerAllReduce(all);
    registerCublasLt(all);
    registerCudnn(all);
    return all;
  }();
  return registry;
}

}  // namespace sepconv::cuda
