// Copies from global to shared memory that bypass registers (cp.async, sm_80 and up). They are complete for the issuing
// thread after waitCopies, and for the other threads of the block after a barrier behind that.
#pragma once
#include "memory.h"

namespace sepconv::arch {

// N elements, 4 or 16 bytes; zeros where `valid` is false: the source is then not read, and its index may be anything.
template <int N, class T>
__device__ __forceinline__ void copyAsync(const Shared<T>& to, int toIndex, const Global<const T>& from,
                                          int64_t fromIndex, bool valid ARCH_PLACE) {
  constexpr int bytes = N * static_cast<int>(sizeof(T));
  static_assert(bytes == 4 || bytes == 16, "4 or 16 bytes");
#if defined(__CUDACC__)
  const auto destination = static_cast<uint32_t>(__cvta_generic_to_shared(to.data + toIndex));
  const T* source = from.data + (valid ? fromIndex : 0);
  const int validBytes = valid ? bytes : 0;
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(validBytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(destination), "l"(source), "r"(validBytes)
                 : "memory");
#else
  emulator::checkAccess("asynchronous copy to shared memory", to.data, to.count, toIndex, N, sizeof(T), place);
  if (valid)
    emulator::checkAccess("asynchronous copy from global memory", from.data, from.count, fromIndex, N, sizeof(T),
                          place);
  emulator::block->countShared(to.data + toIndex, bytes, place);
  if (valid) emulator::block->countGlobal(from.data + fromIndex, bytes, false);
  emulator::copyAsync({reinterpret_cast<unsigned char*>(to.data + toIndex),
                       reinterpret_cast<const unsigned char*>(from.data + (valid ? fromIndex : 0)), bytes,
                       valid ? bytes : 0});
#endif
}

// Ends a group: all copies that this thread issued since the last one.
__device__ __forceinline__ void commitCopies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulator::commitCopies();
#endif
}

// Waits until at most `newest` of this thread's groups are outstanding.
template <int newest>
__device__ __forceinline__ void waitCopies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
#else
  emulator::waitCopies(newest);
#endif
}

}  // namespace sepconv::arch
