// The choice of a kernel for a device that need not be there.
#include "../kernels/executor.h"
#include "kernel.h"

namespace sepconv {

KernelChoice describeCudaKernel(const CallDescription& call, int multiprocessors, int major) {
  cuda::DeviceProperties device;
  device.multiprocessors = multiprocessors;
  device.major = major;
  const auto found = cuda::kernels().find(call.kernel);
  if (found == cuda::kernels().end()) throw Error("ERR_DEVICE", "there is no kernel '" + call.kernel + "'");
  const std::unique_ptr<cuda::Kernel> kernel = found->second(call, device);
  return {kernel->describe(), kernel->tiles(), kernel->workspaceBytes()};
}

}  // namespace sepconv
