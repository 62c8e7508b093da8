// Taps inside, channels in vectors: each output vector stays in a register while its window is read.
static inline Vector poolMaximum(Vector best, Vector x) {
  return x != x ? x : maximum(x, best);  // a NaN that is in comes to stay: maximum keeps `best` then
}

// V vectors side by side: a step waits for the one before, so one vector at a time would wait for latencies.
template <int V>
static inline void maximumOf(const float* const* taps, ptrdiff_t count, const float* residual, ptrdiff_t j, float* y) {
  Vector best[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) best[v] = load(taps[0] + j + v * kWidth);
  for (ptrdiff_t t = 1; t < count; ++t) {
    const float* x = taps[t] + j;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) best[v] = poolMaximum(best[v], load(x + v * kWidth));
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) store(y + j + v * kWidth, residual ? best[v] + load(residual + j + v * kWidth) : best[v]);
}

static void poolingMaximum(const float* const* taps, ptrdiff_t count, const float* residual, ptrdiff_t c, float* y) {
  ptrdiff_t j = 0;
  for (; j + 4 * kWidth <= c; j += 4 * kWidth) maximumOf<4>(taps, count, residual, j, y);
  for (; j + kWidth <= c; j += kWidth) maximumOf<1>(taps, count, residual, j, y);
  if (const int rest = static_cast<int>(c - j)) {
    Vector best = loadPartial(taps[0] + j, rest);
    for (ptrdiff_t t = 1; t < count; ++t) best = poolMaximum(best, loadPartial(taps[t] + j, rest));
    storePartial(y + j, residual ? best + loadPartial(residual + j, rest) : best, rest);
  }
}

static void poolingAverage(const float* const* taps, ptrdiff_t count, float factor, ptrdiff_t c, float* y) {
  ptrdiff_t j = 0;
  for (; j + kWidth <= c; j += kWidth) {
    Vector sum = {};
    for (ptrdiff_t t = 0; t < count; ++t) sum += load(taps[t] + j);
    store(y + j, sum * factor);
  }
  for (; j < c; ++j) {
    float sum = 0;
    for (ptrdiff_t t = 0; t < count; ++t) sum += taps[t][j];
    y[j] = sum * factor;
  }
}

static void poolingAccumulate(const float* x, ptrdiff_t c, float factor, float* y) {
  for (ptrdiff_t j = 0; j < c; ++j) y[j] += x[j] * factor;
}

// The maximum first, then the first tap that equals it: a chain of compares and selects would carry the place along.
// kCount: the number of taps where it is known, so that they stay in registers; 0 elsewhere.
template <int kCount, bool kPartial>
static inline void maximumGradientAt(const float* const* taps, float* const* targets, ptrdiff_t taken, Vector gradient,
                                     ptrdiff_t j, int n) {
  const ptrdiff_t count = kCount ? kCount : taken;
  const auto fetch = [=](const float* p) { return kPartial ? loadPartial(p, n) : load(p); };
  Vector best = fetch(taps[0] + j);
  SEPCONV_UNROLL(9)
  for (ptrdiff_t t = 1; t < count; ++t) best = poolMaximum(best, fetch(taps[t] + j));
  const VectorInt undefined = best != best;
  SEPCONV_UNROLL(9)
  for (ptrdiff_t t = 0; t < count; ++t) {
    const Vector x = fetch(taps[t] + j);
    const VectorInt here = (x == best) | (undefined & (x != x));
    if (targets[t]) {
      const Vector sum = fetch(targets[t] + j) + (here ? gradient : Vector{});
      if (kPartial)
        storePartial(targets[t] + j, sum, n);
      else
        store(targets[t] + j, sum);
    }
    gradient = here ? Vector{} : gradient;
  }
}

static void poolingMaximumGradient(const float* const* taps, float* const* targets, ptrdiff_t count,
                                   const float* gradient, ptrdiff_t c) {
  if (!count) return;
  ptrdiff_t j = 0;
  if (count == 9)
    for (; j + kWidth <= c; j += kWidth) maximumGradientAt<9, false>(taps, targets, 9, load(gradient + j), j, kWidth);
  for (; j + kWidth <= c; j += kWidth) maximumGradientAt<0, false>(taps, targets, count, load(gradient + j), j, kWidth);
  if (const int rest = static_cast<int>(c - j))
    maximumGradientAt<0, true>(taps, targets, count, loadPartial(gradient + j, rest), j, rest);
}

static const PoolingTable poolingTable = {poolingMaximum, poolingAverage, poolingAccumulate, poolingMaximumGradient};
