// Kernels that call NVIDIA's libraries, for benchmarks only. No program out of the compiler names them.
#pragma once
#include "../kernel.h"

namespace sepconv::cuda {

void registerCudnn(Registry& registry);     // convolution.cc
void registerCublasLt(Registry& registry);  // matmul.cc

}  // namespace sepconv::cuda
