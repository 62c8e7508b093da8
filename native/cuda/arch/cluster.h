// Clusters (sm_90): blocks on neighbouring multiprocessors that run at the same time and see each other's shared
// memory.
#pragma once
#include "mbarrier.h"

namespace sepconv::arch {

// %cluster_ctarank
__device__ __forceinline__ int clusterRank() {
#if defined(__CUDACC__)
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
#else
  return emulator::thread->rank;
#endif
}

// barrier.cluster.arrive: by every thread of every block; what it wrote before is seen behind the wait.
__device__ __forceinline__ void clusterArrive(ARCH_PLACE_ONLY) {
#if defined(__CUDACC__)
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#else
  emulator::block->hopper().clusterArrive(place);
#endif
}

// barrier.cluster.wait: until all have arrived.
__device__ __forceinline__ void clusterWait(ARCH_PLACE_ONLY) {
#if defined(__CUDACC__)
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  emulator::block->hopper().clusterWait(place);
#endif
}

// Shared memory of block `rank`, at the place where `own` lies in the running block: floats, one at a time.
class Peer {
 public:
  __device__ __forceinline__ Peer(const Shared<float>& own, int rank) : own_(own), rank_(rank) {}

  __device__ __forceinline__ float load(int index ARCH_PLACE) const {
#if defined(__CUDACC__)
    float value;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address(index)) : "memory");
    return value;
#else
    return *at(index, place);
#endif
  }
  __device__ __forceinline__ void store(int index, float value ARCH_PLACE) const {
#if defined(__CUDACC__)
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address(index)), "f"(value) : "memory");
#else
    *at(index, place) = value;
    emulator::wroteShared(at(index, place), sizeof(float));
#endif
  }

 private:
#if defined(__CUDACC__)
  __device__ __forceinline__ uint32_t address(int index) const {
    uint32_t remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(sharedAddress(own_.data + index)), "r"(rank_));
    return remote;
  }
#else
  float* at(int index, emulator::Place place) const {
    emulator::checkAccess("another block's shared memory", own_.data, own_.count, index, 1, sizeof(float), place);
    return static_cast<float*>(emulator::block->hopper().remote(own_.data + index, rank_, place));
  }
#endif
  const Shared<float>& own_;
  const int rank_;
};

}  // namespace sepconv::arch
