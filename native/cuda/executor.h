// The executor over any DeviceInterface: the CUDA devices, and in tests the emulator.
#pragma once
#include <memory>

#include "../kernels/executor.h"
#include "kernel.h"

namespace sepconv::cuda {

// `info` is what info() returns. `registry` must outlive the executor.
std::unique_ptr<Executor> makeExecutor(std::unique_ptr<DeviceInterface> device, ExecutorInfo info,
                                       const Registry& registry);

}  // namespace sepconv::cuda
