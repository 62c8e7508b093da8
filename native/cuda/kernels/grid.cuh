// The launch of kernels that are one task per thread.
#pragma once
#include "../arch/launch.h"
#include "../kernel.h"
#include "../problem.h"

namespace sepconv::cuda {

constexpr int gridThreads = 256;

// Less than 2^31 where a task exists; divide it as int: 64-bit divisions are function calls.
__device__ __forceinline__ int64_t taskIndex() { return int64_t{arch::blockX()} * gridThreads + arch::threadIndex(); }

template <class Parameters>
void launchTasks(DeviceInterface& device, const char* name, void (*kernel)(Parameters), int64_t tasks,
                 const Parameters& parameters) {
  arch::launch(device, name, kernel, {static_cast<uint32_t>((tasks + gridThreads - 1) / gridThreads), 1, 1},
               gridThreads, 0, parameters);
}

// A registry entry for kernels that need no more than the call.
template <class K>
std::unique_ptr<Kernel> make(const CallDescription& call, const DeviceProperties&) {
  return std::make_unique<K>(call);
}
// The same for kernels whose choice depends on the device.
template <class K>
std::unique_ptr<Kernel> choose(const CallDescription& call, const DeviceProperties& device) {
  return std::make_unique<K>(call, device);
}

}  // namespace sepconv::cuda
