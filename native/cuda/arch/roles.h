// What lets the warps of a block play different parts (sm_90a), and launches overlap (sm_90).
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

// griddepcontrol.wait: until the launch before this one has ended and what it wrote is seen. Every thread calls it
// before it touches device memory where the launch is programmatic; else it does nothing.
__device__ __forceinline__ void waitForDependencies() {
#if defined(__CUDACC__)
  asm volatile("griddepcontrol.wait;" ::: "memory");
#else
  emulator::thread->hopper.dependenciesMet = true;
#endif
}

// griddepcontrol.launch_dependents: the next launch, if programmatic, may start when all blocks have said so.
__device__ __forceinline__ void launchDependents() {
#if defined(__CUDACC__)
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

}  // namespace sepconv::arch
