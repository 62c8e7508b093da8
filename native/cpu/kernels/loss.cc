// softmax, softmaxCrossEntropy and sigmoidCrossEntropy with their gradients. Rows [rows, k] over the last axis; the
// largest logit is taken away before the exponential, sums are float64 over fixed blocks, and rows are dealt out in
// groups by shape alone. With q the smoothed target row and p = softmax(l): loss = sum_i q_i (log sum_j e^(l_j - m) -
// (l_i - m)), and the exact gradient is dloss * (p_i * sum(q) - q_i), which is p - q where the row of targets sums to
// one.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../simd/table.h"
#include "checks.h"

namespace sepconv::cpu {
namespace {

constexpr int64_t kChunk = 4096;  // exponentials per task, about 4 us

struct Rows {
  int64_t rows, size;
  explicit Rows(const TensorType& type) : rows(type.rows()), size(type.shape.empty() ? 1 : type.shape.back()) {}

  template <class Body>
  void forEach(ThreadPool& pool, const Body& body) const {
    forEachChunk(pool, rows, std::max<int64_t>(1, kChunk / size), [&](int64_t begin, int64_t n) {
      for (int64_t row = begin; row < begin + n; ++row) body(row);
    });
  }
};

float smoothing(const CallDescription& call) {
  const double s = call.attributes.number("labelSmoothing", 0.0);
  if (!(s >= 0 && s <= 1))
    fail(call, "ERR_ARGUMENT", "labelSmoothing: expected a number from 0 to 1, got " + std::to_string(s));
  return static_cast<float>(s);
}

class Softmax : public Kernel {
 public:
  explicit Softmax(const CallDescription& call) : shape_(call.input(0)) {}
  void run(const Arguments& arguments) const override {
    const ElementwiseTable& table = simd().elementwise;
    const int64_t k = shape_.size;
    shape_.forEach(arguments.pool, [&](int64_t row) {
      const float* x = arguments.input(0) + row * k;
      float* y = arguments.output() + row * k;
      const double sum = table.exponentials(x, table.largest(x, k), y, k);
      table.affine(y, y, static_cast<float>(1.0 / sum), 0.0f, k);
    });
  }

 private:
  Rows shape_;
};

std::unique_ptr<Kernel> makeSoftmax(const CallDescription& call) {
  expectOperands(call, 1, 1);
  expectDType(call, "x", call.input(0), DType::float32);
  expectType(call, "output", call.outputs[0], call.input(0));
  return std::make_unique<Softmax>(call);
}

class SoftmaxGradient : public Kernel {
 public:
  explicit SoftmaxGradient(const CallDescription& call) : shape_(call.input(0)) {}
  void run(const Arguments& arguments) const override {
    const ElementwiseTable& table = simd().elementwise;
    const int64_t k = shape_.size;
    shape_.forEach(arguments.pool, [&](int64_t row) {
      const float *dy = arguments.input(0) + row * k, *y = arguments.input(1) + row * k;
      table.softmaxGradient(dy, y, arguments.output() + row * k, static_cast<float>(table.shiftedDot(y, dy, 0.0f, k)),
                            k);
    });
  }

 private:
  Rows shape_;
};

std::unique_ptr<Kernel> makeSoftmaxGradient(const CallDescription& call) {
  expectOperands(call, 2, 1);
  expectDType(call, "dy", call.input(0), DType::float32);
  expectType(call, "y", call.input(1), call.input(0));
  expectType(call, "output", call.outputs[0], call.input(0));
  return std::make_unique<SoftmaxGradient>(call);
}

// Labels are int32[n] (negative: ignored; k or more: the row becomes NaN, since a run cannot throw) or float32[n, k].
class SoftmaxCrossEntropy : public Kernel {
 public:
  SoftmaxCrossEntropy(const CallDescription& call, const TensorType& logits, const TensorType& labels)
      : shape_(logits), indexed_(labels.dtype == DType::int32), smoothing_(smoothing(call)) {}

 protected:
  static constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  Rows shape_;
  bool indexed_;
  float smoothing_;
};

class SoftmaxCrossEntropyLoss : public SoftmaxCrossEntropy {
 public:
  using SoftmaxCrossEntropy::SoftmaxCrossEntropy;
  void run(const Arguments& arguments) const override {
    shape_.forEach(arguments.pool, [&](int64_t row) { arguments.output()[row] = loss(arguments, row); });
  }

 private:
  float loss(const Arguments& arguments, int64_t row) const {
    const ElementwiseTable& table = simd().elementwise;
    const int64_t k = shape_.size;
    const int32_t label = indexed_ ? arguments.input<int32_t>(1)[row] : 0;
    if (label < 0) return 0.0f;
    if (label >= k) return kNaN;
    const float* l = arguments.input(0) + row * k;
    const float largest = table.largest(l, k);
    const double logSum = std::log(table.exponentials(l, largest, nullptr, k)), s = smoothing_;
    // sum of q_i (l_i - m) and of q_i
    double dot, total = 1.0;
    if (indexed_) {
      dot = (1.0 - s) * (static_cast<double>(l[label]) - largest);
    } else {
      const float* q = arguments.input(1) + row * k;
      dot = (1.0 - s) * table.shiftedDot(q, l, largest, k);
      total = (1.0 - s) * table.shiftedSum(q, 0.0f, k) + s;
    }
    if (s > 0) dot += s / static_cast<double>(k) * table.shiftedSum(l, largest, k);
    return static_cast<float>(total * logSum - dot);
  }
};

class SoftmaxCrossEntropyGradient : public SoftmaxCrossEntropy {
 public:
  using SoftmaxCrossEntropy::SoftmaxCrossEntropy;
  void run(const Arguments& arguments) const override {
    const ElementwiseTable& table = simd().elementwise;
    const int64_t k = shape_.size;
    shape_.forEach(arguments.pool, [&](int64_t row) {
      const float dloss = arguments.input(0)[row];
      const float* l = arguments.input(1) + row * k;
      float* dl = arguments.output() + row * k;
      const int32_t label = indexed_ ? arguments.input<int32_t>(2)[row] : 0;
      if (label < 0 || label >= k) {
        std::fill(dl, dl + k, label < 0 ? 0.0f : kNaN);
        return;
      }
      const double sum = table.exponentials(l, table.largest(l, k), dl, k), keep = 1.0 - smoothing_;
      const float uniform = static_cast<float>(-dloss * smoothing_ / static_cast<double>(k));
      if (indexed_) {
        table.affine(dl, dl, static_cast<float>(dloss / sum), uniform, k);
        dl[label] -= static_cast<float>(dloss * keep);
      } else {
        const float* q = arguments.input(2) + row * k;
        const double total = keep * table.shiftedSum(q, 0.0f, k) + smoothing_;
        table.affinePair(dl, q, dl, static_cast<float>(dloss * total / sum), static_cast<float>(-dloss * keep), uniform,
                         k);
      }
    });
  }
};

void checkLabels(const CallDescription& call, const TensorType& logits, const TensorType& labels) {
  expectDType(call, "logits", logits, DType::float32);
  if (logits.shape.empty()) fail(call, "ERR_SHAPE", "logits: expected [n, k], got a scalar");
  if (labels.dtype == DType::int32)
    expectShape(call, "labels", labels, {logits.shape.begin(), logits.shape.end() - 1});
  else
    expectType(call, "labels", labels, logits);
}

std::unique_ptr<Kernel> makeSoftmaxCrossEntropy(const CallDescription& call) {
  expectOperands(call, 2, 1);
  const TensorType& logits = call.input(0);
  checkLabels(call, logits, call.input(1));
  expectType(call, "output", call.outputs[0], {DType::float32, {logits.shape.begin(), logits.shape.end() - 1}});
  return std::make_unique<SoftmaxCrossEntropyLoss>(call, logits, call.input(1));
}

std::unique_ptr<Kernel> makeSoftmaxCrossEntropyGradient(const CallDescription& call) {
  expectOperands(call, 3, 1);
  const TensorType& logits = call.input(1);
  checkLabels(call, logits, call.input(2));
  expectType(call, "dloss", call.input(0), {DType::float32, {logits.shape.begin(), logits.shape.end() - 1}});
  expectType(call, "output", call.outputs[0], logits);
  return std::make_unique<SoftmaxCrossEntropyGradient>(call, logits, call.input(2));
}

class SigmoidCrossEntropy : public Kernel {
 public:
  SigmoidCrossEntropy(const CallDescription& call, bool gradient)
      : gradient_(gradient),
        elements_(call.outputs[0].elements()),
        keep_(1.0f - smoothing(call)),
        add_(0.5f * smoothing(call)) {}
  void run(const Arguments& arguments) const override {
    const ElementwiseTable& table = simd().elementwise;
    const float *a = arguments.input(0), *b = arguments.input(1), *c = gradient_ ? arguments.input(2) : nullptr;
    float* y = arguments.output();
    forEachChunk(arguments.pool, elements_, kChunk, [&](int64_t begin, int64_t n) {
      if (gradient_)
        table.sigmoidCrossEntropyGradient(a + begin, b + begin, c + begin, y + begin, keep_, add_, n);
      else
        table.sigmoidCrossEntropy(a + begin, b + begin, y + begin, keep_, add_, n);
    });
  }

 private:
  bool gradient_;
  int64_t elements_;
  float keep_, add_;
};

std::unique_ptr<Kernel> makeSigmoid(const CallDescription& call, size_t inputs) {
  expectOperands(call, inputs, 1);
  expectDType(call, "input 0", call.input(0), DType::float32);
  for (size_t i = 1; i < inputs; ++i)
    expectType(call, i + 1 == inputs ? "targets" : "logits", call.input(i), call.input(0));
  expectType(call, "output", call.outputs[0], call.input(0));
  return std::make_unique<SigmoidCrossEntropy>(call, inputs == 3);
}

}  // namespace

void registerLossKernels(Registry& registry) {
  registry["softmax"] = makeSoftmax;
  registry["softmaxGradient"] = makeSoftmaxGradient;
  registry["softmaxCrossEntropy"] = makeSoftmaxCrossEntropy;
  registry["softmaxCrossEntropyGradient"] = makeSoftmaxCrossEntropyGradient;
  registry["sigmoidCrossEntropy"] = [](const CallDescription& call) { return makeSigmoid(call, 2); };
  registry["sigmoidCrossEntropyGradient"] = [](const CallDescription& call) { return makeSigmoid(call, 3); };
}

}  // namespace sepconv::cpu
