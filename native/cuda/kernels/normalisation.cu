// batchNormCoefficients: a thread per channel. scaleShift: one pass over memory. batchNormGradient(dy, x, mean,
// variance, gamma?) -> dx, dgamma, dbeta in three launches: sums over chunks of rows (32 channels and eight interleaved
// runs per block), the chunks added in a fixed tree by a warp per channel, then dx = scale * dy + slope * (x - mean) +
// offset with three numbers per channel. The sums are taken of dy and dy * (x - mean), so that nothing cancels.
#include "../arch/sync.h"
#include "fused.cuh"
#include "grid.cuh"
#include "statistics.cuh"

namespace sepconv::cuda {
namespace {

struct CoefficientsParameters {
  Input mean, variance, gamma, beta;
  Output scale, shift;
  float epsilon;
};

__global__ void __launch_bounds__(gridThreads) coefficients(const __grid_constant__ CoefficientsParameters p) {
  arch::beginLaunch();
  const int64_t c = taskIndex();
  if (c >= p.scale.count) return;
  const float scale = (p.gamma.present() ? p.gamma.load(c)[0] : 1.f) / sqrtf(p.variance.load(c)[0] + p.epsilon);
  p.scale.store<1>(c, {scale});
  p.shift.store<1>(c, {(p.beta.present() ? p.beta.load(c)[0] : 0.f) - p.mean.load(c)[0] * scale});
}

class Coefficients final : public Kernel {
 public:
  explicit Coefficients(const CallDescription& call) : epsilon_(static_cast<float>(call.attributes.number("epsilon"))) {
    channels_ = requireInput(call, 0, "mean", 1).elements();
    requireInput(call, 1, "variance", 1);
    requireShape(call, 1, "variance", {channels_});
    requireShape(call, 2, "gamma", {channels_});
    requireShape(call, 3, "beta", {channels_});
    requireOutput(call, 0, {channels_});
    requireOutput(call, 1, {channels_});
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const CoefficientsParameters p{view(arguments.input(0), channels_),
                                   view(arguments.input(1), channels_),
                                   view(arguments.input(2), channels_),
                                   view(arguments.input(3), channels_),
                                   view(arguments.output(0), channels_),
                                   view(arguments.output(1), channels_),
                                   epsilon_};
    launchTasks(device, "batchNormCoefficients", coefficients, channels_, p);
  }

 private:
  int64_t channels_;
  const float epsilon_;
};

struct ScaleShiftParameters {
  AnyInput x;
  AnyOutput y;
  Epilogue epilogue;
  int channels;
};

template <int VECTOR>
__global__ void __launch_bounds__(gridThreads) scaleShiftKernel(const __grid_constant__ ScaleShiftParameters p) {
  arch::beginLaunch();
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

constexpr int runs = 8, sumThreads = 32 * runs;

struct SumParameters {
  AnyInput dy, x;
  Input mean, variance;
  Output partial;  // [chunk][sum of dy, of dy * xhat][c]
  int64_t rows;
  int channels, chunkRows;
  float epsilon;
};

__global__ void __launch_bounds__(sumThreads) gradientSums(const __grid_constant__ SumParameters p) {
  arch::beginLaunch();
  const int lane = arch::threadIndex() % 32, run = arch::threadIndex() / 32;
  const int channel = arch::blockY() * 32 + lane;
  const int64_t first = int64_t{arch::blockX()} * p.chunkRows;
  const int64_t end = first + p.chunkRows < p.rows ? first + p.chunkRows : p.rows;
  arch::SharedMemory memory;
  const auto shared = memory.array<float>(2 * sumThreads);
  float sum = 0.f, product = 0.f;
  if (channel < p.channels) {
    const float mean = p.mean.load(channel)[0], inverse = 1.f / sqrtf(p.variance.load(channel)[0] + p.epsilon);
    ARCH_NO_UNROLL
    for (int64_t row = first + run; row < end; row += runs) {
      const float dy = p.dy.load(row * p.channels + channel)[0];
      sum += dy;
      product = arch::fma(dy, (p.x.load(row * p.channels + channel)[0] - mean) * inverse, product);
    }
  }
  shared.store<1>(arch::threadIndex(), {sum});
  shared.store<1>(arch::threadIndex() + sumThreads, {product});
  arch::syncThreads();
  if (run || channel >= p.channels) return;
  ARCH_NO_UNROLL
  for (int other = 1; other < runs; ++other) {
    sum += shared.load(other * 32 + lane)[0];
    product += shared.load(other * 32 + lane + sumThreads)[0];
  }
  const int64_t to = int64_t{arch::blockX()} * 2 * p.channels + channel;
  p.partial.store<1>(to, {sum});
  p.partial.store<1>(to + p.channels, {product});
}

struct GradientMergeParameters {
  Input partial, mean, variance, gamma;
  Output dgamma, dbeta;
  Output coefficients;  // [scale, slope, offset][c]: dx = scale * dy + slope * (x - mean) + offset
  int64_t rows;
  int channels, chunks;
  float epsilon;
  Input product, sum;  // dgamma and dbeta, in place of `partial`
};

__device__ __forceinline__ void storeCoefficients(const GradientMergeParameters& p, int channel, float sum,
                                                  float product) {
  const float inverse = 1.f / sqrtf(p.variance.load(channel)[0] + p.epsilon);
  const float scale = (p.gamma.present() ? p.gamma.load(channel)[0] : 1.f) * inverse;
  const float share = 1.f / static_cast<float>(p.rows);
  const float slope = -scale * product * share * inverse;
  p.coefficients.store<1>(channel, {scale});
  p.coefficients.store<1>(p.channels + channel, {slope});
  p.coefficients.store<1>(int64_t{2} * p.channels + channel, {-scale * sum * share});
}

__global__ void __launch_bounds__(sumThreads) gradientMerge(const __grid_constant__ GradientMergeParameters p) {
  arch::beginLaunch();
  const int lane = arch::threadIndex() % 32;
  const int channel = arch::blockX() * runs + arch::threadIndex() / 32;
  float sum = 0.f, product = 0.f;
  if (channel < p.channels) {
    ARCH_NO_UNROLL
    for (int chunk = lane; chunk < p.chunks; chunk += 32) {
      const int64_t from = int64_t{chunk} * 2 * p.channels + channel;
      sum += p.partial.load(from)[0];
      product += p.partial.load(from + p.channels)[0];
    }
  }
  ARCH_UNROLL
  for (int mask = 16; mask; mask /= 2) {
    sum += arch::shuffleXor(sum, mask);
    product += arch::shuffleXor(product, mask);
  }
  if (lane || channel >= p.channels) return;
  p.dbeta.store<1>(channel, {sum});
  p.dgamma.store<1>(channel, {product});
  storeCoefficients(p, channel, sum, product);
}

// Where the sums were taken by the kernel that made dy (depthwise_gradients.cu).
__global__ void __launch_bounds__(gridThreads) gradientCoefficients(const __grid_constant__ GradientMergeParameters p) {
  arch::beginLaunch();
  const int channel = static_cast<int>(taskIndex());
  if (channel < p.channels) storeCoefficients(p, channel, p.sum.load(channel)[0], p.product.load(channel)[0]);
}

struct GradientParameters {
  AnyInput dy, x;
  Input coefficients, mean;
  AnyOutput dx;
  int channels;
};

template <int VECTOR>
__global__ void __launch_bounds__(gridThreads) gradientApply(const __grid_constant__ GradientParameters p) {
  arch::beginLaunch();
  const int64_t i = taskIndex() * VECTOR;
  if (i >= p.dx.count) return;
  const int c = static_cast<int>(i) % p.channels;
  const auto scale = p.coefficients.load<VECTOR>(c), slope = p.coefficients.load<VECTOR>(p.channels + c),
             offset = p.coefficients.load<VECTOR>(int64_t{2} * p.channels + c), mean = p.mean.load<VECTOR>(c);
  Floats<VECTOR> dx = p.dy.load<VECTOR>(i);
  const Floats<VECTOR> x = p.x.load<VECTOR>(i);
  ARCH_UNROLL
  for (int e = 0; e < VECTOR; ++e) dx[e] = arch::fma(scale[e], dx[e], arch::fma(slope[e], x[e] - mean[e], offset[e]));
  p.dx.store<VECTOR>(i, dx);
}

// dx, the first output, from dy and x, the first inputs, and three coefficients per channel.
void launchApply(DeviceInterface& device, const char* name, const Arguments& arguments, const TensorType& type,
                 const Input& mean, const float* coefficients) {
  const int64_t n = type.elements();
  const int channels = static_cast<int>(type.dim(-1));
  const GradientParameters p{view(arguments.inputs[0], n, type.dtype),  view(arguments.inputs[1], n, type.dtype),
                             view(coefficients, int64_t{3} * channels), mean,
                             view(arguments.outputs[0], n, type.dtype), channels};
  if (channels % 4 == 0)
    launchTasks(device, name, gradientApply<4>, n / 4, p);
  else
    launchTasks(device, name, gradientApply<1>, n, p);
}

class BatchNormGradient final : public Kernel {
 public:
  explicit BatchNormGradient(const CallDescription& call)
      : type_(requireFloating(call, 0, "dy", 0)), epsilon_(static_cast<float>(call.attributes.number("epsilon"))) {
    if (type_.rank() < 2) refuse(call, "dy must have rank 2 or more");
    requireFloating(call, 1, "x", 0);
    requireLike(call, 1, "x", type_);
    rows_ = type_.rows();
    channels_ = static_cast<int>(type_.dim(-1));
    if (channels_ > 32 * 65535) refuse(call, "more than 2097120 channels");
    requireInput(call, 2, "mean", 1);
    requireInput(call, 3, "variance", 1);
    for (size_t i = 2; i < 5; ++i) requireShape(call, i, "mean, variance and gamma", {channels_});
    requireOutputLike(call, 0, type_);
    requireOutput(call, 1, {channels_});
    requireOutput(call, 2, {channels_});
    chunkRows_ = static_cast<int>(statisticsChunkRows(rows_));
    chunks_ = static_cast<int>((rows_ + chunkRows_ - 1) / chunkRows_);
  }
  size_t workspaceBytes() const override { return (static_cast<size_t>(chunks_) * 2 + 3) * stride() * sizeof(float); }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const int64_t n = type_.elements(), partials = int64_t{chunks_} * 2 * channels_;
    auto* coefficients = static_cast<float*>(arguments.workspace);  // first: their vectors are aligned
    float* partial = coefficients + 3 * stride();
    const AnyInput dy = view(arguments.inputs[0], n, type_.dtype), x = view(arguments.inputs[1], n, type_.dtype);
    const Input mean = view(arguments.input(2), channels_), variance = view(arguments.input(3), channels_);
    arch::launch(device, "batchNormGradient (sums)", gradientSums,
                 {static_cast<uint32_t>(chunks_), static_cast<uint32_t>((channels_ + 31) / 32), 1}, sumThreads,
                 2 * sumThreads * sizeof(float),
                 SumParameters{dy, x, mean, variance, view(partial, partials), rows_, channels_, chunkRows_, epsilon_});
    arch::launch(device, "batchNormGradient (merge)", gradientMerge,
                 {static_cast<uint32_t>((channels_ + runs - 1) / runs), 1, 1}, sumThreads, 0,
                 GradientMergeParameters{view(static_cast<const float*>(partial), partials),
                                         mean,
                                         variance,
                                         view(arguments.input(4), channels_),
                                         view(arguments.output(1), channels_),
                                         view(arguments.output(2), channels_),
                                         view(coefficients, 3 * channels_),
                                         rows_,
                                         channels_,
                                         chunks_,
                                         epsilon_,
                                         {},
                                         {}});
    launchApply(device, "batchNormGradient", arguments, type_, mean, coefficients);
  }

 private:
  size_t stride() const { return static_cast<size_t>(channels_ + 3) / 4 * 4; }

  const TensorType type_;
  const float epsilon_;
  int64_t rows_;
  int channels_, chunkRows_, chunks_;
};

class BatchNormInputGradient final : public Kernel {
 public:
  explicit BatchNormInputGradient(const CallDescription& call)
      : type_(requireFloating(call, 0, "dy", 0)), epsilon_(static_cast<float>(call.attributes.number("epsilon"))) {
    if (type_.rank() < 2) refuse(call, "dy must have rank 2 or more");
    requireFloating(call, 1, "x", 0);
    requireLike(call, 1, "x", type_);
    channels_ = static_cast<int>(type_.dim(-1));
    constexpr const char* names[] = {"mean", "variance", "dgamma", "dbeta"};
    for (size_t i = 0; i < 4; ++i) {
      requireInput(call, 2 + i, names[i], 1);
      requireShape(call, 2 + i, names[i], {channels_});
    }
    requireShape(call, 6, "gamma", {channels_});
    requireOutputLike(call, 0, type_);
  }
  size_t workspaceBytes() const override { return size_t{3} * static_cast<size_t>(channels_) * sizeof(float); }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    auto* coefficients = static_cast<float*>(arguments.workspace);
    const Input mean = view(arguments.input(2), channels_);
    GradientMergeParameters first{};
    first.mean = mean;
    first.variance = view(arguments.input(3), channels_);
    first.product = view(arguments.input(4), channels_);
    first.sum = view(arguments.input(5), channels_);
    first.gamma = view(arguments.input(6), channels_);
    first.coefficients = view(coefficients, int64_t{3} * channels_);
    first.rows = type_.rows();
    first.channels = channels_;
    first.epsilon = epsilon_;
    launchTasks(device, "batchNormInputGradient (coefficients)", gradientCoefficients, channels_, first);
    launchApply(device, "batchNormInputGradient", arguments, type_, mean, coefficients);
  }

 private:
  const TensorType type_;
  const float epsilon_;
  int channels_;
};

}  // namespace

void registerNormalisationKernels(Registry& registry) {
  registry["batchNormCoefficients"] = make<Coefficients>;
  registry["scaleShift"] = make<ScaleShift>;
  registry["batchNormGradient"] = make<BatchNormGradient>;
  registry["batchNormInputGradient"] = make<BatchNormInputGradient>;
}

}  // namespace sepconv::cuda
