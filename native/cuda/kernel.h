// The CUDA executor's side of a kernel, in three layers: check (the call as it stands in the program becomes a problem,
// plain integers: problem.h), choose (a pure function picks tiles and variant for the problem and the device:
// choose.h), launch (kernels/*.cu). A Kernel is made once per call of a program and launched any number of times.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>

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
  // Only launches: no allocation, no copies, no waiting, so that it can be recorded.
  virtual void launch(DeviceInterface& device, const Arguments& arguments) const = 0;
};

using Factory = std::unique_ptr<Kernel> (*)(const CallDescription& call, const DeviceProperties& device);
using Registry = std::unordered_map<std::string, Factory>;

void registerDepthwiseKernels(Registry& registry);   // kernels/depthwise.cu
void registerPointwiseKernels(Registry& registry);   // kernels/pointwise.cu
void registerSeparableKernels(Registry& registry);   // kernels/separable.cu
void registerStatisticsKernels(Registry& registry);  // kernels/statistics.cu
void registerShapeKernels(Registry& registry);       // kernels/shape.cu
const Registry& kernels();                           // registry.cc

// Launches the two kernels that compute mean and biased variance per channel of y[rows, channels];
// kernels/statistics.cu.
size_t statisticsWorkspaceBytes(int64_t rows, int channels);
void launchStatistics(DeviceInterface& device, const float* y, int64_t rows, int channels, void* workspace, float* mean,
                      float* variance);

}  // namespace sepconv::cuda
