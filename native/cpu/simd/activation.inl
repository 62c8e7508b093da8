// The activations of prologues and epilogues (and their derivatives) on vectors, for the convolution families. NaN
// stays NaN.
#pragma once
#include "math.inl"

enum { kActivationNone = 0, kActivationRelu = 1, kActivationElu = 2 };  // the values of sepconv::Activation

inline Vector relu(Vector x) { return maximum(Vector{}, x); }
inline Vector elu(Vector x) { return x > 0.0f ? x : math::expm1Negative(x); }

inline Vector activate(Vector x, int activation) {
  if (activation == kActivationRelu) return relu(x);
  if (activation == kActivationElu) return elu(x);
  return x;
}

// gradient * activation'(x); relu'(0) = 0.
inline Vector activationGradient(Vector gradient, Vector x, int activation) {
  if (activation == kActivationRelu) return x > 0.0f ? gradient : Vector{};
  if (activation == kActivationElu) return x > 0.0f ? gradient : gradient * math::exp(x);
  return gradient;
}
