// Loops over contiguous floats for the elementwise, loss and update kernels: [n] in, [n] out. Every output may be the
// very memory of an input of the same type (never a shifted overlap). Sums are taken in blocks of kSumBlock floats,
// lane by lane, then in float64 in order, so that they depend on n alone.
#pragma once
#include <cstdint>

#if defined(SEPCONV_ISA) && defined(__SSE2__)
#include <immintrin.h>  // square root; outside the namespaces, and only for files compiled per instruction set
#endif

namespace sepconv::cpu {

enum class UnaryFunction : uint8_t {
  relu,
  elu,
  negate,
  exp,
  log,
  sqrt,
  reciprocalSqrt,
  square,
  abs,
  sigmoid,
  tanh,
  reciprocal,
  sign,
  count
};
enum class BinaryFunction : uint8_t {
  add,
  subtract,
  multiply,
  divide,
  maximum,
  minimum,
  power,
  greater,
  greaterEqual,
  equal,
  count
};
enum class BinaryOperands : uint8_t {
  vectors,
  rightScalar,
  leftScalar,
  count
};  // a scalar is read from its first element

// Which words of which Philox4x32-10 stream decide about dropout of a row: see ops contract in src/ops/dropout.ts.
struct DropoutKey {
  uint32_t seed, stream;
  uint64_t sample;
  uint32_t threshold;  // kept iff word >= threshold
  float scale;
};

struct ElementwiseTable {
  void (*unary[static_cast<int>(UnaryFunction::count)])(const float* x, float* y, int64_t n);
  void (*unaryGradient[static_cast<int>(UnaryFunction::count)])(const float* dy, const float* x, float* dx, int64_t n);
  // Operands are float or int32_t; null where the function does not exist for int32_t.
  using Binary = void (*)(const void* a, const void* b, void* c, int64_t n);
  Binary binary[static_cast<int>(BinaryFunction::count)][static_cast<int>(BinaryOperands::count)];
  Binary binaryInt[static_cast<int>(BinaryFunction::count)][static_cast<int>(BinaryOperands::count)];
  void (*select)(const float* condition, const float* a, const float* b, float* c, int64_t n);
  // y = convert(x * scale + offset), indexed by DType of x and y.
  void (*cast[4][4])(const void* x, void* y, int64_t n, float scale, float offset);
  // Elements [first, first + n) of one row; x and y point at the first of them.
  void (*dropout)(const float* x, float* y, int64_t first, int64_t n, const DropoutKey& key);

  // max(x); NaN elements may be passed over (their exponentials are NaN all the same).
  float (*largest)(const float* x, int64_t n);
  // y = exp(x - shift) unless y is null; returns the sum.
  double (*exponentials)(const float* x, float shift, float* y, int64_t n);
  double (*shiftedSum)(const float* x, float shift, int64_t n);  // sum of x - shift
  double (*shiftedDot)(const float* weight, const float* x, float shift,
                       int64_t n);  // sum of weight * (x - shift) over weight != 0
  void (*affine)(const float* x, float* y, float scale, float offset, int64_t n);  // y = x * scale + offset
  // y = x * scale + weight * weightScale + offset
  void (*affinePair)(const float* x, const float* weight, float* y, float scale, float weightScale, float offset,
                     int64_t n);
  void (*softmaxGradient)(const float* dy, const float* y, float* dx, float dot, int64_t n);  // dx = y * (dy - dot)
  // target' = target * keep + add
  void (*sigmoidCrossEntropy)(const float* logits, const float* targets, float* loss, float keep, float add, int64_t n);
  void (*sigmoidCrossEntropyGradient)(const float* dloss, const float* logits, const float* targets, float* dlogits,
                                      float keep, float add, int64_t n);

  bool (*allFinite)(const float* x, int64_t n);
  double (*sumOfSquares)(const float* x, int64_t n);  // float64 throughout
};

}  // namespace sepconv::cpu
