#include "discovery.h"

#include <algorithm>

#include "kernel.h"

namespace sepconv::cuda {
namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

}  // namespace

ExecutorInfo explainNoDevice(int error, const std::string& errorText, int driverVersion, int runtimeVersion) {
  ExecutorInfo info;
  info.name = "cuda";
  info.properties["driverVersion"] = static_cast<double>(driverVersion);
  info.properties["runtimeVersion"] = static_cast<double>(runtimeVersion);
  // Without a driver the runtime reports one that is too old: the version tells the two apart.
  if (driverVersion == 0) {
    info.code = "no-driver";
    info.reason = "no NVIDIA driver was found on this machine; install one that supports CUDA " +
                  version(runtimeVersion) + " or newer";
  } else if (error == errorInsufficientDriver) {
    info.code = "driver-too-old";
    info.reason = "the NVIDIA driver supports CUDA " + version(driverVersion) + ", this build needs " +
                  version(runtimeVersion) + "; update the driver";
  } else if (error == errorNoDevice || error == 0) {
    info.code = "no-device";
    info.reason = "the NVIDIA driver is installed, but it shows no GPU; is CUDA_VISIBLE_DEVICES set to nothing?";
  } else {
    info.code = "no-device";
    info.reason = "the NVIDIA driver reports " + errorText;
  }
  return info;
}

void explainDevice(ExecutorInfo& info, int error, const std::string& errorText, const std::string& device,
                   const std::string& capability) {
  info.available = error == 0;
  if (error == errorNoKernelImage || error == errorInvalidFunction) {
    info.code = "no-kernel-image";
    info.reason =
        device + " has compute capability " + capability +
        ", for which this build holds no code (8.0 and up are supported); run `sepconv build` on this machine";
  } else if (error) {
    info.code = "no-device";
    info.reason = device + " cannot be used: " + errorText;
  }
}

std::vector<std::string> kernelNames() {
  std::vector<std::string> names;
  for (const auto& [name, factory] : kernels()) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace sepconv::cuda
