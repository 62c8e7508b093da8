// mbarriers (sm_90): barriers in shared memory that count arrivals of threads and bytes of TMA loads. A phase completes
// when as many threads have arrived as the barrier was initialised with and as many bytes have landed as were expected;
// the next one begins at once. Also the fences that order shared memory between threads and the asynchronous proxy,
// through which TMA and wgmma work.
#pragma once
#include "memory.h"

namespace sepconv::arch {

using Barriers = Shared<uint64_t>;

#if defined(__CUDACC__)
__device__ __forceinline__ uint32_t sharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

// mbarrier.init: by one thread, before any other use.
__device__ __forceinline__ void initialiseBarrier(const Barriers& barriers, int index, int arrivals ARCH_PLACE) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(sharedAddress(barriers.data + index)), "r"(arrivals)
               : "memory");
#else
  emulator::checkAccess("mbarrier", barriers.data, barriers.count, index, 1, 8, place);
  emulator::block->hopper().initialiseBarrier(barriers.data + index, arrivals, place);
#endif
}

// fence.mbarrier_init: this thread's initialisations, seen by TMA and by the blocks of the cluster that it then meets.
__device__ __forceinline__ void fenceBarrierInitialisation() {
#if defined(__CUDACC__)
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  emulator::block->hopper().fenceBarrierInitialisation();
#endif
}

// mbarrier.arrive
__device__ __forceinline__ void arrive(const Barriers& barriers, int index ARCH_PLACE) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(sharedAddress(barriers.data + index)) : "memory");
#else
  emulator::checkAccess("mbarrier", barriers.data, barriers.count, index, 1, 8, place);
  emulator::block->hopper().arrive(barriers.data + index, -1, 0, place);
#endif
}

// mbarrier.arrive.expect_tx: the same, and `bytes` more must land before the phase completes.
__device__ __forceinline__ void arriveExpecting(const Barriers& barriers, int index, int bytes ARCH_PLACE) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sharedAddress(barriers.data + index)),
               "r"(bytes)
               : "memory");
#else
  emulator::checkAccess("mbarrier", barriers.data, barriers.count, index, 1, 8, place);
  emulator::block->hopper().arrive(barriers.data + index, -1, bytes, place);
#endif
}

// mapa, mbarrier.arrive on the barrier at the same place in block `rank` of the cluster.
__device__ __forceinline__ void arriveAt(const Barriers& barriers, int index, int rank ARCH_PLACE) {
#if defined(__CUDACC__)
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(sharedAddress(barriers.data + index)),
      "r"(rank)
      : "memory");
#else
  emulator::checkAccess("mbarrier", barriers.data, barriers.count, index, 1, 8, place);
  emulator::block->hopper().arrive(barriers.data + index, rank, 0, place);
#endif
}

// mbarrier.try_wait until the phase of this parity has completed: 0 for the first, 1 for the second, 0 for the third.
// The barrier must not be two phases ahead. On a fresh barrier parity 1 counts as completed.
__device__ __forceinline__ void waitFor(const Barriers& barriers, int index, int parity ARCH_PLACE) {
#if defined(__CUDACC__)
  uint32_t complete;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(complete)
                 : "r"(sharedAddress(barriers.data + index)), "r"(parity)
                 : "memory");
  } while (!complete);
#else
  emulator::checkAccess("mbarrier", barriers.data, barriers.count, index, 1, 8, place);
  emulator::block->hopper().waitFor(barriers.data + index, parity, place);
#endif
}

// fence.proxy.async: what this thread has written to shared memory, seen by TMA stores and wgmma that a barrier behind
// it orders after.
__device__ __forceinline__ void fenceAsyncProxy() {
#if defined(__CUDACC__)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  emulator::block->hopper().fenceAsyncProxy();
#endif
}

}  // namespace sepconv::arch
