// The CUDA executor's side of a kernel, in three layers: check (the call as it stands in the program becomes a problem,
// plain integers: problem.h), choose (a pure function picks tiles and variant for the problem and the device:
// choose.h), launch (kernels/*.cu). A Kernel is made once per call of a program and launched any number of times.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "../kernels/kernel.h"
#include "driver.h"

namespace sepconv::cuda {

// Device addresses, 16-byte aligned.
struct Arguments {
  const void* const* inputs;  // nullptr for an absent optional input
  void* const* outputs;
  void* workspace;  // workspaceBytes() bytes, uninitialised

  template <class T = float>
  const T* input(size_t index) const {
    return static_cast<const T*>(inputs[index]);
  }
  template <class T = float>
  T* output(size_t index = 0) const {
    return static_cast<T*>(outputs[index]);
  }
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual size_t workspaceBytes() const { return 0; }
  // The variant and tiles that were chosen, where there was a choice.
  virtual std::string describe() const { return ""; }
  // Tiles that the call may name in its attribute `tile`, for the tuner; fewer than two: there is nothing to choose.
  virtual std::vector<std::string> tiles() const { return {}; }
  // Only launches: no allocation, no copies, no waiting, so that it can be recorded.
  virtual void launch(DeviceInterface& device, const Arguments& arguments) const = 0;
};

using Factory = std::unique_ptr<Kernel> (*)(const CallDescription& call, const DeviceProperties& device);
using Registry = std::unordered_map<std::string, Factory>;

// kernels/*.cu, each its own
void registerArchCheck(Registry& registry);
void registerArchCheckHopper(Registry& registry);
void registerCastKernel(Registry& registry);
void registerConv2dKernels(Registry& registry);
void registerDepthwiseKernels(Registry& registry);
void registerDepthwiseFilterGradient(Registry& registry);
void registerDepthwiseGradients(Registry& registry);
void registerDropoutKernel(Registry& registry);
void registerElementwiseKernels(Registry& registry);
void registerLayoutKernels(Registry& registry);
void registerLossKernels(Registry& registry);
void registerNormalisationKernels(Registry& registry);
void registerOptimizerKernels(Registry& registry);
void registerPeakKernel(Registry& registry);
void registerPointwiseKernels(Registry& registry);
void registerPoolingKernels(Registry& registry);
void registerReductionKernels(Registry& registry);
void registerSeparableKernels(Registry& registry);
void registerSeparableInTwo(Registry& registry);  // behind the one above, whose kernel it may replace
void registerShapeKernels(Registry& registry);
void registerStatisticsKernels(Registry& registry);
void registerUpdateKernels(Registry& registry);
const Registry& kernels();  // registry.cc
// Throws ERR_FORMAT unless the call has as many outputs as its op.
void requireOutputs(const CallDescription& call);
// The attribute `tile`, or ''.
inline std::string tileOf(const CallDescription& call) { return call.attributes.text("tile", ""); }

}  // namespace sepconv::cuda
