// Stands in for the CUDA executor in a build without nvcc.
#include "../kernels/executor.h"

namespace sepconv {

std::vector<ExecutorInfo> cudaExecutors() {
  ExecutorInfo info;
  info.name = "cuda";
  info.code = "not-built";
  info.reason =
      "this build has no CUDA kernels, because nvcc was not found when it was made, or SEPCONV_CUDA=0 was set; "
      "install the CUDA toolkit and run `sepconv build`";
  return {info};
}

std::unique_ptr<Executor> openCuda(int) { throw Error("ERR_DEVICE", cudaExecutors()[0].reason); }

std::vector<LibraryVersion> cudaLibraries() { return {}; }

KernelChoice describeCudaKernel(const CallDescription&, int, int) {
  throw Error("ERR_DEVICE", cudaExecutors()[0].reason);
}

}  // namespace sepconv
