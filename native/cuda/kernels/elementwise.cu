// unary, unaryGradient, binary, select: one pass over memory, four elements per thread and
// access; what is left over at the end goes one by one. The function of unary and binary is known at run time: one
// branch for the whole grid, hidden behind the loads.
#include <array>

#include "fused.cuh"
#include "grid.cuh"

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
  arch::beginLaunch();
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
  arch::beginLaunch();
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
  arch::beginLaunch();
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

}  // namespace

void registerElementwiseKernels(Registry& registry) {
  registry["unary"] = registry["unaryGradient"] = make<UnaryKernel>;
  registry["binary"] = make<BinaryKernel>;
  registry["select"] = make<Select>;
}

}  // namespace sepconv::cuda
