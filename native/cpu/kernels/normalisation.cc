// batchNormStatistics, batchNormCoefficients, scaleShift, batchNormGradient and its second half alone,
// batchNormInputGradient, over [rows, c]. Rows are cut into blocks of about 64 KB by shape alone; block results are
// combined in float64 in their order (Chan et al. 1979), so the bits do not depend on the number of threads.
// Activations are float32 or bfloat16. All are bound by memory: statistics read x once (its second pass hits the
// cache), the gradient reads x and dy twice and writes dx once.
#include <algorithm>
#include <cmath>

#include "../simd/table.h"
#include "checks.h"

namespace sepconv::cpu {
namespace {

constexpr int64_t kBlockFloats = 16384;

struct Blocks {
  int64_t rows, channels, rowsPerBlock, count;
  bool half;  // bfloat16
  explicit Blocks(const TensorType& x)
      : rows(x.rows()),
        channels(x.shape.empty() ? 1 : x.shape.back()),
        rowsPerBlock(std::clamp<int64_t>(kBlockFloats / channels, 1, 1024)),
        count((rows + rowsPerBlock - 1) / rowsPerBlock),
        half(x.dtype == DType::bfloat16) {}
  int64_t rowsOf(int64_t block) const { return std::min(rowsPerBlock, rows - block * rowsPerBlock); }
  int64_t start(int64_t block) const { return block * rowsPerBlock * channels; }
};

const TensorType& activations(const CallDescription& call, size_t input, const char* role) {
  if (!call.has(input)) fail(call, "ERR_SHAPE", std::string(role) + " is missing");
  const TensorType& type = call.input(input);
  expectDType(call, role, type, type.dtype == DType::bfloat16 ? DType::bfloat16 : DType::float32);
  return type;
}

void expectChannels(const CallDescription& call, size_t input, const char* role, int64_t channels) {
  if (call.has(input)) expectType(call, role, call.input(input), {DType::float32, {channels}});
}

// Outputs from `first` on hold one value per channel.
void expectChannelOutputs(const CallDescription& call, size_t first, int64_t channels) {
  for (size_t i = first; i < call.outputs.size(); ++i)
    expectType(call, ("output " + std::to_string(i)).c_str(), call.outputs[i], {DType::float32, {channels}});
}

class BatchNormStatistics : public Kernel {
 public:
  explicit BatchNormStatistics(const CallDescription& call) : blocks_(activations(call, 0, "x")) {
    expectOperands(call, 1, 2);
    expectChannelOutputs(call, 0, blocks_.channels);
  }
  size_t workspaceBytes() const override { return static_cast<size_t>(2 * blocks_.count * blocks_.channels) * 4; }
  void run(const Arguments& arguments) const override {
    auto* partial = static_cast<float*>(arguments.workspace);
    const int64_t c = blocks_.channels;
    arguments.pool.run(blocks_.count, [&](int64_t block, int) {
      const int64_t start = blocks_.start(block), rows = blocks_.rowsOf(block);
      float* mean = partial + 2 * block * c;
      if (blocks_.half)
        simd().bf16->columnMoments(arguments.input<uint16_t>(0) + start, c, rows, c, mean, mean + c);
      else
        simd().normalisation.moments(arguments.input(0) + start, rows, c, mean, mean + c);
    });
    forEachChunk(arguments.pool, c, 128, [&](int64_t begin, int64_t count) {
      for (int64_t j = begin; j < begin + count; ++j) {
        double mean = 0, m2 = 0, seen = 0;
        for (int64_t block = 0; block < blocks_.count; ++block) {
          const double n = static_cast<double>(blocks_.rowsOf(block));
          const double delta = partial[2 * block * c + j] - mean;
          mean += delta * n / (seen + n);
          m2 += partial[(2 * block + 1) * c + j] + delta * delta * seen * n / (seen + n);
          seen += n;
        }
        arguments.output(0)[j] = static_cast<float>(mean);
        arguments.output(1)[j] = static_cast<float>(m2 / seen);
      }
    });
  }

 private:
  Blocks blocks_;
};

class BatchNormCoefficients : public Kernel {
 public:
  explicit BatchNormCoefficients(const CallDescription& call) : epsilon_(call.attributes.number("epsilon")) {
    expectOperands(call, 2, 2);
    channels_ = call.input(0).elements();
    for (size_t i = 0; i < 4; ++i) expectChannels(call, i, "mean, variance, gamma or beta", channels_);
    expectChannelOutputs(call, 0, channels_);
  }
  void run(const Arguments& arguments) const override {
    const float *mean = arguments.input(0), *variance = arguments.input(1), *gamma = arguments.input(2),
                *beta = arguments.input(3);
    for (int64_t j = 0; j < channels_; ++j) {
      const double scale = (gamma ? gamma[j] : 1.0) / std::sqrt(variance[j] + epsilon_);
      arguments.output(0)[j] = static_cast<float>(scale);
      arguments.output(1)[j] = static_cast<float>((beta ? beta[j] : 0.0) - mean[j] * scale);
    }
  }

 private:
  int64_t channels_;
  double epsilon_;
};

class ScaleShift : public Kernel {
 public:
  explicit ScaleShift(const CallDescription& call)
      : blocks_(activations(call, 0, "x")), activation_(activation(call.attributes, "activation")) {
    expectOperands(call, 1, 1);
    expectType(call, "output", call.outputs[0], call.input(0));
    expectChannels(call, 1, "scale", blocks_.channels);
    expectChannels(call, 2, "shift", blocks_.channels);
    if (call.has(3)) expectType(call, "residual", call.input(3), call.input(0));
  }
  void run(const Arguments& arguments) const override {
    const float *scale = arguments.input(1), *shift = arguments.input(2);
    const auto at = [](auto* data, int64_t start) { return data ? data + start : nullptr; };
    arguments.pool.run(blocks_.count, [&](int64_t block, int) {
      const int64_t start = blocks_.start(block), rows = blocks_.rowsOf(block);
      if (blocks_.half)
        simd().bf16->scaleShift(arguments.input<uint16_t>(0) + start, scale, shift,
                                at(arguments.input<uint16_t>(3), start), static_cast<int>(activation_), rows,
                                blocks_.channels, arguments.output<uint16_t>() + start);
      else
        simd().normalisation.scaleShift(arguments.input(0) + start, scale, shift, at(arguments.input(3), start),
                                        static_cast<int>(activation_), rows, blocks_.channels,
                                        arguments.output() + start);
    });
  }

 private:
  Blocks blocks_;
  Activation activation_;
};

// dx = a * dy + b * (x - mean) + d, three values per channel: what the sums over dy and over dy * (x - mean) leave to
// do.
struct Coefficients {
  float *a, *b, *d;
  Coefficients(float* memory, int64_t channels) : a(memory), b(memory + channels), d(memory + 2 * channels) {}
  void set(int64_t channel, double scale, double inverse, double sum, double product, double rows) {
    a[channel] = static_cast<float>(scale);
    b[channel] = static_cast<float>(-scale * inverse * inverse * product / rows);
    d[channel] = static_cast<float>(-scale * sum / rows);
  }
};

// Of a call whose inputs begin with dy, x and mean.
void applyGradient(const Arguments& arguments, const Blocks& blocks, const Coefficients& by) {
  const float* mean = arguments.input(2);
  arguments.pool.run(blocks.count, [&](int64_t block, int) {
    const int64_t start = blocks.start(block), rows = blocks.rowsOf(block), c = blocks.channels;
    if (blocks.half)
      simd().bf16->gradientApply(arguments.input<uint16_t>(0) + start, arguments.input<uint16_t>(1) + start, mean, by.a,
                                 by.b, by.d, rows, c, arguments.output<uint16_t>() + start);
    else
      simd().normalisation.gradientApply(arguments.input(0) + start, arguments.input(1) + start, mean, by.a, by.b, by.d,
                                         rows, c, arguments.output() + start);
  });
}

class BatchNormGradient : public Kernel {
 public:
  explicit BatchNormGradient(const CallDescription& call)
      : blocks_(activations(call, 0, "dy")), epsilon_(call.attributes.number("epsilon")) {
    expectType(call, "x", activations(call, 1, "x"), call.input(0));
    for (size_t i = 2; i < 5; ++i) expectChannels(call, i, "mean, variance or gamma", blocks_.channels);
    expectOperands(call, 4, 3);
    expectType(call, "dx", call.outputs[0], call.input(0));
    expectChannelOutputs(call, 1, blocks_.channels);
  }
  // Partial sums of every block, then three coefficients per channel.
  size_t workspaceBytes() const override { return static_cast<size_t>((2 * blocks_.count + 3) * blocks_.channels) * 4; }
  void run(const Arguments& arguments) const override {
    const float *mean = arguments.input(2), *variance = arguments.input(3), *gamma = arguments.input(4);
    const int64_t c = blocks_.channels;
    auto* partial = static_cast<float*>(arguments.workspace);
    Coefficients coefficients(partial + 2 * blocks_.count * c, c);
    // From the last block to the first: the kernel before wrote dy upwards and left its end in L3, and the second pass
    // starts where this one stops.
    arguments.pool.run(blocks_.count, [&](int64_t task, int) {
      const int64_t block = blocks_.count - 1 - task, start = blocks_.start(block), rows = blocks_.rowsOf(block);
      float* sum = partial + 2 * block * c;
      if (blocks_.half)
        simd().bf16->gradientSums(arguments.input<uint16_t>(0) + start, arguments.input<uint16_t>(1) + start, mean,
                                  rows, c, sum, sum + c);
      else
        simd().normalisation.gradientSums(arguments.input(0) + start, arguments.input(1) + start, mean, rows, c, sum,
                                          sum + c);
    });
    forEachChunk(arguments.pool, c, 128, [&](int64_t begin, int64_t count) {
      for (int64_t j = begin; j < begin + count; ++j) {
        double sum = 0, product = 0;
        for (int64_t block = 0; block < blocks_.count; ++block) {
          sum += partial[2 * block * c + j];
          product += partial[(2 * block + 1) * c + j];
        }
        const double inverse = 1 / std::sqrt(variance[j] + epsilon_), scale = (gamma ? gamma[j] : 1.0) * inverse;
        arguments.output(1)[j] = static_cast<float>(product * inverse);
        arguments.output(2)[j] = static_cast<float>(sum);
        coefficients.set(j, scale, inverse, sum, product, static_cast<double>(blocks_.rows));
      }
    });
    applyGradient(arguments, blocks_, coefficients);
  }

 private:
  Blocks blocks_;
  double epsilon_;
};

class BatchNormInputGradient : public Kernel {
 public:
  explicit BatchNormInputGradient(const CallDescription& call)
      : blocks_(activations(call, 0, "dy")), epsilon_(call.attributes.number("epsilon")) {
    expectOperands(call, 6, 1);
    expectType(call, "x", activations(call, 1, "x"), call.input(0));
    for (size_t i = 2; i < 7; ++i) expectChannels(call, i, "mean, variance, dgamma, dbeta or gamma", blocks_.channels);
    expectType(call, "dx", call.outputs[0], call.input(0));
  }
  // Three coefficients per channel.
  size_t workspaceBytes() const override { return static_cast<size_t>(3 * blocks_.channels) * 4; }
  void run(const Arguments& arguments) const override {
    const float *variance = arguments.input(3), *dgamma = arguments.input(4), *dbeta = arguments.input(5),
                *gamma = arguments.input(6);
    const int64_t c = blocks_.channels;
    Coefficients coefficients(static_cast<float*>(arguments.workspace), c);
    for (int64_t j = 0; j < c; ++j) {
      const double inverse = 1 / std::sqrt(variance[j] + epsilon_), scale = (gamma ? gamma[j] : 1.0) * inverse;
      coefficients.set(j, scale, inverse, dbeta[j], dgamma[j] / inverse, static_cast<double>(blocks_.rows));
    }
    applyGradient(arguments, blocks_, coefficients);
  }

 private:
  Blocks blocks_;
  double epsilon_;
};

template <class K>
std::unique_ptr<Kernel> make(const CallDescription& call) {
  return std::make_unique<K>(call);
}

}  // namespace

void registerNormalisationKernels(Registry& registry) {
  registry["batchNormStatistics"] = make<BatchNormStatistics>;
  registry["batchNormCoefficients"] = make<BatchNormCoefficients>;
  registry["scaleShift"] = make<ScaleShift>;
  registry["batchNormGradient"] = make<BatchNormGradient>;
  registry["batchNormInputGradient"] = make<BatchNormInputGradient>;
}

}  // namespace sepconv::cpu
