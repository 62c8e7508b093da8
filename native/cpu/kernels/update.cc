// allFinite, globalNorm, averageUpdate: one pass over many tensors of any sizes. Sums are float64 per piece, added in
// order.
#include "update.h"

#include <algorithm>
#include <cmath>

namespace sepconv::cpu {
namespace {

void checkScalarOutput(const CallDescription& call) {
  if (call.outputs.size() != 1 || call.outputs[0].elements() != 1)
    fail(call, "ERR_SHAPE", "expected one output of one value");
  expectDType(call, "output", call.outputs[0], DType::float32);
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
  registry["averageUpdate"] = make<AverageUpdate>;
}

}  // namespace sepconv::cpu
