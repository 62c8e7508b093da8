// The Tensor Memory Accelerator (sm_90): one thread moves a box of a matrix between global and shared memory, zeros
// where it lies outside. A row of a box is at most 128 bytes; in shared memory the rows follow each other, and the
// 16-byte chunks of row r lie in the order c ^ (r % 8) (128-byte swizzle), so that neither rows nor columns of chunks
// share banks. Tiles in shared memory start at multiples of 1024 bytes.
#pragma once
#include "../driver.h"
#include "mbarrier.h"
#if defined(__CUDACC__)
#include <cuda.h>
#endif

namespace sepconv::arch {

// Travels in a kernel's parameters, which must be __grid_constant__.
struct alignas(64) TensorMap {
  unsigned char bytes[cuda::tensorMapBytes];
};

// Host side.
inline TensorMap tensorMap(cuda::DeviceInterface& device, const cuda::TensorMapRequest& request) {
  TensorMap map{};
  device.encodeTensorMap(map.bytes, request);
  return map;
}

// cp.async.bulk.tensor: the box whose first element is (row, column) to `to`; its bytes complete on the barrier.
template <class T>
__device__ __forceinline__ void loadBox(const TensorMap& map, const Shared<T>& to, int index, const Barriers& barriers,
                                        int barrier, int column, int row ARCH_PLACE) {
#if defined(__CUDACC__)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          sharedAddress(to.data + index)),
      "l"(&map), "r"(sharedAddress(barriers.data + barrier)), "r"(column), "r"(row)
      : "memory");
#else
  emulator::checkAccess("TMA load", to.data, to.count, index, 1, sizeof(T), place);
  emulator::block->hopper().loadBox(&map, to.data + index, barriers.data + barrier, column, row,
                                    1u << emulator::thread->rank, place);
#endif
}

// The same to the same place of every block of the cluster that has its bit in `ranks`, and on the barrier of each.
template <class T>
__device__ __forceinline__ void loadBoxMulticast(const TensorMap& map, const Shared<T>& to, int index,
                                                 const Barriers& barriers, int barrier, int column, int row,
                                                 uint16_t ranks ARCH_PLACE) {
#if defined(__CUDACC__)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(sharedAddress(to.data + index)),
      "l"(&map), "r"(sharedAddress(barriers.data + barrier)), "r"(column), "r"(row), "h"(ranks)
      : "memory");
#else
  emulator::checkAccess("TMA load", to.data, to.count, index, 1, sizeof(T), place);
  emulator::block->hopper().loadBox(&map, to.data + index, barriers.data + barrier, column, row, ranks, place);
#endif
}

// cp.async.bulk.tensor, the other way. Shared memory must have been fenced for the asynchronous proxy.
template <class T>
__device__ __forceinline__ void storeBox(const TensorMap& map, const Shared<T>& from, int index, int column,
                                         int row ARCH_PLACE) {
#if defined(__CUDACC__)
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
               "r"(sharedAddress(from.data + index)), "r"(column), "r"(row)
               : "memory");
#else
  emulator::checkAccess("TMA store", from.data, from.count, index, 1, sizeof(T), place);
  emulator::block->hopper().storeBox(&map, from.data + index, column, row, place);
#endif
}

// Ends a group: the stores that this thread has issued since the last one.
__device__ __forceinline__ void commitStores() {
#if defined(__CUDACC__)
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  emulator::block->hopper().commitStores();
#endif
}

// Waits until all but `newest` of this thread's groups have read shared memory, which may then be written, or end.
template <int newest>
__device__ __forceinline__ void waitStores() {
#if defined(__CUDACC__)
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(newest) : "memory");
#else
  emulator::block->hopper().waitStores(newest);
#endif
}

}  // namespace sepconv::arch
