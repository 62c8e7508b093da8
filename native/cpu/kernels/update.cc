// allFinite, globalNorm, sgdUpdate, averageUpdate: one pass over many tensors of any sizes. The tensors are cut into
// pieces of at most 16384 elements, and small pieces are packed into one task until it holds about as many; both follow
// from the shapes alone. Sums are float64 per piece, added in order.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../simd/table.h"
#include "checks.h"

namespace sepconv::cpu {
namespace {

constexpr int64_t kPiece = 16384;

struct Piece {
  size_t tensor;  // index of the group
  int64_t begin, count;
};

class Pieces {
 public:
  void add(size_t tensor, int64_t elements) {
    for (int64_t begin = 0; begin < elements; begin += kPiece) {
      const int64_t count = std::min(kPiece, elements - begin);
      if (tasks_.empty() || filled_ + count > kPiece) {
        tasks_.push_back(pieces_.size());
        filled_ = 0;
      }
      filled_ += count;
      pieces_.push_back({tensor, begin, count});
    }
  }
  size_t count() const { return pieces_.size(); }

  // body(piece, index of the piece)
  template <class Body>
  void run(ThreadPool& pool, const Body& body) const {
    pool.run(static_cast<int64_t>(tasks_.size()), [&](int64_t task, int) {
      const size_t first = tasks_[static_cast<size_t>(task)];
      const size_t end =
          static_cast<size_t>(task) + 1 < tasks_.size() ? tasks_[static_cast<size_t>(task) + 1] : pieces_.size();
      for (size_t i = first; i < end; ++i) body(pieces_[i], i);
    });
  }

 private:
  std::vector<Piece> pieces_;
  std::vector<size_t> tasks_;  // first piece of each task
  int64_t filled_ = 0;
};

// `leading` scalar inputs, then groups of `group` inputs of one shape each.
Pieces checkGroups(const CallDescription& call, size_t leading, size_t group) {
  for (size_t i = 0; i < call.inputs.size(); ++i) {
    const std::string role = "input " + std::to_string(i);
    if (!call.has(i)) fail(call, "ERR_SHAPE", role + " is missing");
    expectDType(call, role.c_str(), call.input(i), DType::float32);
    if (i < leading && call.input(i).elements() != 1)
      fail(call, "ERR_SHAPE", role + ": expected one value, got " + formatType(call.input(i)));
  }
  if (call.inputs.size() < leading || (call.inputs.size() - leading) % group)
    fail(call, "ERR_SHAPE",
         "expected " + std::to_string(leading) + " values and groups of " + std::to_string(group) + ", got " +
             std::to_string(call.inputs.size()) + " inputs");
  Pieces pieces;
  for (size_t i = leading; i < call.inputs.size(); i += group) {
    for (size_t j = 1; j < group; ++j)
      expectShape(call, ("input " + std::to_string(i + j)).c_str(), call.input(i + j), call.input(i).shape);
    pieces.add((i - leading) / group, call.input(i).elements());
  }
  return pieces;
}

void checkScalarOutput(const CallDescription& call) {
  if (call.outputs.size() != 1 || call.outputs[0].elements() != 1)
    fail(call, "ERR_SHAPE", "expected one output of one value");
  expectDType(call, "output", call.outputs[0], DType::float32);
}

// Output `i` updates input `leading + i / outputsPerGroup * group + i % outputsPerGroup`.
void checkUpdatedOutputs(const CallDescription& call, size_t leading, size_t group, size_t outputsPerGroup) {
  const size_t groups = (call.inputs.size() - leading) / group;
  if (call.outputs.size() != groups * outputsPerGroup)
    fail(call, "ERR_SHAPE",
         "expected " + std::to_string(groups * outputsPerGroup) + " outputs, got " +
             std::to_string(call.outputs.size()));
  for (size_t i = 0; i < call.outputs.size(); ++i)
    expectType(call, ("output " + std::to_string(i)).c_str(), call.outputs[i],
               call.input(leading + i / outputsPerGroup * group + i % outputsPerGroup));
}

std::vector<float> perGroup(const CallDescription& call, const char* name, size_t groups) {
  const std::vector<double> values = call.attributes.numbers(name);
  if (values.size() != groups)
    fail(call, "ERR_ARGUMENT",
         std::string(name) + ": expected " + std::to_string(groups) + " entries, got " + std::to_string(values.size()));
  return std::vector<float>(values.begin(), values.end());
}

void copyUnlessSame(const float* from, float* to, int64_t n) {
  if (from != to) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}

class AllFinite : public Kernel {
 public:
  explicit AllFinite(const CallDescription& call) : pieces_(checkGroups(call, 0, 1)) { checkScalarOutput(call); }
  size_t workspaceBytes() const override { return pieces_.count(); }
  void run(const Arguments& arguments) const override {
    const auto finite = simd().elementwise.allFinite;
    uint8_t* flags = static_cast<uint8_t*>(arguments.workspace);
    pieces_.run(arguments.pool, [=](const Piece& piece, size_t i) {
      flags[i] = finite(arguments.input(piece.tensor) + piece.begin, piece.count);
    });
    *arguments.output() =
        std::all_of(flags, flags + pieces_.count(), [](uint8_t flag) { return flag != 0; }) ? 1.0f : 0.0f;
  }

 private:
  Pieces pieces_;
};

class GlobalNorm : public Kernel {
 public:
  explicit GlobalNorm(const CallDescription& call) : pieces_(checkGroups(call, 0, 1)) { checkScalarOutput(call); }
  size_t workspaceBytes() const override { return pieces_.count() * sizeof(double); }
  void run(const Arguments& arguments) const override {
    const auto squares = simd().elementwise.sumOfSquares;
    double* sums = static_cast<double*>(arguments.workspace);
    pieces_.run(arguments.pool, [=](const Piece& piece, size_t i) {
      sums[i] = squares(arguments.input(piece.tensor) + piece.begin, piece.count);
    });
    double total = 0;
    for (size_t i = 0; i < pieces_.count(); ++i) total += sums[i];
    *arguments.output() = static_cast<float>(std::sqrt(total));
  }

 private:
  Pieces pieces_;
};

// rate[], flag[], scale[], ...(parameter, velocity, gradient) -> ...(parameter', velocity')
class SgdUpdate : public Kernel {
 public:
  explicit SgdUpdate(const CallDescription& call) : pieces_(checkGroups(call, 3, 3)) {
    checkUpdatedOutputs(call, 3, 3, 2);
    momentum_ = static_cast<float>(call.attributes.number("momentum", 0.0));
    nesterov_ = call.attributes.flag("nesterov");
    weightDecay_ = perGroup(call, "weightDecay", call.outputs.size() / 2);
  }
  void run(const Arguments& arguments) const override {
    const float rate = *arguments.input(0), scale = *arguments.input(2);
    const bool skip = *arguments.input(1) == 0.0f;
    const auto loop = simd().elementwise.sgd;
    pieces_.run(arguments.pool, [=](const Piece& piece, size_t) {
      const size_t input = 3 + 3 * piece.tensor, output = 2 * piece.tensor;
      const float *parameter = arguments.input(input) + piece.begin,
                  *velocity = arguments.input(input + 1) + piece.begin;
      float *newParameter = arguments.output(output) + piece.begin,
            *newVelocity = arguments.output(output + 1) + piece.begin;
      if (skip) {
        copyUnlessSame(parameter, newParameter, piece.count);
        copyUnlessSame(velocity, newVelocity, piece.count);
        return;
      }
      const SgdCoefficients coefficients = {rate, momentum_, scale, weightDecay_[piece.tensor], nesterov_};
      loop(parameter, velocity, arguments.input(input + 2) + piece.begin, newParameter, newVelocity, piece.count,
           coefficients);
    });
  }

 private:
  Pieces pieces_;
  float momentum_;
  bool nesterov_;
  std::vector<float> weightDecay_;
};

// decay[], flag[], ...(average, value) -> ...(average')
class AverageUpdate : public Kernel {
 public:
  explicit AverageUpdate(const CallDescription& call) : pieces_(checkGroups(call, 2, 2)) {
    checkUpdatedOutputs(call, 2, 2, 1);
    factor_ = perGroup(call, "factor", call.outputs.size());
  }
  void run(const Arguments& arguments) const override {
    const float decay = *arguments.input(0);
    const bool skip = *arguments.input(1) == 0.0f;
    const auto loop = simd().elementwise.affinePair;
    pieces_.run(arguments.pool, [=](const Piece& piece, size_t) {
      const size_t input = 2 + 2 * piece.tensor;
      const float* average = arguments.input(input) + piece.begin;
      float* updated = arguments.output(piece.tensor) + piece.begin;
      if (skip)
        copyUnlessSame(average, updated, piece.count);
      else
        loop(average, arguments.input(input + 1) + piece.begin, updated, decay, (1.0f - decay) * factor_[piece.tensor],
             0.0f, piece.count);
    });
  }

 private:
  Pieces pieces_;
  std::vector<float> factor_;
};

template <class K>
std::unique_ptr<Kernel> make(const CallDescription& call) {
  return std::make_unique<K>(call);
}

}  // namespace

void registerUpdateKernels(Registry& registry) {
  registry["allFinite"] = make<AllFinite>;
  registry["globalNorm"] = make<GlobalNorm>;
  registry["sgdUpdate"] = make<SgdUpdate>;
  registry["averageUpdate"] = make<AverageUpdate>;
}

}  // namespace sepconv::cpu
