// reduce: sum, mean, max or min over any axes. Adjacent axes that are both kept or both reduced merge; outputs are cut
// into tasks by shape. Sums are float64. Where the innermost axis is kept (global pooling, sums over rows) whole rows
// are added at a time; a reduction of many rows to few outputs is split into row blocks whose partial results are
// combined in order.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../simd/table.h"
#include "checks.h"

namespace sepconv::cpu {
namespace {

enum class Reduction { sum, mean, max, min };

inline double combine(Reduction reduction, double a, double b) {
  switch (reduction) {
    case Reduction::max:
      return b > a || b != b ? b : a;
    case Reduction::min:
      return b < a || b != b ? b : a;
    default:
      return a + b;
  }
}

class Reduce : public Kernel {
 public:
  explicit Reduce(const CallDescription& call) {
    expectOperands(call, 1, 1);
    expectDType(call, "x", call.input(0), DType::float32);
    const std::string name = call.attributes.text("function");
    if (name == "sum")
      reduction_ = Reduction::sum;
    else if (name == "mean")
      reduction_ = Reduction::mean;
    else if (name == "max")
      reduction_ = Reduction::max;
    else if (name == "min")
      reduction_ = Reduction::min;
    else
      fail(call, "ERR_ARGUMENT", "function must be sum, mean, max or min, got '" + name + "'");
    const auto& shape = call.input(0).shape;
    const auto axes = call.attributes.integers("axes");
    TensorType result{DType::float32, {}};
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      const bool reduced = std::find(axes.begin(), axes.end(), static_cast<int64_t>(axis)) != axes.end();
      if (!reduced)
        result.shape.push_back(shape[axis]);
      else if (call.attributes.flag("keepDims"))
        result.shape.push_back(1);
      if (!sizes_.empty() && reduced_.back() == reduced)
        sizes_.back() *= shape[axis];
      else
        sizes_.push_back(shape[axis]), reduced_.push_back(reduced);
    }
    expectType(call, "output", call.outputs[0], result);
    if (sizes_.empty()) sizes_.push_back(1), reduced_.push_back(false);
    // The last kept run of elements is `inner_` long; everything kept before it is `outer_`.
    inner_ = reduced_.back() ? 1 : sizes_.back();
    const size_t end = sizes_.size() - (reduced_.back() ? 0 : 1);
    int64_t stride = inner_;
    for (size_t i = end; i-- > 0;) {
      (reduced_[i] ? foldSizes_ : keepSizes_).push_back(sizes_[i]);
      (reduced_[i] ? foldStrides_ : keepStrides_).push_back(stride);
      stride *= sizes_[i];
    }
    for (int64_t size : keepSizes_) outer_ *= size;
    for (int64_t size : foldSizes_) folds_ *= size;
    foldsPerBlock_ = std::clamp<int64_t>(32768 / inner_, 1, std::max<int64_t>(folds_, 1));
    blocks_ = (folds_ + foldsPerBlock_ - 1) / foldsPerBlock_;
    factor_ = reduction_ == Reduction::mean ? 1.0 / static_cast<double>(folds_) : 1.0;
  }

  size_t workspaceBytes() const override { return static_cast<size_t>(outer_ * blocks_ * inner_) * sizeof(double); }

  void run(const Arguments& arguments) const override {
    const float* x = arguments.input(0);
    auto* partial = static_cast<double*>(arguments.workspace);
    arguments.pool.run(outer_ * blocks_, [&](int64_t task, int) {
      const int64_t base = offset(task / blocks_, keepSizes_, keepStrides_);
      const int64_t first = task % blocks_ * foldsPerBlock_, last = std::min(first + foldsPerBlock_, folds_);
      double* sums = partial + task * inner_;
      for (int64_t k = 0; k < inner_; ++k) sums[k] = start();
      for (int64_t fold = first; fold < last; ++fold) {
        const float* row = x + base + offset(fold, foldSizes_, foldStrides_);
        if (reduction_ == Reduction::sum || reduction_ == Reduction::mean)
          for (int64_t k = 0; k < inner_; ++k) sums[k] += row[k];
        else
          for (int64_t k = 0; k < inner_; ++k) sums[k] = combine(reduction_, sums[k], row[k]);
      }
    });
    forEachChunk(arguments.pool, outer_ * inner_, 4096, [&](int64_t begin, int64_t count) {
      for (int64_t i = begin; i < begin + count; ++i) {
        double result = start();
        for (int64_t block = 0; block < blocks_; ++block)
          result = combine(reduction_, result, partial[(i / inner_ * blocks_ + block) * inner_ + i % inner_]);
        arguments.output()[i] = static_cast<float>(result * factor_);
      }
    });
  }

 private:
  double start() const {
    if (reduction_ == Reduction::max) return -std::numeric_limits<double>::infinity();
    if (reduction_ == Reduction::min) return std::numeric_limits<double>::infinity();
    return 0;
  }
  // Sizes and strides stand innermost first.
  static int64_t offset(int64_t index, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
    int64_t result = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      result += index % sizes[i] * strides[i];
      index /= sizes[i];
    }
    return result;
  }

  Reduction reduction_ = Reduction::sum;
  std::vector<int64_t> sizes_, keepSizes_, keepStrides_, foldSizes_, foldStrides_;
  std::vector<bool> reduced_;
  int64_t inner_ = 1, outer_ = 1, folds_ = 1, foldsPerBlock_ = 1, blocks_ = 1;
  double factor_ = 1;
};

}  // namespace

void registerReductionKernels(Registry& registry) {
  registry["reduce"] = [](const CallDescription& call) -> std::unique_ptr<Kernel> {
    return std::make_unique<Reduce>(call);
  };
}

}  // namespace sepconv::cpu
