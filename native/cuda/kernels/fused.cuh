// What convolution kernels do before and after the sum of products: xin = inputActivation(x * scale[c] + shift[c]) on
// the way in, y = activation(acc * scale[c] + shift[c] + residual) on the way out. Absent operands cost a uniform
// branch.
#pragma once
#include "../problem.h"
#include "tensor.cuh"

namespace sepconv::cuda {

__device__ __forceinline__ float activate(float x, Activation activation) {
  if (activation == Activation::relu) return arch::reluKeepingNaN(x);
  if (activation == Activation::elu) return x > 0.f ? x : expm1f(x);
  return x;
}

template <int N>
__device__ __forceinline__ void activate(Floats<N>& x, Activation activation) {
  if (activation == Activation::none) return;
  ARCH_UNROLL
  for (int i = 0; i < N; ++i) x[i] = activate(x[i], activation);
}

// The derivative of `activation` at x; that of relu at 0 is 0.
__device__ __forceinline__ float slope(float x, Activation activation) {
  if (activation == Activation::relu) return x > 0.f ? 1.f : 0.f;
  if (activation == Activation::elu) return x > 0.f ? 1.f : expf(x);
  return 1.f;
}

// acc += a * b
template <int N>
__device__ __forceinline__ void multiplyAdd(Floats<N>& acc, const Floats<N>& a, const Floats<N>& b) {
  ARCH_UNROLL
  for (int i = 0; i < N; ++i) acc[i] = arch::fma(a[i], b[i], acc[i]);
}

struct Prologue {
  Input scale, shift;  // [c]
  Activation activation;

  __device__ __forceinline__ bool present() const {
    return activation != Activation::none || scale.present() || shift.present();
  }
};

// The prologue of N channels, its operands in registers.
template <int N>
struct ChannelPrologue {
  Floats<N> scale, shift;
  Activation activation;

  __device__ __forceinline__ ChannelPrologue(const Prologue& p, int channel)
      : scale(p.scale.present() ? p.scale.load<N>(channel) : filled<N>(1.f)),
        shift(p.shift.present() ? p.shift.load<N>(channel) : filled<N>(0.f)),
        activation(p.activation) {}

  __device__ __forceinline__ void apply(Floats<N>& x) const {
    ARCH_UNROLL
    for (int i = 0; i < N; ++i) x[i] = arch::fma(x[i], scale[i], shift[i]);
    activate(x, activation);
  }
};

struct Epilogue {
  Input scale, shift;  // [c]
  AnyInput residual;   // like y
  Activation activation;
};

// A data gradient's last step: times the derivative of the forward op's inputActivation at x * scale[c] + shift[c].
struct Mask {
  AnyInput x;  // absent: no mask
  Input scale, shift;
  Activation activation;

  template <int N>
  __device__ __forceinline__ void apply(Floats<N>& gradient, int64_t index, int channel) const {
    if (!x.present()) return;
    Floats<N> z = x.load<N>(index);
    const Floats<N> s = scale.present() ? scale.load<N>(channel) : filled<N>(1.f);
    const Floats<N> t = shift.present() ? shift.load<N>(channel) : filled<N>(0.f);
    ARCH_UNROLL
    for (int i = 0; i < N; ++i) gradient[i] *= slope(arch::fma(z[i], s[i], t[i]), activation);
  }
};

template <int N>
struct ChannelEpilogue {
  Floats<N> scale, shift;

  __device__ __forceinline__ ChannelEpilogue(const Epilogue& p, int channel)
      : scale(p.scale.present() ? p.scale.load<N>(channel) : filled<N>(1.f)),
        shift(p.shift.present() ? p.shift.load<N>(channel) : filled<N>(0.f)) {}

  // `index`: of the first of the N elements in y.
  __device__ __forceinline__ void store(const Epilogue& p, const AnyOutput& y, int64_t index, Floats<N> acc) const {
    apply(p, index, acc);
    y.store<N>(index, acc);
  }
  __device__ __forceinline__ void apply(const Epilogue& p, int64_t index, Floats<N>& acc) const {
    ARCH_UNROLL
    for (int i = 0; i < N; ++i) acc[i] = arch::fma(acc[i], scale[i], shift[i]);
    if (p.residual.present()) {
      const Floats<N> residual = p.residual.load<N>(index);
      ARCH_UNROLL
      for (int i = 0; i < N; ++i) acc[i] += residual[i];
    }
    activate(acc, p.activation);
  }
};

}  // namespace sepconv::cuda
