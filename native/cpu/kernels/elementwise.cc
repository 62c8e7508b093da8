// unary, unaryGradient, binary (NumPy broadcasting), select, cast, dropout: one pass over memory, in chunks of 64 KB of
// output. binary merges the axes of the output along which both operands move alike, so that equal shapes, scalars and
// channel vectors become one or two loops; a short channel vector ([..., 3]) is repeated in scratch to fill whole
// vectors.
#include <algorithm>
#include <iterator>

#include "../simd/table.h"
#include "checks.h"
#include "float_blocks.h"

namespace sepconv::cpu {
namespace {

constexpr int64_t kChunk = 16384;

template <size_t N>
int indexOf(const CallDescription& call, const char* const (&names)[N]) {
  const std::string function = call.attributes.text("function");
  for (size_t i = 0; i < N; ++i)
    if (function == names[i]) return static_cast<int>(i);
  fail(call, "ERR_ARGUMENT", "function '" + function + "' does not exist");
}

constexpr const char* kUnaryNames[] = {"relu",   "elu", "negate",  "exp",  "log",        "sqrt", "reciprocalSqrt",
                                       "square", "abs", "sigmoid", "tanh", "reciprocal", "sign"};
static_assert(std::size(kUnaryNames) == static_cast<size_t>(UnaryFunction::count));
constexpr const char* kBinaryNames[] = {"add",     "subtract", "multiply", "divide",       "maximum",
                                        "minimum", "power",    "greater",  "greaterEqual", "equal"};
static_assert(std::size(kBinaryNames) == static_cast<size_t>(BinaryFunction::count));

// forEachChunk with the chunk's operands as float32.
template <class Body>
void forEachBlock(ThreadPool& pool, int64_t elements, bool half, int slots, const Body& body) {
  pool.run((elements + kChunk - 1) / kChunk, [&](int64_t task, int thread) {
    body(FloatBlocks(pool, thread, half, kChunk, slots), task * kChunk, std::min(kChunk, elements - task * kChunk));
  });
}

const TensorType& realNumbers(const CallDescription& call, const char* role, const TensorType& type) {
  expectDType(call, role, type, type.dtype == DType::bfloat16 ? DType::bfloat16 : DType::float32);
  return type;
}

class Unary : public Kernel {
 public:
  explicit Unary(const CallDescription& call)
      : function_(indexOf(call, kUnaryNames)),
        half_(call.input(0).dtype == DType::bfloat16),
        elements_(call.input(0).elements()) {}
  void run(const Arguments& arguments) const override {
    const auto loop = simd().elementwise.unary[function_];
    forEachBlock(arguments.pool, elements_, half_, 1, [&](const FloatBlocks& floats, int64_t begin, int64_t n) {
      loop(floats.read(0, arguments.inputs[0], begin, n), floats.target(0, arguments.outputs[0], begin), n);
      floats.store(0, arguments.outputs[0], begin, n);
    });
  }

 private:
  int function_;
  bool half_;
  int64_t elements_;
};

std::unique_ptr<Kernel> makeUnary(const CallDescription& call) {
  expectOperands(call, 1, 1);
  expectType(call, "output", call.outputs[0], realNumbers(call, "x", call.input(0)));
  return std::make_unique<Unary>(call);
}

class UnaryGradient : public Kernel {
 public:
  explicit UnaryGradient(const CallDescription& call)
      : function_(indexOf(call, kUnaryNames)),
        half_(call.input(0).dtype == DType::bfloat16),
        elements_(call.input(0).elements()) {}
  void run(const Arguments& arguments) const override {
    const auto loop = simd().elementwise.unaryGradient[function_];
    forEachBlock(arguments.pool, elements_, half_, 2, [&](const FloatBlocks& floats, int64_t begin, int64_t n) {
      const float* dy = floats.read(0, arguments.inputs[0], begin, n);
      const float* x = floats.read(1, arguments.inputs[1], begin, n);
      loop(dy, x, floats.target(0, arguments.outputs[0], begin), n);
      floats.store(0, arguments.outputs[0], begin, n);
    });
  }

 private:
  int function_;
  bool half_;
  int64_t elements_;
};

std::unique_ptr<Kernel> makeUnaryGradient(const CallDescription& call) {
  expectOperands(call, 2, 1);
  expectType(call, "x", call.input(1), realNumbers(call, "dy", call.input(0)));
  expectType(call, "output", call.outputs[0], call.input(0));
  return std::make_unique<UnaryGradient>(call);
}

// Axes of the output, innermost first, after merging; strides in elements, 0 where the operand is repeated.
struct BroadcastAxis {
  int64_t size, a, b;
};

std::vector<BroadcastAxis> mergeAxes(const CallDescription& call) {
  const TensorType &a = call.input(0), &b = call.input(1), &c = call.outputs[0];
  const int64_t rank = std::max(a.rank(), b.rank());
  std::vector<int64_t> shape(static_cast<size_t>(rank));
  std::vector<BroadcastAxis> axes;
  int64_t strideA = 1, strideB = 1;
  for (int64_t back = 1; back <= rank; ++back) {
    const int64_t sizeA = back <= a.rank() ? a.dim(-back) : 1, sizeB = back <= b.rank() ? b.dim(-back) : 1;
    if (sizeA != sizeB && sizeA != 1 && sizeB != 1)
      fail(call, "ERR_SHAPE",
           "a " + formatType(a) + " and b " + formatType(b) + " do not broadcast: sizes must be equal or 1");
    const int64_t size = std::max(sizeA, sizeB);
    shape[static_cast<size_t>(rank - back)] = size;
    const BroadcastAxis axis = {size, sizeA == 1 ? 0 : strideA, sizeB == 1 ? 0 : strideB};
    strideA *= sizeA;
    strideB *= sizeB;
    if (size == 1) continue;
    if (!axes.empty() && axis.a == axes.back().a * axes.back().size && axis.b == axes.back().b * axes.back().size)
      axes.back().size *= size;
    else
      axes.push_back(axis);
  }
  expectShape(call, "output", c, shape);
  if (axes.empty()) axes.push_back({1, 1, 1});
  return axes;
}

class Binary : public Kernel {
 public:
  explicit Binary(const CallDescription& call)
      : function_(indexOf(call, kBinaryNames)), integer_(call.input(0).dtype == DType::int32) {
    std::vector<BroadcastAxis> axes = mergeAxes(call);
    inner_ = axes[0];
    // A short vector against dense rows: several rows at once, the vector repeated.
    if (axes.size() > 1 && inner_.size < kShort && inner_.a && inner_.b && (axes[1].a == 0 || axes[1].b == 0) &&
        std::max(axes[1].a, axes[1].b) == inner_.size) {
      repeats_ = std::min(axes[1].size, (kRepeated + inner_.size - 1) / inner_.size);
      repeatA_ = axes[1].a == 0;
      rows_ = axes[1].size;
      axes.erase(axes.begin());
    }
    outer_.assign(axes.begin() + 1, axes.end());
    for (const BroadcastAxis& axis : outer_) count_ *= axis.size;
    operands_ = static_cast<int>(!inner_.b   ? BinaryOperands::rightScalar
                                 : !inner_.a ? BinaryOperands::leftScalar
                                             : BinaryOperands::vectors);
    if (integer_ && !simd().elementwise.binaryInt[function_][0])
      fail(call, "ERR_DTYPE", call.attributes.text("function") + " takes float32, got " + formatType(call.input(0)));
  }

  void run(const Arguments& arguments) const override {
    const Operands operands = {static_cast<const uint32_t*>(arguments.inputs[0]),
                               static_cast<const uint32_t*>(arguments.inputs[1]),
                               static_cast<uint32_t*>(arguments.outputs[0])};
    const auto& table = integer_ ? simd().elementwise.binaryInt : simd().elementwise.binary;
    const auto loop = table[function_][operands_];
    if (repeats_)
      runRepeated(arguments.pool, operands, loop);
    else
      runPlain(arguments.pool, operands, loop);
  }

 private:
  // Both element types have four bytes; only the loops look at them.
  struct Operands {
    const uint32_t *a, *b;
    uint32_t* c;
  };
  static constexpr int64_t kShort = 64, kRepeated = 512;

  void runPlain(ThreadPool& pool, const Operands& operands, ElementwiseTable::Binary loop) const {
    const int64_t size = inner_.size;
    const int64_t pieces = size >= 2 * kChunk ? (size + kChunk - 1) / kChunk : 1;
    const int64_t length = pieces > 1 ? kChunk : size, rows = pieces > 1 ? 1 : std::max<int64_t>(1, kChunk / size);
    pool.run((count_ + rows - 1) / rows * pieces, [&](int64_t task, int) {
      const int64_t begin = task % pieces * length, n = std::min(length, size - begin);
      const int64_t first = task / pieces * rows, end = std::min(count_, first + rows);
      for (int64_t row = first; row < end; ++row) {
        int64_t a, b;
        offsets(row, &a, &b);
        loop(operands.a + a + begin * inner_.a, operands.b + b + begin * inner_.b, operands.c + row * size + begin, n);
      }
    });
  }

  void runRepeated(ThreadPool& pool, const Operands& operands, ElementwiseTable::Binary loop) const {
    const int64_t size = inner_.size, rows = std::max(repeats_, kChunk / size / repeats_ * repeats_);
    const int64_t pieces = (rows_ + rows - 1) / rows;
    pool.run(count_ * pieces, [&](int64_t task, int thread) {
      const int64_t plane = task / pieces, first = task % pieces * rows, end = std::min(rows_, first + rows);
      int64_t a, b;
      offsets(plane, &a, &b);
      const uint32_t* vector = repeatA_ ? operands.a + a : operands.b + b;
      uint32_t* repeated = static_cast<uint32_t*>(pool.scratch(thread, static_cast<size_t>(repeats_ * size) * 4));
      for (int64_t i = 0; i < repeats_; ++i) std::copy(vector, vector + size, repeated + i * size);
      for (int64_t row = first; row < end; row += repeats_) {
        const int64_t n = std::min(repeats_, end - row) * size;
        loop(repeatA_ ? repeated : operands.a + a + row * size, repeatA_ ? operands.b + b + row * size : repeated,
             operands.c + (plane * rows_ + row) * size, n);
      }
    });
  }

  void offsets(int64_t index, int64_t* a, int64_t* b) const {
    *a = *b = 0;
    for (const BroadcastAxis& axis : outer_) {
      const int64_t position = index % axis.size;
      index /= axis.size;
      *a += position * axis.a;
      *b += position * axis.b;
    }
  }

  int function_;
  bool integer_;
  int operands_;
  BroadcastAxis inner_;
  std::vector<BroadcastAxis> outer_;
  int64_t count_ = 1;               // product of outer_
  int64_t repeats_ = 0, rows_ = 0;  // of the repeated form: rows per loop and rows in all
  bool repeatA_ = false;
};

// Operands of one shape in bfloat16: sums of feature maps and of their gradients.
class BinaryHalf : public Kernel {
 public:
  explicit BinaryHalf(const CallDescription& call)
      : function_(indexOf(call, kBinaryNames)), elements_(call.input(0).elements()) {
    expectType(call, "b", call.input(1), call.input(0));
    expectType(call, "output", call.outputs[0], call.input(0));
  }
  void run(const Arguments& arguments) const override {
    const auto loop = simd().elementwise.binary[function_][static_cast<int>(BinaryOperands::vectors)];
    forEachBlock(arguments.pool, elements_, true, 2, [&](const FloatBlocks& floats, int64_t begin, int64_t n) {
      const float* a = floats.read(0, arguments.inputs[0], begin, n);
      const float* b = floats.read(1, arguments.inputs[1], begin, n);
      loop(a, b, floats.target(0, arguments.outputs[0], begin), n);
      floats.store(0, arguments.outputs[0], begin, n);
    });
  }

 private:
  int function_;
  int64_t elements_;
};

std::unique_ptr<Kernel> makeBinary(const CallDescription& call) {
  expectOperands(call, 2, 1);
  const TensorType& a = call.input(0);
  if (a.dtype == DType::bfloat16) return std::make_unique<BinaryHalf>(call);
  if (a.dtype != DType::float32 && a.dtype != DType::int32)
    fail(call, "ERR_DTYPE", "a: expected float32 or int32, got " + formatType(a));
  expectDType(call, "b", call.input(1), a.dtype);
  expectDType(call, "output", call.outputs[0], a.dtype);
  return std::make_unique<Binary>(call);
}

class Select : public Kernel {
 public:
  explicit Select(const CallDescription& call) : elements_(call.input(0).elements()) {}
  void run(const Arguments& arguments) const override {
    const float *condition = arguments.input(0), *a = arguments.input(1), *b = arguments.input(2);
    float* c = arguments.output();
    const auto loop = simd().elementwise.select;
    forEachChunk(arguments.pool, elements_, kChunk,
                 [=](int64_t begin, int64_t n) { loop(condition + begin, a + begin, b + begin, c + begin, n); });
  }

 private:
  int64_t elements_;
};

std::unique_ptr<Kernel> makeSelect(const CallDescription& call) {
  expectOperands(call, 3, 1);
  expectDType(call, "condition", call.input(0), DType::float32);
  expectType(call, "a", call.input(1), call.input(0));
  expectType(call, "b", call.input(2), call.input(0));
  expectType(call, "output", call.outputs[0], call.input(0));
  return std::make_unique<Select>(call);
}

class Cast : public Kernel {
 public:
  explicit Cast(const CallDescription& call)
      : from_(call.input(0).dtype),
        to_(call.outputs[0].dtype),
        elements_(call.input(0).elements()),
        scale_(static_cast<float>(call.attributes.number("scale", 1.0))),
        offset_(static_cast<float>(call.attributes.number("offset", 0.0))) {}
  void run(const Arguments& arguments) const override {
    const uint8_t* x = arguments.input<uint8_t>(0);
    uint8_t* y = arguments.output<uint8_t>();
    const int64_t in = static_cast<int64_t>(bytesPerElement(from_)), out = static_cast<int64_t>(bytesPerElement(to_));
    const bool same = from_ == to_ && scale_ == 1.0f && offset_ == 0.0f;  // whole int32 values survive
    const auto loop = simd().elementwise.cast[static_cast<int>(from_)][static_cast<int>(to_)];
    forEachChunk(arguments.pool, elements_, kChunk, [=](int64_t begin, int64_t n) {
      if (same)
        std::copy(x + begin * in, x + (begin + n) * in, y + begin * out);
      else
        loop(x + begin * in, y + begin * out, n, scale_, offset_);
    });
  }

 private:
  DType from_, to_;
  int64_t elements_;
  float scale_, offset_;
};

std::unique_ptr<Kernel> makeCast(const CallDescription& call) {
  expectOperands(call, 1, 1);
  expectShape(call, "output", call.outputs[0], call.input(0).shape);
  return std::make_unique<Cast>(call);
}

class Dropout : public Kernel {
 public:
  explicit Dropout(const CallDescription& call) : elements_(call.input(0).elements()) {
    const TensorType& x = call.input(0);
    row_ = x.shape.empty() ? 1 : elements_ / x.shape[0];
    const double rate = call.attributes.number("rate");
    if (!(rate >= 0 && rate < 1))
      fail(call, "ERR_ARGUMENT", "rate: expected at least 0 and less than 1, got " + std::to_string(rate));
    key_.seed = word(call, "seed");
    key_.stream = word(call, "stream");
    key_.threshold = static_cast<uint32_t>(std::floor(rate * 4294967296.0));
    key_.scale = static_cast<float>(1.0 / (1.0 - rate));
  }
  void run(const Arguments& arguments) const override {
    const float* x = arguments.input(0);
    const uint32_t* counter = arguments.input<uint32_t>(1);
    const uint64_t sample = static_cast<uint64_t>(counter[1]) << 32 | counter[0];
    float* y = arguments.output();
    const auto loop = simd().elementwise.dropout;
    forEachChunk(arguments.pool, elements_, kChunk, [=](int64_t begin, int64_t n) {
      DropoutKey key = key_;
      for (int64_t done = 0; done < n;) {
        const int64_t first = (begin + done) % row_, count = std::min(n - done, row_ - first);
        key.sample = sample + static_cast<uint64_t>((begin + done) / row_);
        loop(x + begin + done, y + begin + done, first, count, key);
        done += count;
      }
    });
  }

 private:
  static uint32_t word(const CallDescription& call, const char* name) {
    const double value = call.attributes.number(name, 0.0);
    if (!(value >= 0 && value < 4294967296.0))
      fail(call, "ERR_ARGUMENT",
           std::string(name) + ": expected a whole number below 2^32, got " + std::to_string(value));
    return static_cast<uint32_t>(value);
  }

  int64_t elements_, row_;
  DropoutKey key_;
};

std::unique_ptr<Kernel> makeDropout(const CallDescription& call) {
  expectOperands(call, 2, 1);
  expectDType(call, "x", call.input(0), DType::float32);
  expectType(call, "counter", call.input(1), {DType::int32, {2}});
  expectType(call, "output", call.outputs[0], call.input(0));
  return std::make_unique<Dropout>(call);
}

}  // namespace

void registerElementwiseKernels(Registry& registry) {
  registry["unary"] = makeUnary;
  registry["unaryGradient"] = makeUnaryGradient;
  registry["binary"] = makeBinary;
  registry["select"] = makeSelect;
  registry["cast"] = makeCast;
  registry["dropout"] = makeDropout;
}

}  // namespace sepconv::cpu
