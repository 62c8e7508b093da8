// Views of global and shared memory: kernels touch memory only through them, N elements of at most 16 bytes together at
// a time, so that the emulator can check every access against the extent of its buffer and its natural alignment. On
// the GPU a view costs what its pointer costs.
#pragma once
#include <type_traits>

#include "platform.h"

namespace sepconv::arch {

// N elements in registers, moved as one access.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T values[N];
  __device__ __forceinline__ T& operator[](int i) { return values[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return values[i]; }
};

// A buffer in device memory. Views of const T are read through the read-only cache: nobody may write them during the
// launch.
template <class T>
struct Global {
  T* data = nullptr;
  int64_t count = 0;  // elements

  __device__ __forceinline__ bool present() const { return data != nullptr; }

  template <int N = 1>
  __device__ __forceinline__ Vec<std::remove_const_t<T>, N> load(int64_t index ARCH_PLACE) const {
    using Element = std::remove_const_t<T>;
    static_assert(sizeof(Element) * N <= 16, "one access moves at most 16 bytes");
#if defined(__CUDACC__)
    if constexpr (!std::is_const_v<T>) {
      return *reinterpret_cast<const Vec<Element, N>*>(data + index);
    } else if constexpr (sizeof(Element) * N == 16) {
      const uint4 bits = __ldg(reinterpret_cast<const uint4*>(data + index));
      Vec<Element, N> result;
      __builtin_memcpy(&result, &bits, 16);
      return result;
    } else {
      static_assert(N == 1 && std::is_arithmetic_v<Element>, "single elements or 16 bytes");
      return {__ldg(data + index)};
    }
#else
    emulator::checkDependencies(place);
    emulator::checkAccess("read from global memory", data, count, index, N, sizeof(Element), place);
    emulator::block->countGlobal(data + index, N * static_cast<int>(sizeof(Element)), false);
    return *reinterpret_cast<const Vec<Element, N>*>(data + index);
#endif
  }

  template <int N = 1>
  __device__ __forceinline__ void store(int64_t index, const Vec<T, N>& value ARCH_PLACE) const {
    static_assert(sizeof(T) * N <= 16, "one access moves at most 16 bytes");
#if !defined(__CUDACC__)
    emulator::checkDependencies(place);
    emulator::checkAccess("write to global memory", data, count, index, N, sizeof(T), place);
    emulator::block->countGlobal(data + index, N * static_cast<int>(sizeof(T)), true);
#endif
    *reinterpret_cast<Vec<T, N>*>(data + index) = value;
  }
};

// Part of the block's dynamic shared memory.
template <class T>
struct Shared {
  T* data;
  int count;

  template <int N = 1>
  __device__ __forceinline__ Vec<T, N> load(int index ARCH_PLACE) const {
    static_assert(sizeof(T) * N <= 16, "one access moves at most 16 bytes");
#if !defined(__CUDACC__)
    emulator::checkAccess("read from shared memory", data, count, index, N, sizeof(T), place);
    emulator::block->countShared(data + index, N * static_cast<int>(sizeof(T)), place);
#endif
    return *reinterpret_cast<const Vec<T, N>*>(data + index);
  }

  template <int N = 1>
  __device__ __forceinline__ void store(int index, const Vec<T, N>& value ARCH_PLACE) const {
    static_assert(sizeof(T) * N <= 16, "one access moves at most 16 bytes");
#if !defined(__CUDACC__)
    emulator::checkAccess("write to shared memory", data, count, index, N, sizeof(T), place);
    emulator::block->countShared(data + index, N * static_cast<int>(sizeof(T)), place);
    emulator::wroteShared(data + index, N * sizeof(T));
#endif
    *reinterpret_cast<Vec<T, N>*>(data + index) = value;
  }
};

// Hands out the dynamic shared memory of the launch piece by piece, each at a multiple of ALIGNMENT bytes. It starts at
// one of 1024, as tiles that TMA writes must.
class SharedMemory {
 public:
  __device__ __forceinline__ SharedMemory() : used_(0) {}

  template <class T, int ALIGNMENT = 16>
  __device__ __forceinline__ Shared<T> array(int count ARCH_PLACE) {
    static_assert(ALIGNMENT % 16 == 0 && 1024 % ALIGNMENT == 0, "a power of two");
    used_ = (used_ + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    T* data = reinterpret_cast<T*>(base() + used_);
    used_ += (count * static_cast<int>(sizeof(T)) + 15) / 16 * 16;
#if !defined(__CUDACC__)
    if (static_cast<size_t>(used_) > emulator::block->sharedBytes())
      emulator::block->fail("more shared memory than was launched with", place);
#endif
    return {data, count};
  }

 private:
#if defined(__CUDACC__)
  static __device__ __forceinline__ unsigned char* base() {
    extern __shared__ __align__(1024) unsigned char dynamicShared[];
    return dynamicShared;
  }
#else
  static unsigned char* base() { return emulator::block->shared(); }
#endif
  int used_;
};

}  // namespace sepconv::arch
