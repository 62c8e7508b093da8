// Where kernels get the CUDA language from: nvcc, or on the host the emulator. Kernels include only native/cuda/arch
// and hold no asm, no <<<>>> and no runtime calls, so that one source serves both. Blocks are one-dimensional.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#define ARCH_PLACE
#define ARCH_PLACE_ONLY
#define ARCH_PASS_PLACE
#define ARCH_UNROLL _Pragma("unroll")
#define ARCH_NO_UNROLL _Pragma("unroll 1")
#define ARCH_PRAGMA(text) _Pragma(#text)
#define ARCH_UNROLL_BY(times) ARCH_PRAGMA(unroll times)
#else
#include "../../emulator/language.h"

#define ARCH_UNROLL
#define ARCH_NO_UNROLL
#define ARCH_UNROLL_BY(times) static_assert((times) > 0, "a number of steps");
#endif

// Instructions of sm_90a: kernels that use them are empty for other architectures, for which nothing launches them.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
#define ARCH_HOPPER 1
#else
#define ARCH_HOPPER 0
#endif

namespace sepconv::arch {

#if defined(__CUDACC__)
__device__ __forceinline__ int threadIndex() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int blockX() { return static_cast<int>(blockIdx.x); }
__device__ __forceinline__ int blockY() { return static_cast<int>(blockIdx.y); }
__device__ __forceinline__ int blockZ() { return static_cast<int>(blockIdx.z); }
__device__ __forceinline__ int gridX() { return static_cast<int>(gridDim.x); }
#else
inline int threadIndex() { return emulator::thread->index; }
inline int blockX() { return static_cast<int>(emulator::block->index().x); }
inline int blockY() { return static_cast<int>(emulator::block->index().y); }
inline int blockZ() { return static_cast<int>(emulator::block->index().z); }
inline int gridX() { return static_cast<int>(emulator::block->grid().x); }
#endif

}  // namespace sepconv::arch
