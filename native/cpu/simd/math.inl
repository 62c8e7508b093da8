// exp, expm1, log, log1p, sigmoid and tanh of a Vector, at most about 2 ulp off, right at infinities, NaN, denormals
// and overflow, with no table look-ups and no branches. The polynomials are own minimax fits (Remez, 40 digits) of the
// remainder after the leading terms, which are added last so that small arguments keep their relative precision.
#pragma once

namespace math {

// Cody-Waite: kLn2High has nine trailing zero bits, so that n * kLn2High is exact for |n| < 512.
constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
constexpr float kRoundingMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
constexpr float kInfinity = __builtin_inff();

inline VectorInt bits(Vector x) { return (VectorInt)x; }
inline Vector fromBits(VectorInt x) { return (Vector)x; }
inline Vector absolute(Vector x) { return fromBits(bits(x) & 0x7fffffff); }
inline Vector powerOfTwo(VectorInt n) { return fromBits((n + 127) << 23); }  // -126 <= n <= 127

// x = n ln 2 + r, |r| <= ln 2 / 2; returns r.
inline Vector reduce(Vector x, VectorInt* n) {
  const Vector shifted = x * kLog2E + kRoundingMagic;
  *n = bits(shifted) - bits(broadcast(kRoundingMagic));
  const Vector whole = shifted - kRoundingMagic;
  return (x - whole * kLn2High) - whole * kLn2Low;
}

// e^r - 1 for |r| <= ln 2 / 2.
inline Vector expm1Reduced(Vector r) {
  Vector p = r * 1.979033e-4f + 1.39446708e-3f;
  p = p * r + 8.33349675e-3f;
  p = p * r + 4.16662954e-2f;
  p = p * r + 0.166666657f;
  p = p * r + 0.5f;
  return p * (r * r) + r;
}

inline Vector exp(Vector x) {
  x = x > 89.0f ? broadcast(89.0f) : x;      // beyond: infinity. The comparisons leave NaN alone.
  x = x < -104.0f ? broadcast(-104.0f) : x;  // beyond: 0
  VectorInt n;
  const Vector y = expm1Reduced(reduce(x, &n)) + 1.0f;
  const VectorInt half = n >> 1;  // two factors: 2^n itself may be denormal or 2^128
  return y * powerOfTwo(half) * powerOfTwo(n - half);
}

// For x <= 0 (what elu needs).
inline Vector expm1Negative(Vector x) {
  x = x < -25.0f ? broadcast(-25.0f) : x;
  VectorInt n;
  const Vector y = expm1Reduced(reduce(x, &n));
  const Vector power = powerOfTwo(n);
  return y * power + (power - 1.0f);
}

inline Vector log(Vector x) {
  const VectorInt small = x < 1.17549435e-38f;
  const Vector scaled = small ? x * 33554432.0f : x;      // 2^25
  const VectorInt e = (bits(scaled) - 0x3f3504f3) >> 23;  // the mantissa lands in [sqrt(1/2), sqrt(2))
  const Vector f = fromBits(bits(scaled) - (e << 23)) - 1.0f;
  const Vector exponent = __builtin_convertvector(e, Vector) - (small ? broadcast(25.0f) : Vector{});
  Vector p = f * 6.92098215e-2f - 0.117806524f;
  p = p * f + 0.118651353f;
  p = p * f - 0.123855606f;
  p = p * f + 0.142200217f;
  p = p * f - 0.166692153f;
  p = p * f + 0.200021461f;
  p = p * f - 0.249999866f;
  p = p * f + 0.333333105f;
  const Vector square = f * f;
  Vector y = p * (square * f) + exponent * kLn2Low;
  y = y - square * 0.5f;
  y = (y + f) + exponent * kLn2High;
  y = x < kInfinity ? y : x;  // infinity and NaN
  y = x == 0.0f ? broadcast(-kInfinity) : y;
  return x < 0.0f ? broadcast(__builtin_nanf("")) : y;
}

// log(1 + x) for 0 <= x <= 1: the second term gives back what rounding 1 + x took away.
inline Vector log1pUnit(Vector x) {
  const Vector u = x + 1.0f;
  return log(u) + (x - (u - 1.0f)) / u;
}

inline Vector sigmoid(Vector x) {
  const Vector e = exp(-absolute(x));
  const Vector y = 1.0f / (e + 1.0f);
  return x < 0.0f ? e * y : y;
}

inline Vector tanh(Vector x) {
  const Vector z = x * x;
  Vector p = z * -5.72163844e-3f + 2.0655226e-2f;
  p = p * z - 5.37451468e-2f;
  p = p * z + 0.133315146f;
  p = p * z - 0.333332837f;
  const Vector magnitude = absolute(x);
  const Vector large = 1.0f - 2.0f / (exp(magnitude * 2.0f) + 1.0f);
  const Vector signedLarge = fromBits(bits(large) | (bits(x) & static_cast<int32_t>(0x80000000u)));
  return magnitude < 0.625f ? p * z * x + x : signedLarge;
}

}  // namespace math
