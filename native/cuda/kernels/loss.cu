// softmax, softmaxCrossEntropy and their gradients: a warp per row of [rows, k], its lanes striding over the classes;
// sums are shuffled together in a fixed order. sigmoidCrossEntropy and its gradient: a thread per element. Losses are
// float32; softmax takes bfloat16 too. A label of k or more makes its row NaN, a negative one is ignored.
#include "../arch/sync.h"
#include "grid.cuh"
#include "tensor.cuh"

namespace sepconv::cuda {
namespace {

constexpr int warpsPerBlock = 4, rowThreads = 32 * warpsPerBlock;

__device__ __forceinline__ float sumOfWarp(float value) {
  ARCH_UNROLL
  for (int mask = 16; mask; mask /= 2) value += arch::shuffleXor(value, mask);
  return value;
}
__device__ __forceinline__ float largest(float a, float b) { return a != a || a > b ? a : b; }  // NaN wins
__device__ __forceinline__ float largestOfWarp(float value) {
  ARCH_UNROLL
  for (int mask = 16; mask; mask /= 2) value = largest(value, arch::shuffleXor(value, mask));
  return value;
}

struct RowParameters {
  AnyInput x, dy;             // logits; softmaxGradient: y and dy
  Input dloss, distribution;  // distribution[rows, k], or
  arch::Global<const int32_t> labels;
  AnyOutput y;
  int64_t rows;
  int classes;
  float smoothing;
};

struct Row {
  int64_t index, start;
  int lane;
  bool inside;
  __device__ __forceinline__ explicit Row(const RowParameters& p)
      : index(int64_t{arch::blockX()} * warpsPerBlock + arch::threadIndex() / 32),
        start(index * p.classes),
        lane(arch::threadIndex() % 32),
        inside(index < p.rows) {
    if (!inside) start = 0;
  }
};

// Largest element and sum of exp(x - largest).
struct Exponentials {
  float highest, sum;
};
__device__ __forceinline__ Exponentials exponentials(const RowParameters& p, const Row& row) {
  float highest = -INFINITY, sum = 0.f;
  ARCH_NO_UNROLL
  for (int c = row.lane; c < p.classes; c += 32) highest = largest(p.x.load(row.start + c)[0], highest);
  highest = largestOfWarp(highest);
  ARCH_NO_UNROLL
  for (int c = row.lane; c < p.classes; c += 32) sum += expf(p.x.load(row.start + c)[0] - highest);
  return {highest, sumOfWarp(sum)};
}

// The smoothed target of a class.
struct Target {
  bool ignored;
  int label;  // -1: a distribution
  float invalid;
  __device__ __forceinline__ Target(const RowParameters& p, const Row& row) : ignored(false), label(-1), invalid(0.f) {
    if (!p.labels.present()) return;
    label = p.labels.load(row.inside ? row.index : 0)[0];
    ignored = label < 0;
    if (label >= p.classes) invalid = NAN;
  }
  __device__ __forceinline__ float at(const RowParameters& p, const Row& row, int c) const {
    const float share = p.labels.present() ? (c == label ? 1.f : 0.f) : p.distribution.load(row.start + c)[0];
    return (1.f - p.smoothing) * share + p.smoothing / static_cast<float>(p.classes) + invalid;
  }
};

__global__ void __launch_bounds__(rowThreads) softmax(const __grid_constant__ RowParameters p) {
  arch::beginLaunch();
  const Row row(p);
  const Exponentials e = exponentials(p, row);
  if (!row.inside) return;
  ARCH_NO_UNROLL
  for (int c = row.lane; c < p.classes; c += 32)
    p.y.store<1>(row.start + c, {expf(p.x.load(row.start + c)[0] - e.highest) / e.sum});
}

__global__ void __launch_bounds__(rowThreads) softmaxGradient(const __grid_constant__ RowParameters p) {
  arch::beginLaunch();
  const Row row(p);
  float sum = 0.f;
  ARCH_NO_UNROLL
  for (int c = row.lane; c < p.classes; c += 32)
    sum = arch::fma(p.dy.load(row.start + c)[0], p.x.load(row.start + c)[0], sum);
  sum = sumOfWarp(sum);
  if (!row.inside) return;
  ARCH_NO_UNROLL
  for (int c = row.lane; c < p.classes; c += 32)
    p.y.store<1>(row.start + c, {p.x.load(row.start + c)[0] * (p.dy.load(row.start + c)[0] - sum)});
}

__global__ void __launch_bounds__(rowThreads) softmaxCrossEntropy(const __grid_constant__ RowParameters p) {
  arch::beginLaunch();
  const Row row(p);
  const Exponentials e = exponentials(p, row);
  const Target target(p, row);
  // total * (highest + log sum) - sum of q * logit, as a sum of q * (highest - logit): no large numbers are subtracted.
  float loss = 0.f, total = 0.f;
  ARCH_NO_UNROLL
  for (int c = row.lane; c < p.classes; c += 32) {
    const float q = target.at(p, row, c);
    if (q != 0.f) loss = arch::fma(q, e.highest - p.x.load(row.start + c)[0], loss);  // a masked class has no share
    total += q;
  }
  loss = sumOfWarp(loss);
  total = sumOfWarp(total);
  if (row.inside && row.lane == 0)
    p.y.store<1>(row.index, {target.ignored ? 0.f : arch::fma(total, logf(e.sum), loss)});
}

__global__ void __launch_bounds__(rowThreads) softmaxCrossEntropyGradient(const __grid_constant__ RowParameters p) {
  arch::beginLaunch();
  const Row row(p);
  const Exponentials e = exponentials(p, row);
  const Target target(p, row);
  float total = 0.f;
  ARCH_NO_UNROLL
  for (int c = row.lane; c < p.classes; c += 32) total += target.at(p, row, c);
  total = sumOfWarp(total);
  if (!row.inside) return;
  const float dloss = p.dloss.load(row.index)[0];
  ARCH_NO_UNROLL
  for (int c = row.lane; c < p.classes; c += 32) {
    const float share = expf(p.x.load(row.start + c)[0] - e.highest) / e.sum;
    p.y.store<1>(row.start + c, {target.ignored ? 0.f : dloss * (total * share - target.at(p, row, c))});
  }
}

enum class RowOp : uint8_t { softmax, softmaxGradient, crossEntropy, crossEntropyGradient };

template <RowOp OP>
class RowKernel final : public Kernel {
 public:
  explicit RowKernel(const CallDescription& call) {
    const size_t at = OP == RowOp::crossEntropyGradient ? 1 : 0;  // of x
    if (OP == RowOp::softmax || OP == RowOp::softmaxGradient) {
      x_ = requireFloating(call, 0, "x", 0);
      if (OP == RowOp::softmaxGradient) {
        requireFloating(call, 1, "y", 0);
        requireLike(call, 1, "y", x_);
      }
      requireOutputLike(call, 0, x_);
    } else {
      x_ = requireInput(call, at, "logits", 2);
      if (!call.has(at + 1)) refuse(call, "input 'labels' is missing");
      integers_ = call.input(at + 1).dtype == DType::int32;
      requireInput(call, at + 1, "labels", integers_ ? 1 : 2, call.input(at + 1).dtype);
      requireLike(call, at + 1, "labels", integers_ ? TensorType{DType::int32, {x_.dim(0)}} : x_);
      smoothing_ = static_cast<float>(call.attributes.number("labelSmoothing", 0.0));
      if (OP == RowOp::crossEntropyGradient) {
        requireInput(call, 0, "dloss", 1);
        requireShape(call, 0, "dloss", {x_.dim(0)});
        requireOutputLike(call, 0, x_);
      } else {
        requireOutput(call, 0, {x_.dim(0)});
      }
    }
    if (x_.rank() < 1) refuse(call, "x must have rank 1 or more");
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const int64_t n = x_.elements(), rows = x_.rows();
    const size_t at = OP == RowOp::crossEntropyGradient ? 1 : 0;
    RowParameters p{};
    p.rows = rows;
    p.classes = static_cast<int>(x_.dim(-1));
    p.smoothing = smoothing_;
    p.x = view(arguments.inputs[OP == RowOp::softmaxGradient ? 1 : at], n, x_.dtype);
    p.y = view(arguments.outputs[0], OP == RowOp::crossEntropy ? rows : n, x_.dtype);
    if (OP == RowOp::softmaxGradient) p.dy = view(arguments.inputs[0], n, x_.dtype);
    if (OP == RowOp::crossEntropyGradient) p.dloss = view(arguments.input(0), rows);
    if (OP == RowOp::crossEntropy || OP == RowOp::crossEntropyGradient) {
      if (integers_)
        p.labels = {arguments.input<int32_t>(at + 1), rows};
      else
        p.distribution = view(arguments.input(at + 1), n);
    }
    void (*const kernels[])(RowParameters) = {softmax, softmaxGradient, softmaxCrossEntropy,
                                              softmaxCrossEntropyGradient};
    constexpr const char* names[] = {"softmax", "softmaxGradient", "softmaxCrossEntropy",
                                     "softmaxCrossEntropyGradient"};
    constexpr int op = static_cast<int>(OP);
    arch::launch(device, names[op], kernels[op],
                 {static_cast<uint32_t>((rows + warpsPerBlock - 1) / warpsPerBlock), 1, 1}, rowThreads, 0, p);
  }

 private:
  TensorType x_;
  bool integers_ = false;
  float smoothing_ = 0;
};

struct SigmoidParameters {
  Input dloss, logits, targets;  // dloss absent: the loss itself
  Output y;
  float smoothing;
};

__global__ void __launch_bounds__(gridThreads) sigmoidCrossEntropy(const __grid_constant__ SigmoidParameters p) {
  arch::beginLaunch();
  const int64_t i = taskIndex();
  if (i >= p.y.count) return;
  const float l = p.logits.load(i)[0];
  const float t = (1.f - p.smoothing) * p.targets.load(i)[0] + p.smoothing * 0.5f;
  if (p.dloss.present())
    p.y.store<1>(i, {p.dloss.load(i)[0] * (1.f / (1.f + expf(-l)) - t)});
  else
    p.y.store<1>(i, {largest(l, 0.f) - l * t + log1pf(expf(-fabsf(l)))});
}

class Sigmoid final : public Kernel {
 public:
  explicit Sigmoid(const CallDescription& call)
      : gradient_(call.kernel == "sigmoidCrossEntropyGradient"),
        smoothing_(static_cast<float>(call.attributes.number("labelSmoothing", 0.0))) {
    const size_t inputs = gradient_ ? 3 : 2;
    const TensorType& type = requireInput(call, 0, "logits", 0);
    for (size_t i = 1; i < inputs; ++i) {
      requireInput(call, i, "logits and targets", 0);
      requireLike(call, i, "logits and targets", type);
    }
    requireOutputLike(call, 0, type);
    elements_ = type.elements();
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const size_t at = gradient_ ? 1 : 0;
    const SigmoidParameters p{view(gradient_ ? arguments.input(0) : nullptr, elements_),
                              view(arguments.input(at), elements_), view(arguments.input(at + 1), elements_),
                              view(arguments.output(), elements_), smoothing_};
    launchTasks(device, "sigmoidCrossEntropy", sigmoidCrossEntropy, elements_, p);
  }

 private:
  const bool gradient_;
  const float smoothing_;
  int64_t elements_;
};

}  // namespace

void registerLossKernels(Registry& registry) {
  registry["softmax"] = make<RowKernel<RowOp::softmax>>;
  registry["softmaxGradient"] = make<RowKernel<RowOp::softmaxGradient>>;
  registry["softmaxCrossEntropy"] = make<RowKernel<RowOp::crossEntropy>>;
  registry["softmaxCrossEntropyGradient"] = make<RowKernel<RowOp::crossEntropyGradient>>;
  registry["sigmoidCrossEntropy"] = registry["sigmoidCrossEntropyGradient"] = make<Sigmoid>;
}

}  // namespace sepconv::cuda
