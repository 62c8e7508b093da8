// Why there is no CUDA device, as a pure function of what the runtime says: tested without drivers of every kind.
#pragma once
#include <string>

#include "../kernels/executor.h"

namespace sepconv::cuda {

// cudaError_t values that the runtime gives for these cases; driver_cuda.cu asserts that they are the same.
constexpr int errorInsufficientDriver = 35, errorNoDevice = 100, errorNoKernelImage = 209, errorInvalidFunction = 98;

// `error`, `errorText`: of cudaGetDeviceCount, 0 for success with no device; versions as CUDA writes them, 13000
// being 13.0, driver 0: none found.
ExecutorInfo explainNoDevice(int error, const std::string& errorText, int driverVersion, int runtimeVersion);

// Whether a device can be used: `error` of asking for the attributes of a kernel on it, 0 for success.
void explainDevice(ExecutorInfo& info, int error, const std::string& errorText, const std::string& device,
                   const std::string& capability);

// Names of the ops that the executor has, sorted.
std::vector<std::string> kernelNames();

}  // namespace sepconv::cuda
