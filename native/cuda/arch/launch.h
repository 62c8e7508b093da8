// The one way to start a kernel. A kernel is `__global__ void k(const __grid_constant__ Parameters p)`.
#pragma once
#include "../driver.h"
#include "platform.h"

namespace sepconv::arch {

// The first thing that every kernel does: from compute capability 9.0 on, a launch may start while the one before it
// ends. griddepcontrol.wait: until that one has ended and what it wrote is seen. griddepcontrol.launch_dependents: the
// next one may start when all blocks of this one have, and waits in its turn.
__device__ __forceinline__ void beginLaunch() {
#if defined(__CUDACC__)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
#endif
#else
  emulator::thread->hopper.dependenciesMet = true;
#endif
}

template <class Parameters>
void launch(cuda::DeviceInterface& device, const char* name, void (*kernel)(Parameters), cuda::Extent grid, int threads,
            size_t sharedBytes, const Parameters& parameters, const cuda::LaunchOptions& options = {}) {
  static_assert(std::is_trivially_copyable_v<Parameters> && sizeof(Parameters) <= 4096,
                "parameters travel in constant memory");
  cuda::Launch launch{};
  launch.name = name;
  launch.function = reinterpret_cast<const void*>(kernel);
#if !defined(__CUDACC__)
  launch.emulate = [](const void* function, const void* p) {
    reinterpret_cast<void (*)(Parameters)>(const_cast<void*>(function))(*static_cast<const Parameters*>(p));
  };
#endif
  launch.grid = grid;
  launch.block = {static_cast<uint32_t>(threads), 1, 1};
  launch.sharedBytes = sharedBytes;
  launch.parameters = &parameters;
  launch.parameterBytes = sizeof(Parameters);
  launch.options = options;
  launch.options.programmatic = device.properties().programmatic;
  device.launch(launch);
}

}  // namespace sepconv::arch
