// The loops behind elementwise.h. Those that may run in place use explicit vectors, since a compiler that vectorises a
// plain loop takes its scalar version when input and output are the same memory; casts and the generator are plain
// loops that it vectorises well.
#include "loops.inl"
#include "math.inl"

namespace elementwise {

constexpr int64_t kSumBlock = 512;

inline Vector choose(VectorInt mask, float yes, float no) { return mask ? broadcast(yes) : broadcast(no); }
inline double laneSum(Vector v) {
  double sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += v[i];
  return sum;
}

// -- unary: value(x), and gradient(dy, x) = dy * f'(x) --

struct Relu {
  static Vector value(Vector x) { return x < 0.0f ? Vector{} : x; }
  static Vector gradient(Vector dy, Vector x) { return x > 0.0f ? dy : Vector{}; }
};
struct Elu {
  static Vector value(Vector x) { return x < 0.0f ? math::expm1Negative(x) : x; }
  static Vector gradient(Vector dy, Vector x) { return x < 0.0f ? dy * math::exp(x) : dy; }
};
struct Negate {
  static Vector value(Vector x) { return -x; }
  static Vector gradient(Vector dy, Vector) { return -dy; }
};
struct Exp {
  static Vector value(Vector x) { return math::exp(x); }
  static Vector gradient(Vector dy, Vector x) { return dy * math::exp(x); }
};
struct Log {
  static Vector value(Vector x) { return math::log(x); }
  static Vector gradient(Vector dy, Vector x) { return dy / x; }
};
struct Sqrt {
  static Vector value(Vector x) { return squareRoot(x); }
  static Vector gradient(Vector dy, Vector x) { return dy * 0.5f / squareRoot(x); }
};
struct ReciprocalSqrt {
  static Vector value(Vector x) { return 1.0f / squareRoot(x); }
  static Vector gradient(Vector dy, Vector x) { return dy * -0.5f / x / squareRoot(x); }
};
struct Square {
  static Vector value(Vector x) { return x * x; }
  static Vector gradient(Vector dy, Vector x) { return dy * (x + x); }
};
struct Abs {
  static Vector value(Vector x) { return math::absolute(x); }
  static Vector gradient(Vector dy, Vector x) { return x > 0.0f ? dy : (x < 0.0f ? -dy : Vector{}); }
};
struct Sigmoid {
  static Vector value(Vector x) { return math::sigmoid(x); }
  // e / (1 + e)^2 rather than s (1 - s), which cancels for large x.
  static Vector gradient(Vector dy, Vector x) {
    const Vector e = math::exp(-math::absolute(x)), d = e + 1.0f;
    return dy * (e / (d * d));
  }
};
struct Tanh {
  static Vector value(Vector x) { return math::tanh(x); }
  static Vector gradient(Vector dy, Vector x) {
    const Vector e = math::exp(math::absolute(x) * -2.0f), d = e + 1.0f;
    return dy * (e * 4.0f / (d * d));
  }
};
struct Reciprocal {
  static Vector value(Vector x) { return 1.0f / x; }
  static Vector gradient(Vector dy, Vector x) { return -dy / x / x; }  // x * x may overflow
};
struct Sign {
  static Vector value(Vector x) { return x > 0.0f ? broadcast(1.0f) : (x < 0.0f ? broadcast(-1.0f) : x); }
  static Vector gradient(Vector, Vector) { return Vector{}; }
};

template <class F>
void unary(const float* x, float* y, int64_t n) {
  forEachVector(n, [=](int64_t i, int m) { write(y + i, F::value(read(x + i, m)), m); });
}
template <class F>
void unaryGradient(const float* dy, const float* x, float* dx, int64_t n) {
  forEachVector(n, [=](int64_t i, int m) { write(dx + i, F::gradient(read(dy + i, m), read(x + i, m)), m); });
}

// -- binary --

struct Add {
  static Vector value(Vector a, Vector b) { return a + b; }
  static uint32_t value(int32_t a, int32_t b) { return static_cast<uint32_t>(a) + static_cast<uint32_t>(b); }
};
struct Subtract {
  static Vector value(Vector a, Vector b) { return a - b; }
  static uint32_t value(int32_t a, int32_t b) { return static_cast<uint32_t>(a) - static_cast<uint32_t>(b); }
};
struct Multiply {
  static Vector value(Vector a, Vector b) { return a * b; }
  static uint32_t value(int32_t a, int32_t b) { return static_cast<uint32_t>(a) * static_cast<uint32_t>(b); }
};
struct Divide {
  static Vector value(Vector a, Vector b) { return a / b; }
};
// NaN in either operand gives NaN.
struct Maximum {
  static Vector value(Vector a, Vector b) { return ((a > b) | (a != a)) ? a : b; }
  static uint32_t value(int32_t a, int32_t b) { return static_cast<uint32_t>(a > b ? a : b); }
};
struct Minimum {
  static Vector value(Vector a, Vector b) { return ((a < b) | (a != a)) ? a : b; }
  static uint32_t value(int32_t a, int32_t b) { return static_cast<uint32_t>(a < b ? a : b); }
};
struct Power {
  // Rare, and a vector version would lose b * log2(a) bits: the C library's.
  static Vector value(Vector a, Vector b) {
    for (int i = 0; i < kWidth; ++i) a[i] = __builtin_powf(a[i], b[i]);
    return a;
  }
};
struct Greater {
  static Vector value(Vector a, Vector b) { return choose(a > b, 1.0f, 0.0f); }
};
struct GreaterEqual {
  static Vector value(Vector a, Vector b) { return choose(a >= b, 1.0f, 0.0f); }
};
struct Equal {
  static Vector value(Vector a, Vector b) { return choose(a == b, 1.0f, 0.0f); }
};

template <class F, BinaryOperands operands>
void binary(const void* left, const void* right, void* result, int64_t n) {
  const float* a = static_cast<const float*>(left);
  const float* b = static_cast<const float*>(right);
  float* c = static_cast<float*>(result);
  const Vector scalar = broadcast(operands == BinaryOperands::leftScalar ? *a : *b);
  forEachVector(n, [=](int64_t i, int m) {
    const Vector x = operands == BinaryOperands::leftScalar ? scalar : read(a + i, m);
    const Vector y = operands == BinaryOperands::rightScalar ? scalar : read(b + i, m);
    write(c + i, F::value(x, y), m);
  });
}

// Wraps around on overflow.
template <class F, BinaryOperands operands>
void binaryInt(const void* left, const void* right, void* result, int64_t n) {
  const int32_t* a = static_cast<const int32_t*>(left);
  const int32_t* b = static_cast<const int32_t*>(right);
  int32_t* c = static_cast<int32_t*>(result);
  const int32_t scalar = operands == BinaryOperands::leftScalar ? *a : *b;
  for (int64_t i = 0; i < n; ++i)
    c[i] = static_cast<int32_t>(F::value(operands == BinaryOperands::leftScalar ? scalar : a[i],
                                         operands == BinaryOperands::rightScalar ? scalar : b[i]));
}

void select(const float* condition, const float* a, const float* b, float* c, int64_t n) {
  forEachVector(
      n, [=](int64_t i, int m) { write(c + i, read(condition + i, m) != 0.0f ? read(a + i, m) : read(b + i, m), m); });
}

// -- cast --

struct Bfloat16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(int32_t x) { return static_cast<float>(x); }
inline float widen(uint8_t x) { return static_cast<float>(static_cast<int32_t>(x)); }
inline float widen(Bfloat16 x) {
  union {
    uint32_t word;
    float value;
  } u;
  u.word = static_cast<uint32_t>(x.bits) << 16;
  return u.value;
}

inline void narrow(float x, float* y) { *y = x; }
inline void narrow(float x, Bfloat16* y) {
  union {
    float value;
    uint32_t word;
  } u;
  u.value = x;
  const uint32_t rounded = (u.word + 0x7fffu + ((u.word >> 16) & 1u)) >> 16;
  y->bits = static_cast<uint16_t>(x == x ? rounded : (u.word >> 16) | 0x40u);
}
// Half to even, saturating; NaN gives 0. Adding and taking away 2^23 rounds any smaller magnitude to a whole number.
inline void narrow(float x, int32_t* y) {
  const float magnitude = __builtin_fabsf(x);
  const float rounded = magnitude < 8388608.0f ? __builtin_copysignf((magnitude + 8388608.0f) - 8388608.0f, x) : x;
  const float low = rounded > -2147483648.0f ? rounded : -2147483648.0f;
  const int32_t whole =
      static_cast<int32_t>(low < 2147483520.0f ? low : 2147483520.0f);  // the largest float below 2^31
  const int32_t saturated = rounded >= 2147483648.0f ? 2147483647 : whole;
  *y = x == x ? saturated : 0;
}
inline void narrow(float x, uint8_t* y) {
  const float low = x > 0.0f ? x : 0.0f;
  const float clamped = low < 255.0f ? low : 255.0f;
  *y = static_cast<uint8_t>(static_cast<int32_t>((clamped + 8388608.0f) - 8388608.0f));
}

template <class From, class To>
void cast(const void* x, void* y, int64_t n, float scale, float offset) {
  const From* from = static_cast<const From*>(x);
  To* to = static_cast<To*>(y);
  for (int64_t i = 0; i < n; ++i) narrow(widen(from[i]) * scale + offset, to + i);
}

// -- dropout: Philox4x32-10 of Salmon, Moraes, Dror, Shaw (SC 2011), kBlocks counters side by side --

constexpr int kBlocks = 64;

// words[4 i + j] = word j of block `first + i`, for i in [0, blocks rounded up to 8).
void philoxWords(uint32_t first, int blocks, const DropoutKey& key, uint32_t* words) {
  uint32_t c0[kBlocks], c1[kBlocks], c2[kBlocks], c3[kBlocks];
  const int lanes = (blocks + 7) & ~7;
  const uint32_t low = static_cast<uint32_t>(key.sample), high = static_cast<uint32_t>(key.sample >> 32);
  for (int i = 0; i < lanes; ++i) {
    c0[i] = first + static_cast<uint32_t>(i);
    c1[i] = 0;
    c2[i] = low;
    c3[i] = high;
  }
  uint32_t k0 = key.seed, k1 = key.stream;
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    for (int i = 0; i < lanes; ++i) {
      const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0[i], p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2[i];
      c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
      c1[i] = static_cast<uint32_t>(p1);
      c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
      c3[i] = static_cast<uint32_t>(p0);
    }
  }
  for (int i = 0; i < lanes; ++i) {
    words[4 * i] = c0[i];
    words[4 * i + 1] = c1[i];
    words[4 * i + 2] = c2[i];
    words[4 * i + 3] = c3[i];
  }
}

void dropout(const float* x, float* y, int64_t first, int64_t n, const DropoutKey& key) {
  uint32_t words[4 * kBlocks];
  for (int64_t done = 0; done < n;) {
    const int64_t element = first + done;
    const int skip = static_cast<int>(element & 3);
    const int64_t left = n - done;
    const int count = static_cast<int>(left < 4 * kBlocks - skip ? left : 4 * kBlocks - skip);
    philoxWords(static_cast<uint32_t>(element >> 2), (skip + count + 3) / 4, key, words);
    const float* from = x + done;
    float* to = y + done;
    const uint32_t* word = words + skip;
    // The sign trick compares unsigned words in signed lanes.
    const int32_t threshold = static_cast<int32_t>(key.threshold ^ 0x80000000u);
    forEachVector(count, [=, &key](int64_t i, int m) {
      VectorInt w = {};
      __builtin_memcpy(&w, word + i, static_cast<size_t>(m) * 4);
      const VectorInt kept = (w ^ static_cast<int32_t>(0x80000000u)) >= threshold;
      write(to + i, kept ? read(from + i, m) * key.scale : Vector{}, m);
    });
    done += count;
  }
}

// -- rows of softmax and cross entropy --

float largest(const float* x, int64_t n) {
  if (n < kWidth) {
    float best = x[0];
    for (int64_t i = 1; i < n; ++i) best = x[i] > best ? x[i] : best;
    return best;
  }
  Vector best = load(x);
  for (int64_t i = kWidth; i + kWidth <= n; i += kWidth) best = maximum(load(x + i), best);
  best = maximum(load(x + n - kWidth), best);  // overlaps the last whole vector
  float result = best[0];
  for (int i = 1; i < kWidth; ++i) result = best[i] > result ? best[i] : result;
  return result;
}

// Sum over i of term(i, m), whose lanes from m on must be 0.
template <class Term>
inline double blockedSum(int64_t n, const Term& term) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t count = n - begin < kSumBlock ? n - begin : kSumBlock;
    Vector sum = {};
    forEachVector(count, [&](int64_t i, int m) { sum += term(begin + i, m); });
    total += laneSum(sum);
  }
  return total;
}
inline Vector firstLanes(Vector v, int m) {
  if (m < kWidth)
    for (int i = m; i < kWidth; ++i) v[i] = 0;
  return v;
}

double exponentials(const float* x, float shift, float* y, int64_t n) {
  const Vector offset = broadcast(shift);
  if (y)
    return blockedSum(n, [=](int64_t i, int m) {
      const Vector e = math::exp(read(x + i, m) - offset);
      write(y + i, e, m);
      return firstLanes(e, m);
    });
  return blockedSum(n, [=](int64_t i, int m) { return firstLanes(math::exp(read(x + i, m) - offset), m); });
}

double shiftedSum(const float* x, float shift, int64_t n) {
  const Vector offset = broadcast(shift);
  return blockedSum(n, [=](int64_t i, int m) { return firstLanes(read(x + i, m) - offset, m); });
}

double shiftedDot(const float* weight, const float* x, float shift, int64_t n) {
  const Vector offset = broadcast(shift);
  return blockedSum(n, [=](int64_t i, int m) {
    const Vector w = read(weight + i, m);
    return w != 0.0f ? w * (read(x + i, m) - offset) : Vector{};  // zero weights beside infinite logits count nothing
  });
}

void affine(const float* x, float* y, float scale, float offset, int64_t n) {
  const Vector s = broadcast(scale), o = broadcast(offset);
  forEachVector(n, [=](int64_t i, int m) { write(y + i, read(x + i, m) * s + o, m); });
}

void affinePair(const float* x, const float* weight, float* y, float scale, float weightScale, float offset,
                int64_t n) {
  const Vector s = broadcast(scale), w = broadcast(weightScale), o = broadcast(offset);
  forEachVector(n, [=](int64_t i, int m) { write(y + i, read(x + i, m) * s + (read(weight + i, m) * w + o), m); });
}

void softmaxGradient(const float* dy, const float* y, float* dx, float dot, int64_t n) {
  const Vector d = broadcast(dot);
  forEachVector(n, [=](int64_t i, int m) { write(dx + i, read(y + i, m) * (read(dy + i, m) - d), m); });
}

void sigmoidCrossEntropy(const float* logits, const float* targets, float* loss, float keep, float add, int64_t n) {
  const Vector k = broadcast(keep), o = broadcast(add);
  forEachVector(n, [=](int64_t i, int m) {
    const Vector l = read(logits + i, m), t = read(targets + i, m) * k + o;
    const Vector positive = l < 0.0f ? Vector{} : l;  // NaN stays
    write(loss + i, (positive - l * t) + math::log1pUnit(math::exp(-math::absolute(l))), m);
  });
}

void sigmoidCrossEntropyGradient(const float* dloss, const float* logits, const float* targets, float* dlogits,
                                 float keep, float add, int64_t n) {
  const Vector k = broadcast(keep), o = broadcast(add);
  forEachVector(n, [=](int64_t i, int m) {
    const Vector t = read(targets + i, m) * k + o;
    write(dlogits + i, read(dloss + i, m) * (math::sigmoid(read(logits + i, m)) - t), m);
  });
}

// -- updates --

bool allFinite(const float* x, int64_t n) {
  VectorInt bad = {};
  forEachVector(n, [=, &bad](int64_t i, int m) { bad |= (math::bits(read(x + i, m)) & 0x7f800000) == 0x7f800000; });
  for (int i = 0; i < kWidth; ++i)
    if (bad[i]) return false;
  return true;
}

double sumOfSquares(const float* x, int64_t n) {
  typedef double Doubles __attribute__((vector_size(SEPCONV_VECTOR_BYTES)));
  typedef float Half __attribute__((vector_size(SEPCONV_VECTOR_BYTES / 2)));
  enum { kHalf = kWidth / 2 };
  Doubles sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kHalf <= n; i += 4 * kHalf) {
    for (int j = 0; j < 4; ++j) {
      Half h;
      __builtin_memcpy(&h, x + i + j * kHalf, sizeof h);
      const Doubles d = __builtin_convertvector(h, Doubles);
      sums[j] += d * d;
    }
  }
  double total = 0;
  for (; i < n; ++i) total += static_cast<double>(x[i]) * x[i];
  const Doubles sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (int j = 0; j < kHalf; ++j) total += sum[j];
  return total;
}

#define SEPCONV_BINARY(function, F)                                                 \
  {                                                                                 \
    function<F, BinaryOperands::vectors>, function<F, BinaryOperands::rightScalar>, \
        function<F, BinaryOperands::leftScalar>                                     \
  }

constexpr ElementwiseTable kTable = {
    {unary<Relu>, unary<Elu>, unary<Negate>, unary<Exp>, unary<Log>, unary<Sqrt>, unary<ReciprocalSqrt>, unary<Square>,
     unary<Abs>, unary<Sigmoid>, unary<Tanh>, unary<Reciprocal>, unary<Sign>},
    {unaryGradient<Relu>, unaryGradient<Elu>, unaryGradient<Negate>, unaryGradient<Exp>, unaryGradient<Log>,
     unaryGradient<Sqrt>, unaryGradient<ReciprocalSqrt>, unaryGradient<Square>, unaryGradient<Abs>,
     unaryGradient<Sigmoid>, unaryGradient<Tanh>, unaryGradient<Reciprocal>, unaryGradient<Sign>},
    {SEPCONV_BINARY(binary, Add), SEPCONV_BINARY(binary, Subtract), SEPCONV_BINARY(binary, Multiply),
     SEPCONV_BINARY(binary, Divide), SEPCONV_BINARY(binary, Maximum), SEPCONV_BINARY(binary, Minimum),
     SEPCONV_BINARY(binary, Power), SEPCONV_BINARY(binary, Greater), SEPCONV_BINARY(binary, GreaterEqual),
     SEPCONV_BINARY(binary, Equal)},
    {SEPCONV_BINARY(binaryInt, Add),
     SEPCONV_BINARY(binaryInt, Subtract),
     SEPCONV_BINARY(binaryInt, Multiply),
     {},
     SEPCONV_BINARY(binaryInt, Maximum),
     SEPCONV_BINARY(binaryInt, Minimum),
     {},
     {},
     {},
     {}},
    select,
    {{cast<float, float>, cast<float, Bfloat16>, cast<float, int32_t>, cast<float, uint8_t>},
     {cast<Bfloat16, float>, cast<Bfloat16, Bfloat16>, cast<Bfloat16, int32_t>, cast<Bfloat16, uint8_t>},
     {cast<int32_t, float>, cast<int32_t, Bfloat16>, cast<int32_t, int32_t>, cast<int32_t, uint8_t>},
     {cast<uint8_t, float>, cast<uint8_t, Bfloat16>, cast<uint8_t, int32_t>, cast<uint8_t, uint8_t>}},
    dropout,
    largest,
    exponentials,
    shiftedSum,
    shiftedDot,
    affine,
    affinePair,
    softmaxGradient,
    sigmoidCrossEntropy,
    sigmoidCrossEntropyGradient,
    allFinite,
    sumOfSquares,
};
#undef SEPCONV_BINARY

}  // namespace elementwise

constexpr ElementwiseTable elementwiseTable = elementwise::kTable;
