// The one way to start a kernel. A kernel is `__global__ void k(const __grid_constant__ Parameters p)`.
#pragma once
#include "../driver.h"
#include "platform.h"

namespace sepconv::arch {

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
  device.launch(launch);
}

}  // namespace sepconv::arch
