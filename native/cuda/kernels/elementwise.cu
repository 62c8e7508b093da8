// unary, unaryGradient, binary, select, scaleShift, dropout, cast: one pass over memory, four elements per thread and
// access; what is left over at the end goes one by one. The function of unary and binary is known at run time: one
// branch for the whole grid, hidden behind the loads.
#include <array>

#include "fused.cuh"
#include "grid.cuh"
#include "philox.cuh"

namespace sepconv::cuda {
namespace {

enum class Unary : uint8_t {
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
  sign
};
constexpr std::array<const char*, 13> unaryNames = {
    "relu",   "elu", "negate",  "exp",  "log",        "sqrt", "reciprocalSqrt",
    "square", "abs", "sigmoid", "tanh", "reciprocal", "sign"};
enum class Binary : uint8_t { add, subtract, multiply, divide, maximum, minimum, power, greater, greaterEqual, equal };
constexpr std::array<const char*, 10> binaryNames = {"add",     "subtract", "multiply", "divide",       "maximum",
                                                     "minimum", "power",    "greater",  "greaterEqual", "equal"};

template <class Function, size_t N>
Function functionOf(const CallDescription& call, const std::array<const char*, N>& names) {
  const std::string name = call.attributes.text("function");
  for (size_t i = 0; i < N; ++i)
    if (name == names[i]) return static_cast<Function>(i);
  refuse(call, "there is no function '" + name + "'");
}

__device__ __forceinline__ float sigmoidOf(float x) { return 1.f / (1.f + expf(-x)); }

__device__ __forceinline__ float apply(Unary f, float x) {
  switch (f) {
    case Unary::relu:
      return activate(x, Activation::relu);
    case Unary::elu:
      return x < 0.f ? expm1f(x) : x;
    case Unary::negate:
      return -x;
    case Unary::exp:
      return expf(x);
    case Unary::log:
      return logf(x);
    case Unary::sqrt:
      return sqrtf(x);
    case Unary::reciprocalSqrt:
      return 1.f / sqrtf(x);
    case Unary::square:
      return x * x;
    case Unary::abs:
      return fabsf(x);
    case Unary::sigmoid:
      return sigmoidOf(x);
    case Unary::tanh:
      return tanhf(x);
    case Unary::reciprocal:
      return 1.f / x;
    case Unary::sign:
      return x > 0.f ? 1.f : (x < 0.f ? -1.f : x);
  }
  return x;
}

__device__ __forceinline__ float derivative(Unary f, float x) {
  switch (f) {
    case Unary::relu:
      return x > 0.f ? 1.f : 0.f;
    case Unary::elu:
      return x < 0.f ? expf(x) : 1.f;
    case Unary::negate:
      return -1.f;
    case Unary::exp:
      return expf(x);
    case Unary::log:
      return 1.f / x;
    case Unary::sqrt:
      return 0.5f / sqrtf(x);
    case Unary::reciprocalSqrt:
      return -0.5f / (x * sqrtf(x));
    case Unary::square:
      return 2.f * x;
    case Unary::abs:
      return x > 0.f ? 1.f : (x < 0.f ? -1.f : x);
    case Unary::sigmoid:
      return sigmoidOf(x) * sigmoidOf(-x);
    case Unary::tanh: {
      const float c = coshf(x);
      return 1.f / (c * c);
    }
    case Unary::reciprocal:
      return -1.f / (x * x);
    case Unary::sign:
      return 0.f;
  }
  return 0.f;
}

__device__ __forceinline__ float apply(Binary f, float a, float b) {
  switch (f) {
    case Binary::add:
      return a + b;
    case Binary::subtract:
      return a - b;
    case Binary::multiply:
      return a * b;
    case Binary::divide:
      return a / b;
    case Binary::maximum:
      return a != a || a > b ? a : b;  // NaN wins
    case Binary::minimum:
      return a != a || a < b ? a : b;
    case Binary::power:
      return powf(a, b);
    case Binary::greater:
      return a > b ? 1.f : 0.f;
    case Binary::greaterEqual:
      return a >= b ? 1.f : 0.f;
    case Binary::equal:
      return a == b ? 1.f : 0.f;
  }
  return 0.f;
}

// Calls body(index) with N = 4 for whole groups, then N = 1 for what is left.
template <class Body>
__device__ __forceinline__ void forFour(int64_t count, const Body& body) {
  const int64_t first = taskIndex() * 4;
  if (first + 4 <= count) return body(std::integral_constant<int, 4>(), first);
  ARCH_NO_UNROLL
  for (int64_t i = first; i < count; ++i) body(std::integral_constant<int, 1>(), i);
}

struct UnaryParameters {
  AnyInput x, dy;  // dy: of the gradient
  AnyOutput y;
  Unary function;
};

__global__ void __launch_bounds__(gridThreads) unaryKernel(const __grid_constant__ UnaryParameters p) {
  forFour(p.y.count, [&](auto n, int64_t i) {
    constexpr int N = decltype(n)::value;
    Floats<N> x = p.x.load<N>(i);
    if (p.dy.present()) {
      const Floats<N> dy = p.dy.load<N>(i);
      ARCH_UNROLL
      for (int e = 0; e < N; ++e) {
        const float d = derivative(p.function, x[e]);
        x[e] = d == 0.f ? 0.f : dy[e] * d;  // an infinite gradient does not pass an inactive relu
      }
    } else {
      ARCH_UNROLL
      for (int e = 0; e < N; ++e) x[e] = apply(p.function, x[e]);
    }
    p.y.store<N>(i, x);
  });
}

class UnaryKernel final : public Kernel {
 public:
  explicit UnaryKernel(const CallDescription& call) : gradient_(call.kernel == "unaryGradient") {
    function_ = functionOf<Unary>(call, unaryNames);
    type_ = requireFloating(call, 0, gradient_ ? "dy" : "x", 0);
    if (gradient_) {
      requireFloating(call, 1, "x", 0);
      requireLike(call, 1, "x", type_);
    }
    requireOutputLike(call, 0, type_);
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const int64_t n = type_.elements();
    const UnaryParameters p{view(arguments.inputs[gradient_ ? 1 : 0], n, type_.dtype),
                            view(gradient_ ? arguments.inputs[0] : nullptr, n, type_.dtype),
                            view(arguments.outputs[0], n, type_.dtype), function_};
    launchTasks(device, gradient_ ? "unaryGradient" : "unary", unaryKernel, (n + 3) / 4, p);
  }

 private:
  const bool gradient_;
  Unary function_;
  TensorType type_;
};

// Broadcast operands: neighbouring axes along which both move alike are one.
constexpr int maxAxes = 6;
struct BinaryParameters {
  AnyInput a, b;
  AnyOutput c;
  arch::Global<int32_t> aIntegers, bIntegers, cIntegers;
  Binary function;
  bool integers;
  int axes;                                                  // 0: no broadcasting
  int sizes[maxAxes], aStrides[maxAxes], bStrides[maxAxes];  // last axis first
};

__device__ __forceinline__ int32_t applyInteger(Binary f, int32_t a, int32_t b) {
  const auto x = static_cast<uint32_t>(a), y = static_cast<uint32_t>(b);  // wraps around
  if (f == Binary::add) return static_cast<int32_t>(x + y);
  if (f == Binary::subtract) return static_cast<int32_t>(x - y);
  if (f == Binary::multiply) return static_cast<int32_t>(x * y);
  if (f == Binary::maximum) return a > b ? a : b;
  return a < b ? a : b;
}

__global__ void __launch_bounds__(gridThreads) binaryKernel(const __grid_constant__ BinaryParameters p) {
  if (p.axes == 0 && !p.integers) {
    forFour(p.c.count, [&](auto n, int64_t i) {
      constexpr int N = decltype(n)::value;
      Floats<N> a = p.a.load<N>(i);
      const Floats<N> b = p.b.load<N>(i);
      ARCH_UNROLL
      for (int e = 0; e < N; ++e) a[e] = apply(p.function, a[e], b[e]);
      p.c.store<N>(i, a);
    });
    return;
  }
  const int64_t first = taskIndex() * 4;
  ARCH_NO_UNROLL
  for (int64_t i = first; i < first + 4 && i < p.c.count; ++i) {
    int rest = static_cast<int>(i);
    int64_t a = p.axes ? 0 : i, b = a;
    ARCH_NO_UNROLL
    for (int axis = 0; axis < p.axes; ++axis) {
      const int at = rest % p.sizes[axis];
      rest /= p.sizes[axis];
      a += int64_t{at} * p.aStrides[axis];
      b += int64_t{at} * p.bStrides[axis];
    }
    if (p.integers)
      p.cIntegers.store<1>(i, {applyInteger(p.function, p.aIntegers.load(a)[0], p.bIntegers.load(b)[0])});
    else
      p.c.store<1>(i, {apply(p.function, p.a.load(a)[0], p.b.load(b)[0])});
  }
}

class BinaryKernel final : public Kernel {
 public:
  explicit BinaryKernel(const CallDescription& call) {
    p_.function = functionOf<Binary>(call, binaryNames);
    p_.integers = call.has(0) && call.input(0).dtype == DType::int32;
    if (p_.integers && p_.function > Binary::minimum) refuse(call, "this function does not take int32");
    if (p_.integers && p_.function == Binary::divide) refuse(call, "divide does not take int32");
    for (size_t i = 0; i < 2; ++i) {
      const char* name = i ? "b" : "a";
      types_[i] = p_.integers ? requireInput(call, i, name, 0, DType::int32) : requireFloating(call, i, name, 0);
    }
    if (types_[0].dtype != types_[1].dtype) refuse(call, "a and b must have one dtype");
    c_ = {types_[0].dtype, {}};
    const size_t rank = std::max(types_[0].shape.size(), types_[1].shape.size());
    for (size_t axis = 0; axis < rank; ++axis) {
      const int64_t a = sizeOf(types_[0], axis, rank), b = sizeOf(types_[1], axis, rank);
      if (a != b && a != 1 && b != 1)
        refuse(call, "shapes " + cuda::describe(types_[0].shape) + " and " + cuda::describe(types_[1].shape) +
                         " do not broadcast");
      c_.shape.push_back(std::max(a, b));
    }
    requireOutputLike(call, 0, c_);
    if (types_[0].shape != types_[1].shape) collapse(call, rank);
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    BinaryParameters p = p_;
    const int64_t counts[] = {types_[0].elements(), types_[1].elements(), c_.elements()};
    p.a = view(arguments.inputs[0], counts[0], c_.dtype);
    p.b = view(arguments.inputs[1], counts[1], c_.dtype);
    p.c = view(arguments.outputs[0], counts[2], c_.dtype);
    p.aIntegers = {static_cast<int32_t*>(const_cast<void*>(arguments.inputs[0])), counts[0]};
    p.bIntegers = {static_cast<int32_t*>(const_cast<void*>(arguments.inputs[1])), counts[1]};
    p.cIntegers = {static_cast<int32_t*>(arguments.outputs[0]), counts[2]};
    launchTasks(device, "binary", binaryKernel, (counts[2] + 3) / 4, p);
  }

 private:
  static int64_t sizeOf(const TensorType& type, size_t axis, size_t rank) {
    const size_t missing = rank - type.shape.size();
    return axis < missing ? 1 : type.shape[axis - missing];
  }
  void collapse(const CallDescription& call, size_t rank) {
    int64_t a = 1, b = 1;  // elements of the axes behind
    int kind = -1;         // of the axis behind: 0 both move, 1 only a, 2 only b
    for (size_t axis = rank; axis-- > 0;) {
      const int64_t sizeA = sizeOf(types_[0], axis, rank), sizeB = sizeOf(types_[1], axis, rank);
      const int64_t size = std::max(sizeA, sizeB);
      if (size == 1) continue;
      const int now = sizeA == sizeB ? 0 : sizeB == 1 ? 1 : 2;
      if (now == kind) {
        p_.sizes[p_.axes - 1] *= static_cast<int>(size);
      } else {
        if (p_.axes == maxAxes) refuse(call, "broadcasting alternates between more than 6 groups of axes");
        p_.sizes[p_.axes] = static_cast<int>(size);
        p_.aStrides[p_.axes] = now == 2 ? 0 : static_cast<int>(a);
        p_.bStrides[p_.axes] = now == 1 ? 0 : static_cast<int>(b);
        ++p_.axes;
        kind = now;
      }
      a *= sizeA;
      b *= sizeB;
    }
  }

  BinaryParameters p_{};
  TensorType types_[2], c_;
};

struct SelectParameters {
  AnyInput condition, a, b;
  AnyOutput c;
};

__global__ void __launch_bounds__(gridThreads) selectKernel(const __grid_constant__ SelectParameters p) {
  forFour(p.c.count, [&](auto n, int64_t i) {
    constexpr int N = decltype(n)::value;
    const Floats<N> condition = p.condition.load<N>(i), b = p.b.load<N>(i);
    Floats<N> a = p.a.load<N>(i);
    ARCH_UNROLL
    for (int e = 0; e < N; ++e) a[e] = condition[e] != 0.f ? a[e] : b[e];
    p.c.store<N>(i, a);
  });
}

class Select final : public Kernel {
 public:
  explicit Select(const CallDescription& call) : type_(requireFloating(call, 1, "a", 0)) {
    requireInput(call, 0, "condition", 0);
    requireShape(call, 0, "condition", type_.shape);
    requireFloating(call, 2, "b", 0);
    requireLike(call, 2, "b", type_);
    requireOutputLike(call, 0, type_);
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const int64_t n = type_.elements();
    const SelectParameters p{view(arguments.inputs[0], n, DType::float32), view(arguments.inputs[1], n, type_.dtype),
                             view(arguments.inputs[2], n, type_.dtype), view(arguments.outputs[0], n, type_.dtype)};
    launchTasks(device, "select", selectKernel, (n + 3) / 4, p);
  }

 private:
  const TensorType type_;
};

struct ScaleShiftParameters {
  AnyInput x;
  AnyOutput y;
  Epilogue epilogue;
  int channels;
};

template <int VECTOR>
__global__ void __launch_bounds__(gridThreads) scaleShiftKernel(const __grid_constant__ ScaleShiftParameters p) {
  const int64_t i = taskIndex() * VECTOR;
  if (i >= p.y.count) return;
  const ChannelEpilogue<VECTOR> epilogue(p.epilogue, static_cast<int>(i) % p.channels);
  epilogue.store(p.epilogue, p.y, i, p.x.load<VECTOR>(i));
}

class ScaleShift final : public Kernel {
 public:
  explicit ScaleShift(const CallDescription& call)
      : type_(requireFloating(call, 0, "x", 0)), activation_(activation(call.attributes, "activation")) {
    if (type_.rank() < 1) refuse(call, "x must have rank 1 or more");
    requireShape(call, 1, "scale", {type_.dim(-1)});
    requireShape(call, 2, "shift", {type_.dim(-1)});
    requireLike(call, 3, "residual", type_);
    requireOutputLike(call, 0, type_);
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const int64_t n = type_.elements(), channels = type_.dim(-1);
    const ScaleShiftParameters p{view(arguments.inputs[0], n, type_.dtype),
                                 view(arguments.outputs[0], n, type_.dtype),
                                 {view(arguments.input(1), channels), view(arguments.input(2), channels),
                                  view(arguments.inputs[3], n, type_.dtype), activation_},
                                 static_cast<int>(channels)};
    if (channels % 4 == 0)
      launchTasks(device, "scaleShift", scaleShiftKernel<4>, n / 4, p);
    else
      launchTasks(device, "scaleShift", scaleShiftKernel<1>, n, p);
  }

 private:
  const TensorType type_;
  const Activation activation_;
};

struct DropoutParameters {
  AnyInput x;
  arch::Global<const int32_t> counter;  // low and high word of the first sample's index
  AnyOutput y;
  uint32_t threshold, seed, stream;
  float scale;
  int size;    // elements per sample
  int groups;  // of four per sample
};

__global__ void __launch_bounds__(gridThreads) dropoutKernel(const __grid_constant__ DropoutParameters p) {
  const int64_t task = taskIndex();
  const int64_t sample = static_cast<int>(task) / p.groups;
  const int group = static_cast<int>(task) % p.groups;
  if (sample * p.size + int64_t{group} * 4 >= p.y.count) return;
  const uint64_t first = static_cast<uint32_t>(p.counter.load(0)[0]) |
                         static_cast<uint64_t>(static_cast<uint32_t>(p.counter.load(1)[0])) << 32;
  const uint64_t index = first + static_cast<uint64_t>(sample);
  const arch::Vec<uint32_t, 4> words =
      philox({static_cast<uint32_t>(group), 0, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32)},
             p.seed, p.stream);
  const int64_t at = sample * p.size + int64_t{group} * 4;
  if (p.size % 4 == 0) {
    Floats<4> x = p.x.load<4>(at);
    ARCH_UNROLL
    for (int e = 0; e < 4; ++e) x[e] = words[e] >= p.threshold ? x[e] * p.scale : 0.f;
    return p.y.store<4>(at, x);
  }
  ARCH_UNROLL
  for (int e = 0; e < 4; ++e)
    if (group * 4 + e < p.size) p.y.store<1>(at + e, {words[e] >= p.threshold ? p.x.load(at + e)[0] * p.scale : 0.f});
}

class Dropout final : public Kernel {
 public:
  explicit Dropout(const CallDescription& call) : type_(requireFloating(call, 0, "x", 0)) {
    if (type_.rank() < 1) refuse(call, "x must have a batch axis");
    if (requireInput(call, 1, "counter", 1, DType::int32).elements() != 2) refuse(call, "counter must have two words");
    requireOutputLike(call, 0, type_);
    const double rate = call.attributes.number("rate");
    if (!(rate >= 0 && rate < 1)) refuse(call, "rate must be in [0, 1), got " + std::to_string(rate));
    threshold_ = static_cast<uint32_t>(rate * 4294967296.0);
    scale_ = static_cast<float>(1 / (1 - rate));
    seed_ = static_cast<uint32_t>(call.attributes.integer("seed"));
    stream_ = static_cast<uint32_t>(call.attributes.integer("stream"));
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const int64_t n = type_.elements();
    const int size = static_cast<int>(n / type_.dim(0)), groups = (size + 3) / 4;
    const DropoutParameters p{view(arguments.inputs[0], n, type_.dtype),
                              {arguments.input<int32_t>(1), 2},
                              view(arguments.outputs[0], n, type_.dtype),
                              threshold_,
                              seed_,
                              stream_,
                              scale_,
                              size,
                              groups};
    launchTasks(device, "dropout", dropoutKernel, type_.dim(0) * groups, p);
  }

 private:
  const TensorType type_;
  uint32_t threshold_, seed_, stream_;
  float scale_;
};

struct CastParameters {
  const void* x;
  void* y;
  int64_t count;
  DType from, to;
  bool plain;  // scale 1, offset 0: whole int32 values survive
  float scale, offset;
};

__global__ void __launch_bounds__(gridThreads) castKernel(const __grid_constant__ CastParameters p) {
  const int64_t i = taskIndex();
  if (i >= p.count) return;
  int32_t whole = 0;
  float value;
  const bool integer = p.from == DType::int32 || p.from == DType::uint8;
  if (p.from == DType::int32) whole = arch::Global<const int32_t>{static_cast<const int32_t*>(p.x), p.count}.load(i)[0];
  if (p.from == DType::uint8) whole = arch::Global<const uint8_t>{static_cast<const uint8_t*>(p.x), p.count}.load(i)[0];
  value = integer ? static_cast<float>(whole) : AnyInput{p.x, p.count, p.from}.load(i)[0];
  if (!p.plain) value = fmaf(value, p.scale, p.offset);
  if (p.to == DType::float32 || p.to == DType::bfloat16) return AnyOutput{p.y, p.count, p.to}.store<1>(i, {value});
  int32_t rounded = integer && p.plain ? whole : arch::roundToInt(value);
  if (p.to == DType::int32) return arch::Global<int32_t>{static_cast<int32_t*>(p.y), p.count}.store<1>(i, {rounded});
  rounded = rounded < 0 ? 0 : rounded > 255 ? 255 : rounded;
  arch::Global<uint8_t>{static_cast<uint8_t*>(p.y), p.count}.store<1>(i, {static_cast<uint8_t>(rounded)});
}

class Cast final : public Kernel {
 public:
  explicit Cast(const CallDescription& call) {
    if (!call.has(0)) refuse(call, "input 'x' is missing");
    const TensorType& x = requireInput(call, 0, "x", 0, call.input(0).dtype);
    if (call.outputs.empty()) refuse(call, "output 0 is missing");
    requireOutput(call, 0, x.shape, call.outputs[0].dtype);
    p_.count = x.elements();
    p_.from = x.dtype;
    p_.to = call.outputs[0].dtype;
    p_.scale = static_cast<float>(call.attributes.number("scale", 1.0));
    p_.offset = static_cast<float>(call.attributes.number("offset", 0.0));
    p_.plain = p_.scale == 1.f && p_.offset == 0.f;
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    CastParameters p = p_;
    p.x = arguments.inputs[0];
    p.y = arguments.outputs[0];
    launchTasks(device, "cast", castKernel, p.count, p);
  }

 private:
  CastParameters p_{};
};

}  // namespace

void registerElementwiseKernels(Registry& registry) {
  registry["unary"] = registry["unaryGradient"] = make<UnaryKernel>;
  registry["binary"] = make<BinaryKernel>;
  registry["select"] = make<Select>;
  registry["scaleShift"] = make<ScaleShift>;
  registry["dropout"] = make<Dropout>;
  registry["cast"] = make<Cast>;
}

}  // namespace sepconv::cuda
