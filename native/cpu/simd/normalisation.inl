// Rows outside, channels inside: every array is walked in memory order, and the compiler vectorises the channels.
#include "activation.inl"

static void normalisationMoments(const float* x, ptrdiff_t rows, ptrdiff_t c, float* mean, float* m2) {
  for (ptrdiff_t j = 0; j < c; ++j) mean[j] = m2[j] = 0;
  for (ptrdiff_t r = 0; r < rows; ++r)
    for (ptrdiff_t j = 0; j < c; ++j) mean[j] += x[r * c + j];
  const float share = 1.0f / static_cast<float>(rows);
  for (ptrdiff_t j = 0; j < c; ++j) mean[j] *= share;
  for (ptrdiff_t r = 0; r < rows; ++r)
    for (ptrdiff_t j = 0; j < c; ++j) {
      const float deviation = x[r * c + j] - mean[j];
      m2[j] += deviation * deviation;
    }
}

static void normalisationScaleShift(const float* x, const float* scale, const float* shift, const float* residual,
                                    int activation, ptrdiff_t rows, ptrdiff_t c, float* y) {
  const auto at = [&](ptrdiff_t r, ptrdiff_t j, auto get) {
    Vector v = get(x + r * c + j);
    if (scale) v = v * get(scale + j);
    if (shift) v = v + get(shift + j);
    if (residual) v = v + get(residual + r * c + j);
    return activate(v, activation);
  };
  const ptrdiff_t whole = c - c % kWidth;
  const int rest = static_cast<int>(c - whole);
  for (ptrdiff_t r = 0; r < rows; ++r) {
    for (ptrdiff_t j = 0; j < whole; j += kWidth)
      store(y + r * c + j, at(r, j, [](const float* p) { return load(p); }));
    if (rest)
      storePartial(y + r * c + whole, at(r, whole, [rest](const float* p) { return loadPartial(p, rest); }), rest);
  }
}

static void normalisationGradientSums(const float* dy, const float* x, const float* mean, ptrdiff_t rows, ptrdiff_t c,
                                      float* sum, float* product) {
  for (ptrdiff_t j = 0; j < c; ++j) sum[j] = product[j] = 0;
  for (ptrdiff_t r = 0; r < rows; ++r)
    for (ptrdiff_t j = 0; j < c; ++j) {
      const float g = dy[r * c + j];
      sum[j] += g;
      product[j] += g * (x[r * c + j] - mean[j]);
    }
}

static void normalisationGradientApply(const float* dy, const float* x, const float* mean, const float* a,
                                       const float* b, const float* d, ptrdiff_t rows, ptrdiff_t c, float* dx) {
  for (ptrdiff_t r = 0; r < rows; ++r)
    for (ptrdiff_t j = 0; j < c; ++j) dx[r * c + j] = a[j] * dy[r * c + j] + (b[j] * (x[r * c + j] - mean[j]) + d[j]);
}

static const NormalisationTable normalisationTable = {normalisationMoments, normalisationScaleShift,
                                                      normalisationGradientSums, normalisationGradientApply};
