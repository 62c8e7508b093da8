// The CUDA executor on the host, one executor per adversary mode: 'emulator:fair', 'emulator:random', ...; plain
// 'emulator' is the first; 'emulator:counting' (not listed) counts memory traffic and bank conflicts. 'hopper:fair' and
// so on (not listed) are the same for compute capability 9.0. For tests only.
#pragma once
#include <memory>
#include <vector>

#include "../cuda/kernel.h"
#include "../kernels/executor.h"

namespace sepconv::emulator {

std::vector<ExecutorInfo> executors();
// Throws ERR_DEVICE for an unknown name.
std::unique_ptr<Executor> open(const std::string& name);

// 'emulatorCheck': a kernel with one seeded bug by attribute; test_kernels.cu.
void registerTestKernels(cuda::Registry& registry);
// 'hopperCheck': the same for compute capability 9.0; test_hopper.cu.
void registerHopperCheck(cuda::Registry& registry);

}  // namespace sepconv::emulator
