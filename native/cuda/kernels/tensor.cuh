// Views of tensors whose storage, float32 or bfloat16, is known at run time only: kernels that are bound by memory read
// and write both through one instantiation, the branch being the same for the whole grid. Values are float32 in
// registers. Loads are coherent, so an output may be the memory of an input that the same thread has read.
#pragma once
#include "../../kernels/kernel.h"
#include "../arch/math.h"
#include "../arch/memory.h"

namespace sepconv::cuda {

template <int N>
using Floats = arch::Vec<float, N>;
using Input = arch::Global<const float>;
using Output = arch::Global<float>;

template <int N>
__device__ __forceinline__ Floats<N> filled(float value) {
  Floats<N> result;
  ARCH_UNROLL
  for (int i = 0; i < N; ++i) result[i] = value;
  return result;
}

template <int N>
__device__ __forceinline__ Floats<N> toFloats(const arch::Vec<arch::Bfloat16, N>& stored) {
  Floats<N> result;
  ARCH_UNROLL
  for (int i = 0; i < N; ++i) result[i] = arch::toFloat(stored[i]);
  return result;
}
template <int N>
__device__ __forceinline__ Floats<N> toFloats(const Floats<N>& stored) {
  return stored;
}

struct AnyInput {
  const void* data;
  int64_t count;  // elements
  DType dtype;    // float32 or bfloat16

  __device__ __forceinline__ bool present() const { return data != nullptr; }

  template <int N = 1>
  __device__ __forceinline__ Floats<N> load(int64_t index) const {
    if (dtype == DType::float32)
      return arch::Global<float>{static_cast<float*>(const_cast<void*>(data)), count}.load<N>(index);
    const arch::Global<arch::Bfloat16> half{static_cast<arch::Bfloat16*>(const_cast<void*>(data)), count};
    return toFloats(half.load<N>(index));
  }
};

struct AnyOutput {
  void* data;
  int64_t count;
  DType dtype;

  template <int N = 1>
  __device__ __forceinline__ void store(int64_t index, const Floats<N>& value) const {
    if (dtype == DType::float32) return arch::Global<float>{static_cast<float*>(data), count}.store<N>(index, value);
    arch::Vec<arch::Bfloat16, N> bits;
    ARCH_UNROLL
    for (int i = 0; i < N; ++i) bits[i] = arch::toBfloat16(value[i]);
    arch::Global<arch::Bfloat16>{static_cast<arch::Bfloat16*>(data), count}.store<N>(index, bits);
  }
};

// Host side: a view of `count` elements, or of nothing.
inline Input view(const float* data, int64_t count) { return {data, data ? count : 0}; }
inline Output view(float* data, int64_t count) { return {data, count}; }
inline AnyInput view(const void* data, int64_t count, DType dtype) { return {data, data ? count : 0, dtype}; }
inline AnyOutput view(void* data, int64_t count, DType dtype) { return {data, count, dtype}; }

}  // namespace sepconv::cuda
