// The loops behind optimizer.h, with explicit vectors since they run in place.
#include "loops.inl"

namespace elementwise {

template <bool nesterov>
inline void sgdLoop(const float* parameter, const float* velocity, const float* gradient, float* newParameter,
                    float* newVelocity, int64_t n, const SgdCoefficients& c) {
  const Vector rate = broadcast(c.rate), momentum = broadcast(c.momentum), scale = broadcast(c.scale),
               decay = broadcast(c.weightDecay);
  forEachVector(n, [=](int64_t i, int m) {
    const Vector p = read(parameter + i, m);
    const Vector g = read(gradient + i, m) * scale + decay * p;
    const Vector v = momentum * read(velocity + i, m) + g;
    write(newVelocity + i, v, m);
    write(newParameter + i, p - rate * (nesterov ? g + momentum * v : v), m);
  });
}
void sgd(const float* parameter, const float* velocity, const float* gradient, float* newParameter, float* newVelocity,
         int64_t n, const SgdCoefficients& coefficients) {
  if (coefficients.nesterov)
    sgdLoop<true>(parameter, velocity, gradient, newParameter, newVelocity, n, coefficients);
  else
    sgdLoop<false>(parameter, velocity, gradient, newParameter, newVelocity, n, coefficients);
}

template <bool inside>
inline void rmspropLoop(const float* parameter, const float* meanSquare, const float* velocity, const float* gradient,
                        float* newParameter, float* newMeanSquare, float* newVelocity, int64_t n,
                        const RmspropCoefficients& c) {
  const Vector rate = broadcast(c.rate), scale = broadcast(c.scale), decay = broadcast(c.weightDecay),
               kept = broadcast(c.decay), fresh = broadcast(1.0f - c.decay), momentum = broadcast(c.momentum),
               epsilon = broadcast(c.epsilon);
  forEachVector(n, [=](int64_t i, int m) {
    const Vector p = read(parameter + i, m);
    const Vector g = read(gradient + i, m) * scale + decay * p;
    const Vector s = kept * read(meanSquare + i, m) + fresh * (g * g);
    const Vector step = inside ? rate * g / squareRoot(s + epsilon) : g / (squareRoot(s) + epsilon);
    const Vector v = momentum * read(velocity + i, m) + step;
    write(newMeanSquare + i, s, m);
    write(newVelocity + i, v, m);
    write(newParameter + i, p - (inside ? v : rate * v), m);
  });
}
void rmsprop(const float* parameter, const float* meanSquare, const float* velocity, const float* gradient,
             float* newParameter, float* newMeanSquare, float* newVelocity, int64_t n, const RmspropCoefficients& c) {
  if (c.inside)
    rmspropLoop<true>(parameter, meanSquare, velocity, gradient, newParameter, newMeanSquare, newVelocity, n, c);
  else
    rmspropLoop<false>(parameter, meanSquare, velocity, gradient, newParameter, newMeanSquare, newVelocity, n, c);
}

void adamMoments(const float* mean, const float* square, const float* gradient, float* newMean, float* newSquare,
                 int64_t n, const AdamCoefficients& c) {
  const Vector scale = broadcast(c.scale), beta1 = broadcast(c.beta1), beta2 = broadcast(c.beta2),
               fresh1 = broadcast(1.0f - c.beta1), fresh2 = broadcast(1.0f - c.beta2);
  forEachVector(n, [=](int64_t i, int m) {
    const Vector g = read(gradient + i, m) * scale;
    write(newMean + i, beta1 * read(mean + i, m) + fresh1 * g, m);
    write(newSquare + i, beta2 * read(square + i, m) + fresh2 * (g * g), m);
  });
}

// The direction that AdamW and LAMB step against.
inline Vector adamDirection(Vector p, Vector mean, Vector square, const AdamCoefficients& c) {
  return mean * broadcast(c.correction1) / (squareRoot(square * broadcast(c.correction2)) + broadcast(c.epsilon)) +
         broadcast(c.weightDecay) * p;
}
double adamDirectionSquares(const float* parameter, const float* mean, const float* square, int64_t n,
                            const AdamCoefficients& c) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += 512) {
    Vector sum = {};
    const int64_t count = n - begin < 512 ? n - begin : 512;
    forEachVector(count, [&](int64_t i, int m) {
      const int64_t at = begin + i;
      const Vector d = adamDirection(read(parameter + at, m), read(mean + at, m), read(square + at, m), c);
      sum += d * d;
    });
    for (int i = 0; i < kWidth; ++i) total += sum[i];
  }
  return total;
}
void adamStep(const float* parameter, const float* mean, const float* square, float* newParameter, float rate,
              int64_t n, const AdamCoefficients& c) {
  const Vector r = broadcast(rate);
  forEachVector(n, [=](int64_t i, int m) {
    const Vector p = read(parameter + i, m);
    write(newParameter + i, p - r * adamDirection(p, read(mean + i, m), read(square + i, m), c), m);
  });
}

constexpr OptimizerTable kOptimizerTable = {sgd, rmsprop, adamMoments, adamDirectionSquares, adamStep};

}  // namespace elementwise

constexpr OptimizerTable optimizerTable = elementwise::kOptimizerTable;
