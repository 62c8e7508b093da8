// What the kernels' source needs in place of nvcc: the keywords, the built-in indices, and the operations behind the
// wrappers of native/cuda/arch, each with its checks. Included by arch/platform.h in host builds only.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>

#include "block.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

// A trailing parameter that tells the checks where the caller stands; absent under nvcc.
#define ARCH_PLACE , ::sepconv::emulator::Place place = {__builtin_FILE(), __builtin_LINE()}
#define ARCH_PLACE_ONLY ::sepconv::emulator::Place place = {__builtin_FILE(), __builtin_LINE()}
#define ARCH_PASS_PLACE , place

namespace sepconv::emulator {

// An access of `elements` elements of `elementBytes` at `index` of a view of `count`.
inline void checkAccess(const char* what, const void* data, int64_t count, int64_t index, int elements,
                        size_t elementBytes, Place place) {
  if (index < 0 || index + elements > count)
    block->fail(std::string(what) + " of " + std::to_string(elements) + " elements at " + std::to_string(index) +
                    " of " + std::to_string(count),
                place);
  const size_t bytes = static_cast<size_t>(elements) * elementBytes;
  if ((reinterpret_cast<uintptr_t>(data) + static_cast<size_t>(index) * elementBytes) % bytes)
    block->fail(std::string(what) + " of " + std::to_string(bytes) + " bytes is misaligned", place);
}

inline void perform(const PendingCopy& copy) {
  if (copy.validBytes) std::memcpy(copy.destination, copy.source, static_cast<size_t>(copy.validBytes));
  std::memset(copy.destination + copy.validBytes, 0, static_cast<size_t>(copy.bytes - copy.validBytes));
}

inline void copyAsync(const PendingCopy& copy) {
  if (block->mode().lateCopies)
    thread->openCopies.push_back(copy);
  else
    perform(copy);
}

inline void commitCopies() {
  thread->copyGroups.push_back(std::move(thread->openCopies));
  thread->openCopies.clear();
}

// Returns when at most `newest` groups are outstanding; the late mode leaves exactly those undone.
inline void waitCopies(int newest) {
  while (static_cast<int>(thread->copyGroups.size()) > newest) {
    for (const PendingCopy& copy : thread->copyGroups.front()) perform(copy);
    thread->copyGroups.pop_front();
  }
}

// Shared memory that a thread has written, seen by TMA and wgmma only behind a fence.
inline void wroteShared(const void* address, size_t bytes) {
  if (block->tracksProxies()) block->hopper().wroteShared(address, bytes);
}

// One lane of the warp: any, since nothing says which the hardware elects.
inline bool electOne(Place place) {
  bool elected = false;
  block->collective(
      &elected,
      [](void* const* arguments) {
        const int lane = block->mode().shuffledLanes ? static_cast<int>(block->random() % 32) : 0;
        *static_cast<bool*>(arguments[lane]) = true;
      },
      "an election", place);
  return elected;
}

inline void syncWarp(Place place) {
  block->collective(
      nullptr, [](void* const*) {}, "a warp barrier", place);
}

// value of lane ^ mask.
template <class T>
T shuffleXor(T value, int mask, Place place) {
  struct Argument {
    T value, result;
    int mask;
  } argument{value, value, mask};
  block->collective(
      &argument,
      [](void* const* arguments) {
        for (int lane = 0; lane < 32; ++lane) {
          auto* self = static_cast<Argument*>(arguments[lane]);
          self->result = static_cast<Argument*>(arguments[lane ^ self->mask])->value;
        }
      },
      "a warp shuffle", place);
  return argument.result;
}

}  // namespace sepconv::emulator
