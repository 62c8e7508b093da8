// What lets the warps of a block play different parts (sm_90a).
#pragma once
#include "platform.h"

namespace sepconv::arch {

// setmaxnreg: by all warps of a warpgroup; registers per thread from now on, a multiple of 8. Fewer are given back to
// the block, more are waited for.
template <int registers>
__device__ __forceinline__ void giveBackRegisters(ARCH_PLACE_ONLY) {
#if defined(__CUDACC__)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
#else
  emulator::block->hopper().setRegisters(registers, false, place);
#endif
}
template <int registers>
__device__ __forceinline__ void takeRegisters(ARCH_PLACE_ONLY) {
#if defined(__CUDACC__)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
#else
  emulator::block->hopper().setRegisters(registers, true, place);
#endif
}

}  // namespace sepconv::arch
