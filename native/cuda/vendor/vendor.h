// Kernels that call NVIDIA's libraries.
#pragma once
#include "../kernel.h"

namespace sepconv::cuda {

void registerAllReduce(Registry& registry);  // all_reduce.cc, by NCCL
// For benchmarks only. No program out of the compiler names them.
void registerCudnn(Registry& registry);     // convolution.cc
void registerCublasLt(Registry& registry);  // matmul.cc

}  // namespace sepconv::cuda
