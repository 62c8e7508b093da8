// One step of an optimizer over contiguous floats, [n] each. Outputs may be the very memory of the inputs that they
// update (never a shifted overlap). Formulas: src/ops/optimizerUpdate.ts.
#pragma once
#include <cstdint>

namespace sepconv::cpu {

struct SgdCoefficients {
  float rate, momentum, scale, weightDecay;
  bool nesterov;
};

struct RmspropCoefficients {
  float rate, scale, weightDecay, decay, momentum, epsilon;
  bool inside;  // epsilon under the root and rate inside the velocity: TensorFlow and Keras; else PyTorch
};

struct AdamCoefficients {
  float scale, weightDecay, beta1, beta2, epsilon;
  float correction1, correction2;  // 1 / (1 - beta^t)
};

struct OptimizerTable {
  void (*sgd)(const float* parameter, const float* velocity, const float* gradient, float* newParameter,
              float* newVelocity, int64_t n, const SgdCoefficients& coefficients);
  void (*rmsprop)(const float* parameter, const float* meanSquare, const float* velocity, const float* gradient,
                  float* newParameter, float* newMeanSquare, float* newVelocity, int64_t n,
                  const RmspropCoefficients& coefficients);
  void (*adamMoments)(const float* mean, const float* square, const float* gradient, float* newMean, float* newSquare,
                      int64_t n, const AdamCoefficients& coefficients);
  // Sum of squares of the direction, in blocks of 512 floats, then in float64.
  double (*adamDirectionSquares)(const float* parameter, const float* mean, const float* square, int64_t n,
                                 const AdamCoefficients& coefficients);
  // parameter' = parameter - rate * direction
  void (*adamStep)(const float* parameter, const float* mean, const float* square, float* newParameter, float rate,
                   int64_t n, const AdamCoefficients& coefficients);
};

}  // namespace sepconv::cpu
