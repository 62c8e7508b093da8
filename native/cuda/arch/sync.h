// Synchronisation within a block and exchange within a warp, one instruction per wrapper.
#pragma once
#include "platform.h"

namespace sepconv::arch {

// bar.sync 0: all threads of the block, at the same place in the source.
__device__ __forceinline__ void syncThreads(ARCH_PLACE_ONLY) {
#if defined(__CUDACC__)
  __syncthreads();
#else
  emulator::block->barrier(place);
#endif
}

// bar.sync id, threads: as many threads of the block, whole warps, as meet at barrier `id`, 1 to 15.
__device__ __forceinline__ void syncNamed(int id, int threads ARCH_PLACE) {
#if defined(__CUDACC__)
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::block->namedBarrier(id, threads, place);
#endif
}

// bar.warp.sync: all 32 lanes of the warp; what they wrote to shared memory before is seen by all of them after.
__device__ __forceinline__ void syncWarp(ARCH_PLACE_ONLY) {
#if defined(__CUDACC__)
  __syncwarp();
#else
  emulator::syncWarp(place);
#endif
}

// elect.sync (sm_90): true for one of the 32 lanes, by the hardware's choice.
__device__ __forceinline__ bool electOne(ARCH_PLACE_ONLY) {
#if defined(__CUDACC__)
  uint32_t elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
#else
  return emulator::electOne(place);
#endif
}

// shfl.sync.bfly over all 32 lanes: the value of lane (own ^ mask).
__device__ __forceinline__ float shuffleXor(float value, int mask ARCH_PLACE) {
#if defined(__CUDACC__)
  return __shfl_xor_sync(~0u, value, mask);
#else
  return emulator::shuffleXor(value, mask, place);
#endif
}

}  // namespace sepconv::arch
