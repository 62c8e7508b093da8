// sgdUpdate, rmspropUpdate, adamUpdate: one step of an optimizer over all parameters in one call. Formulas and their
// sources: src/ops/optimizerUpdate.ts.
#include <cmath>

#include "update.h"

namespace sepconv::cpu {
namespace {

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
    const auto loop = simd().optimizer.sgd;
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

// rate[], flag[], scale[], ...(parameter, mean square, velocity, gradient) -> ...(parameter', mean square', velocity')
class RmspropUpdate : public Kernel {
 public:
  explicit RmspropUpdate(const CallDescription& call) : pieces_(checkGroups(call, 3, 4)) {
    checkUpdatedOutputs(call, 3, 4, 3);
    coefficients_.decay = static_cast<float>(call.attributes.number("decay", 0.9));
    coefficients_.momentum = static_cast<float>(call.attributes.number("momentum", 0.0));
    coefficients_.epsilon = static_cast<float>(call.attributes.number("epsilon", 0.0));
    coefficients_.inside = call.attributes.text("form", "tensorflow") != "pytorch";
    weightDecay_ = perGroup(call, "weightDecay", call.outputs.size() / 3);
  }
  void run(const Arguments& arguments) const override {
    RmspropCoefficients shared = coefficients_;
    shared.rate = *arguments.input(0);
    shared.scale = *arguments.input(2);
    const bool skip = *arguments.input(1) == 0.0f;
    const auto loop = simd().optimizer.rmsprop;
    pieces_.run(arguments.pool, [=](const Piece& piece, size_t) {
      const float* in[4];
      float* out[3];
      for (size_t i = 0; i < 4; ++i) in[i] = arguments.input(3 + 4 * piece.tensor + i) + piece.begin;
      for (size_t i = 0; i < 3; ++i) {
        out[i] = arguments.output(3 * piece.tensor + i) + piece.begin;
        if (skip) copyUnlessSame(in[i], out[i], piece.count);
      }
      if (skip) return;
      RmspropCoefficients coefficients = shared;
      coefficients.weightDecay = weightDecay_[piece.tensor];
      loop(in[0], in[1], in[2], in[3], out[0], out[1], out[2], piece.count, coefficients);
    });
  }

 private:
  Pieces pieces_;
  RmspropCoefficients coefficients_ = {};
  std::vector<float> weightDecay_;
};

// rate[], flag[], scale[], count[], ...(parameter, mean, square, gradient) -> count'[], ...(parameter', mean',
// square'). Groups with `trust` step by |parameter| / |direction| times the rate (LAMB): their norms are summed per
// piece in a first pass, in order, and the directions are computed again in the second, which is cheaper than keeping
// them.
class AdamUpdate : public Kernel {
 public:
  explicit AdamUpdate(const CallDescription& call) : pieces_(checkGroups(call, 4, 4)) {
    if (call.outputs.empty() || call.outputs[0].elements() != 1)
      fail(call, "ERR_SHAPE", "expected one value as the first output");
    checkUpdatedOutputs(call, 4, 4, 3, 1);
    beta1_ = call.attributes.number("beta1", 0.9);
    beta2_ = call.attributes.number("beta2", 0.999);
    epsilon_ = static_cast<float>(call.attributes.number("epsilon", 1e-8));
    const size_t groups = (call.outputs.size() - 1) / 3;
    weightDecay_ = perGroup(call, "weightDecay", groups);
    trust_ = perGroup(call, "trust", groups);
  }
  size_t workspaceBytes() const override { return 2 * pieces_.count() * sizeof(double); }
  void run(const Arguments& arguments) const override {
    const float count = *arguments.input(3);
    if (*arguments.input(1) == 0.0f) {
      pieces_.run(arguments.pool, [=](const Piece& piece, size_t) {
        for (size_t i = 0; i < 3; ++i)
          copyUnlessSame(arguments.input(4 + 4 * piece.tensor + i) + piece.begin,
                         arguments.output(1 + 3 * piece.tensor + i) + piece.begin, piece.count);
      });
      *arguments.output() = count;
      return;
    }
    AdamCoefficients shared = {};
    shared.scale = *arguments.input(2);
    shared.beta1 = static_cast<float>(beta1_);
    shared.beta2 = static_cast<float>(beta2_);
    shared.epsilon = epsilon_;
    shared.correction1 = static_cast<float>(1.0 / (1.0 - std::pow(beta1_, count + 1.0)));
    shared.correction2 = static_cast<float>(1.0 / (1.0 - std::pow(beta2_, count + 1.0)));
    const float rate = *arguments.input(0);
    const auto& table = simd().optimizer;
    const auto squares = simd().elementwise.sumOfSquares;
    double* sums = static_cast<double*>(arguments.workspace);
    pieces_.run(arguments.pool, [&](const Piece& piece, size_t i) {
      const Operands o = operands(arguments, piece);
      AdamCoefficients c = shared;
      c.weightDecay = weightDecay_[piece.tensor];
      table.adamMoments(o.mean, o.square, o.gradient, o.newMean, o.newSquare, piece.count, c);
      if (trust_[piece.tensor] == 0.0f) {
        table.adamStep(o.parameter, o.newMean, o.newSquare, o.newParameter, rate, piece.count, c);
      } else {
        sums[2 * i] = squares(o.parameter, piece.count);
        sums[2 * i + 1] = table.adamDirectionSquares(o.parameter, o.newMean, o.newSquare, piece.count, c);
      }
    });
    const std::vector<float> ratios = trustRatios(sums);
    pieces_.run(arguments.pool, [&](const Piece& piece, size_t) {
      if (trust_[piece.tensor] == 0.0f) return;
      const Operands o = operands(arguments, piece);
      AdamCoefficients c = shared;
      c.weightDecay = weightDecay_[piece.tensor];
      table.adamStep(o.parameter, o.newMean, o.newSquare, o.newParameter, rate * ratios[piece.tensor], piece.count, c);
    });
    *arguments.output() = count + 1.0f;
  }

 private:
  struct Operands {
    const float *parameter, *mean, *square, *gradient;
    float *newParameter, *newMean, *newSquare;
  };
  static Operands operands(const Arguments& arguments, const Piece& piece) {
    const auto in = [&](size_t i) { return arguments.input(4 + 4 * piece.tensor + i) + piece.begin; };
    const auto out = [&](size_t i) { return arguments.output(1 + 3 * piece.tensor + i) + piece.begin; };
    return {in(0), in(1), in(2), in(3), out(0), out(1), out(2)};
  }
  std::vector<float> trustRatios(const double* sums) const {
    std::vector<double> parameter(trust_.size()), direction(trust_.size());
    pieces_.each([&](const Piece& piece, size_t i) {
      if (trust_[piece.tensor] == 0.0f) return;
      parameter[piece.tensor] += sums[2 * i];
      direction[piece.tensor] += sums[2 * i + 1];
    });
    std::vector<float> ratios(trust_.size(), 1.0f);
    for (size_t i = 0; i < ratios.size(); ++i)
      if (parameter[i] > 0 && direction[i] > 0) ratios[i] = static_cast<float>(std::sqrt(parameter[i] / direction[i]));
    return ratios;
  }

  Pieces pieces_;
  double beta1_, beta2_;
  float epsilon_;
  std::vector<float> weightDecay_, trust_;
};

template <class K>
std::unique_ptr<Kernel> make(const CallDescription& call) {
  return std::make_unique<K>(call);
}

}  // namespace

void registerOptimizerKernels(Registry& registry) {
  registry["sgdUpdate"] = make<SgdUpdate>;
  registry["rmspropUpdate"] = make<RmspropUpdate>;
  registry["adamUpdate"] = make<AdamUpdate>;
}

}  // namespace sepconv::cpu
