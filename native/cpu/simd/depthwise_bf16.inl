// Depthwise convolution of one run of output pixels, as depthwise.inl does it in float32: a tile is up to kPixels
// neighbouring pixels of 2 * kWidth channels, and a kernel row's weights stay in registers while the input slides past.

enum {
#if SEPCONV_VECTOR_BYTES == 32
  kPixels = 4,  // 8 sums and 6 weights for 16 registers
#else
  kPixels = 8,
#endif
};
// Of the prologue; with kAffine and below no elu anywhere.
enum DepthwiseMode { kPlain, kRelu, kAffine, kAny };

inline DepthwiseMode modeOf(const Bf16DepthwiseOperands& o) {
  if (o.inputActivation == kActivationElu || o.activation == kActivationElu || o.gateActivation == kActivationElu)
    return kAny;
  if (o.inputScale || o.inputShift) return kAffine;
  return o.inputActivation == kActivationRelu ? kRelu : kPlain;
}

// Reads 2 * kWidth channels of an input pixel after the prologue; kWhole: all of them exist.
template <DepthwiseMode mode, bool kWhole>
struct DepthwiseReader {
  ptrdiff_t n;
  int activation;
  Pair scale, shift;
  Vector low;

  DepthwiseReader(const Bf16DepthwiseOperands& o, ptrdiff_t channel, ptrdiff_t count)
      : n(count), activation(o.inputActivation) {
    if (mode == kAffine || mode == kAny) {
      scale = loadPairOr(o.inputScale ? o.inputScale + channel : nullptr, n, 1);
      shift = loadPairOr(o.inputShift ? o.inputShift + channel : nullptr, n, 0);
      low = activation == kActivationRelu ? Vector{} : broadcast(-__builtin_inff());
    }
  }
  Pair operator()(const uint16_t* p) const {
    const Pair v = kWhole ? loadPair(p) : loadPair(p, n);
    if (mode == kPlain) return v;
    if (mode == kRelu) return {relu(v.even), relu(v.odd)};
    const Pair scaled = {v.even * scale.even + shift.even, v.odd * scale.odd + shift.odd};
    if (mode == kAffine) return {maximum(low, scaled.even), maximum(low, scaled.odd)};
    return activate(scaled, activation);
  }
};

struct DepthwiseTile {
  const uint16_t* x;  // pixel 0 of the first input row that is read, at the tile's first channel
  ptrdiff_t rows, rowDistance, pixelDistance;
  ptrdiff_t column, width;  // input column of tap 0 of output pixel 0; columns outside [0, width) are not read
  ptrdiff_t taps, tapStep, pixelStep;
  const uint16_t* filter;
  ptrdiff_t filterRow, filterTap;
  ptrdiff_t channels;  // from here to the end of the run
  const Bf16DepthwiseOperands* operands;
  ptrdiff_t channel;  // of the tile within the run
  uint16_t* y;
  const uint16_t* residual;
  const uint16_t* gate;
  ptrdiff_t yDistance, residualDistance, gateDistance;
};

template <int P, DepthwiseMode mode>
inline __attribute__((always_inline)) void finishDepthwise(Pair (&sum)[P], const DepthwiseTile& t) {
  const Bf16DepthwiseOperands& o = *t.operands;
  const ptrdiff_t n = t.channels;
  if (o.scale || o.shift) {
    const Pair scale = loadPairOr(o.scale ? o.scale + t.channel : nullptr, n, 1);
    const Pair shift = loadPairOr(o.shift ? o.shift + t.channel : nullptr, n, 0);
    SEPCONV_BF16_UNROLL(8)
    for (int p = 0; p < P; ++p) sum[p] = {sum[p].even * scale.even + shift.even, sum[p].odd * scale.odd + shift.odd};
  }
  if (t.residual) {
    SEPCONV_BF16_UNROLL(8)
    for (int p = 0; p < P; ++p) {
      const Pair r = loadPair(t.residual + p * t.residualDistance, n);
      sum[p] = {sum[p].even + r.even, sum[p].odd + r.odd};
    }
  }
  if (mode == kAny) {
    for (int p = 0; p < P; ++p) sum[p] = activate(sum[p], o.activation);
  } else if (o.activation == kActivationRelu) {
    SEPCONV_BF16_UNROLL(8)
    for (int p = 0; p < P; ++p) sum[p] = {relu(sum[p].even), relu(sum[p].odd)};
  }
  if (t.gate) {
    const Pair scale = loadPairOr(o.gateScale ? o.gateScale + t.channel : nullptr, n, 1);
    const Pair shift = loadPairOr(o.gateShift ? o.gateShift + t.channel : nullptr, n, 0);
    const auto gated = [&](Pair v, const uint16_t* p) -> Pair {
      const Pair g = loadPair(p, n);
      const Pair x = {g.even * scale.even + shift.even, g.odd * scale.odd + shift.odd};
      if (mode != kAny) return {x.even > 0.0f ? v.even : Vector{}, x.odd > 0.0f ? v.odd : Vector{}};
      return {activationGradient(v.even, x.even, o.gateActivation), activationGradient(v.odd, x.odd, o.gateActivation)};
    };
    SEPCONV_BF16_UNROLL(8)
    for (int p = 0; p < P; ++p) sum[p] = gated(sum[p], t.gate + p * t.gateDistance);
  }
  SEPCONV_BF16_UNROLL(8)
  for (int p = 0; p < P; ++p) storePair(t.y + p * t.yDistance, sum[p], n);
}

// Three taps beside each other at stride 1, whole vectors. kEdge: some taps lie beyond the row's ends.
template <int P, bool kEdge, DepthwiseMode mode>
void slidingTile(const DepthwiseTile& tile) {
  const DepthwiseTile t = tile;  // a copy that the stores cannot change
  const DepthwiseReader<mode, true> read(*t.operands, t.channel, t.channels);
  Pair sum[P] = {};
  const uint16_t* row = t.x + t.column * t.pixelDistance;
  const uint16_t* filter = t.filter;
  for (ptrdiff_t r = 0; r < t.rows; ++r, row += t.rowDistance, filter += t.filterRow) {
    const Pair weight[3] = {loadPair(filter), loadPair(filter + t.filterTap), loadPair(filter + 2 * t.filterTap)};
    const uint16_t* x = row;
    SEPCONV_BF16_UNROLL(16)
    for (int j = 0; j < P + 2; ++j, x += t.pixelDistance) {
      if (kEdge && static_cast<size_t>(t.column + j) >= static_cast<size_t>(t.width)) continue;
      const Pair value = read(x);
      SEPCONV_BF16_UNROLL(3)
      for (int k = 0; k < 3; ++k)
        if (j - k >= 0 && j - k < P) {
          sum[j - k].even += value.even * weight[k].even;
          sum[j - k].odd += value.odd * weight[k].odd;
        }
    }
  }
  finishDepthwise<P, mode>(sum, t);
}

// Any taps, strides, channels and activations.
template <int P>
void anyTile(const DepthwiseTile& tile) {
  const DepthwiseTile t = tile;
  const DepthwiseReader<kAny, false> read(*t.operands, t.channel, t.channels);
  Pair sum[P] = {};
  const ptrdiff_t step = t.pixelStep * t.pixelDistance;
  for (ptrdiff_t r = 0; r < t.rows; ++r)
    for (ptrdiff_t k = 0; k < t.taps; ++k) {
      const Pair weight = loadPair(t.filter + r * t.filterRow + k * t.filterTap, t.channels);
      const ptrdiff_t column = t.column + k * t.tapStep;
      const uint16_t* x = t.x + r * t.rowDistance + column * t.pixelDistance;
      for (int p = 0; p < P; ++p, x += step)
        if (static_cast<size_t>(column + p * t.pixelStep) < static_cast<size_t>(t.width)) {
          const Pair value = read(x);
          sum[p].even += value.even * weight.even;
          sum[p].odd += value.odd * weight.odd;
        }
    }
  finishDepthwise<P, kAny>(sum, t);
}

using DepthwiseFunction = void (*)(const DepthwiseTile&);
#define SEPCONV_BF16_UP_TO(function, P, ...) function<P <= kPixels ? P : 1, __VA_ARGS__>
template <bool kEdge, DepthwiseMode mode>
struct SlidingTiles {
  static constexpr DepthwiseFunction of[8] = {
      slidingTile<1, kEdge, mode>,
      slidingTile<2, kEdge, mode>,
      slidingTile<3, kEdge, mode>,
      slidingTile<4, kEdge, mode>,
      SEPCONV_BF16_UP_TO(slidingTile, 5, kEdge, mode),
      SEPCONV_BF16_UP_TO(slidingTile, 6, kEdge, mode),
      SEPCONV_BF16_UP_TO(slidingTile, 7, kEdge, mode),
      SEPCONV_BF16_UP_TO(slidingTile, 8, kEdge, mode),
  };
};
constexpr DepthwiseFunction kAnyTiles[4] = {anyTile<1>, anyTile<2>, anyTile<3>, anyTile<4>};
constexpr const DepthwiseFunction* kSlidingTiles[3][2] = {
    {SlidingTiles<false, kPlain>::of, SlidingTiles<true, kPlain>::of},
    {SlidingTiles<false, kRelu>::of, SlidingTiles<true, kRelu>::of},
    {SlidingTiles<false, kAffine>::of, SlidingTiles<true, kAffine>::of},
};

// More than one output channel per input channel: rare, element by element.
void depthwiseMultiplied(const DepthwiseWindow& w, const Bf16DepthwiseOperands& o, const Bf16DepthwiseRun& r) {
  const auto widened = [](const uint16_t* p) { return loadHalf(p, 1)[0]; };
  for (ptrdiff_t p = 0; p < r.pixels; ++p)
    for (ptrdiff_t c = 0; c < r.channels; ++c) {
      const ptrdiff_t input = c / w.multiplier;
      float sum = 0;
      for (ptrdiff_t i = 0; i < w.kernelHeight; ++i)
        for (ptrdiff_t j = 0; j < w.kernelWidth; ++j) {
          const ptrdiff_t y = r.row * w.strideHeight - w.top + i * w.dilationHeight,
                          x = (r.column + p) * w.strideWidth - w.left + j * w.dilationWidth;
          if (y < 0 || y >= w.height || x < 0 || x >= w.width) continue;
          float value = widened(r.x + y * w.rowDistance + x * w.pixelDistance + input);
          value = value * (o.inputScale ? o.inputScale[input] : 1.0f) + (o.inputShift ? o.inputShift[input] : 0.0f);
          value = activateVector(broadcast(value), o.inputActivation)[0];
          sum += value * widened(o.filter + i * w.filterRowDistance + j * w.filterTapDistance + c);
        }
      sum = sum * (o.scale ? o.scale[c] : 1.0f) + (o.shift ? o.shift[c] : 0.0f);
      if (r.residual) sum += widened(r.residual + p * r.residualDistance + c);
      storeHalf(r.y + p * r.yDistance + c, activateVector(broadcast(sum), o.activation), 1);
    }
}

void depthwise(const DepthwiseWindow& w, const Bf16DepthwiseOperands& operands, const Bf16DepthwiseRun& r) {
  if (w.multiplier > 1) return depthwiseMultiplied(w, operands, r);
  enum { kStep = 2 * kWidth, kBlock = 4 * kStep };
  const ptrdiff_t top = r.row * w.strideHeight - w.top;
  const ptrdiff_t begin = top < 0 ? (-top + w.dilationHeight - 1) / w.dilationHeight : 0;
  const ptrdiff_t end =
      top < w.height ? smaller(w.kernelHeight, (w.height - top + w.dilationHeight - 1) / w.dilationHeight) : 0;
  const DepthwiseMode mode = modeOf(operands);
  const bool sliding =
      w.kernelWidth == 3 && w.strideWidth == 1 && w.dilationWidth == 1 && mode != kAny && r.channels >= kStep;
  const ptrdiff_t most = sliding ? static_cast<ptrdiff_t>(kPixels) : 4;
  const ptrdiff_t tiles = (r.pixels + most - 1) / most, reach = (w.kernelWidth - 1) * w.dilationWidth;
  DepthwiseTile t;
  t.rows = end > begin ? end - begin : 0;
  t.rowDistance = w.dilationHeight * w.rowDistance;
  t.pixelDistance = w.pixelDistance;
  t.width = w.width;
  t.taps = w.kernelWidth;
  t.tapStep = w.dilationWidth;
  t.pixelStep = w.strideWidth;
  t.filterRow = w.filterRowDistance;
  t.filterTap = w.filterTapDistance;
  t.operands = &operands;
  t.yDistance = r.yDistance;
  t.residualDistance = r.residualDistance;
  t.gateDistance = r.gateDistance;
  // Blocks of channels outermost: what neighbouring tiles of pixels share is still in L1.
  for (ptrdiff_t block = 0; block < r.channels; block += kBlock)
    for (ptrdiff_t i = 0; i < tiles; ++i) {
      const ptrdiff_t first = i * r.pixels / tiles, count = (i + 1) * r.pixels / tiles - first;
      t.column = (r.column + first) * w.strideWidth - w.left;
      const bool edge = t.column < 0 || t.column + (count - 1) * w.strideWidth + reach >= w.width;
      const DepthwiseFunction function = (sliding ? kSlidingTiles[mode][edge] : kAnyTiles)[count - 1];
      for (ptrdiff_t c = block; c < smaller(r.channels, block + kBlock); c += kStep) {
        // A last vector that is not whole overlaps the one before.
        t.channel = c + kStep <= r.channels || r.channels < kStep ? c : r.channels - kStep;
        t.channels = r.channels - t.channel;
        t.x = r.x + (top + begin * w.dilationHeight) * w.rowDistance + t.channel;
        t.filter = operands.filter + begin * w.filterRowDistance + t.channel;
        t.y = r.y + first * r.yDistance + t.channel;
        t.residual = r.residual ? r.residual + first * r.residualDistance + t.channel : nullptr;
        t.gate = r.gate ? r.gate + first * r.gateDistance + t.channel : nullptr;
        function(t);
      }
    }
}

// Filter gradient of R kernel rows of three taps at stride 1: their sums and the last three gradients stay in registers
// while the input slides past, so each gradient is loaded once and each input once per kernel row. Products with
// padding are left out, not multiplied by zero.
template <int R, DepthwiseMode mode>
void slidingGradient(const DepthwiseWindow& w, const Bf16DepthwiseOperands& o, const Bf16FilterGradientRun& r,
                     ptrdiff_t firstRow, ptrdiff_t channel) {
  const ptrdiff_t n = r.channels - channel;
  const DepthwiseReader<mode, false> read(o, channel, n);
  const ptrdiff_t y = r.row - w.top + firstRow, column = r.column - w.left;
  const uint16_t* x = r.x + y * w.rowDistance + column * w.pixelDistance + channel;
  const uint16_t* g = r.gradient + channel;
  Pair sum[R][3] = {}, gradient[3] = {};
  // Input column j meets tap k of output pixel j - k.
  const auto step = [&](ptrdiff_t j, ptrdiff_t from, ptrdiff_t to) {
    gradient[2] = gradient[1];
    gradient[1] = gradient[0];
    gradient[0] = j < r.pixels ? loadPair(g + j * r.gradientDistance, n) : Pair{};
    if (static_cast<size_t>(column + j) >= static_cast<size_t>(w.width)) return;
    SEPCONV_BF16_UNROLL(3)
    for (int i = 0; i < R; ++i) {
      const Pair value = read(x + j * w.pixelDistance + i * w.rowDistance * w.dilationHeight);
      SEPCONV_BF16_UNROLL(3)
      for (int k = 0; k < 3; ++k)
        if (k >= from && k < to) {
          sum[i][k].even += value.even * gradient[k].even;
          sum[i][k].odd += value.odd * gradient[k].odd;
        }
    }
  };
  for (ptrdiff_t j = 0; j < 2; ++j) step(j, larger(0, j - r.pixels + 1), j + 1);
  for (ptrdiff_t j = 2; j < r.pixels; ++j) step(j, 0, 3);
  for (ptrdiff_t j = larger(2, r.pixels); j < r.pixels + 2; ++j) step(j, j - r.pixels + 1, 3);
  for (int i = 0; i < R; ++i)
    for (int k = 0; k < 3; ++k) {
      float* to = r.sums + ((firstRow + i) * w.kernelWidth + k) * r.sumDistance + channel;
      const Pair before = loadPair(to, n);
      storePair(to, {before.even + sum[i][k].even, before.odd + sum[i][k].odd}, n);
    }
}

// One tap, any strides and dilations.
template <DepthwiseMode mode>
void tapGradient(const DepthwiseWindow& w, const Bf16DepthwiseOperands& o, const Bf16FilterGradientRun& r, ptrdiff_t i,
                 ptrdiff_t k, ptrdiff_t channel) {
  const ptrdiff_t n = r.channels - channel;
  const DepthwiseReader<mode, false> read(o, channel, n);
  const ptrdiff_t y = r.row * w.strideHeight - w.top + i * w.dilationHeight;
  const uint16_t* x = r.x + y * w.rowDistance + channel;
  Pair sum = {};
  for (ptrdiff_t p = 0; p < r.pixels; ++p) {
    const ptrdiff_t column = (r.column + p) * w.strideWidth - w.left + k * w.dilationWidth;
    if (static_cast<size_t>(column) >= static_cast<size_t>(w.width)) continue;
    const Pair value = read(x + column * w.pixelDistance);
    const Pair gradient = loadPair(r.gradient + p * r.gradientDistance + channel, n);
    sum = {sum.even + value.even * gradient.even, sum.odd + value.odd * gradient.odd};
  }
  float* to = r.sums + (i * w.kernelWidth + k) * r.sumDistance + channel;
  const Pair before = loadPair(to, n);
  storePair(to, {before.even + sum.even, before.odd + sum.odd}, n);
}

void depthwiseFilterGradient(const DepthwiseWindow& w, const Bf16DepthwiseOperands& o, const Bf16FilterGradientRun& r) {
  const DepthwiseMode mode = modeOf(o);
  using Slide = decltype(&slidingGradient<1, kPlain>);
  static constexpr Slide kSlides[3][2] = {{slidingGradient<1, kPlain>, slidingGradient<3, kPlain>},
                                          {slidingGradient<1, kRelu>, slidingGradient<3, kRelu>},
                                          {slidingGradient<1, kAffine>, slidingGradient<3, kAffine>}};
  const bool sliding = mode != kAny && w.kernelWidth == 3 && w.strideWidth == 1 && w.strideHeight == 1 &&
                       w.dilationWidth == 1 && w.dilationHeight == 1;
  const auto inside = [&](ptrdiff_t i) {
    return static_cast<size_t>(r.row * w.strideHeight - w.top + i * w.dilationHeight) < static_cast<size_t>(w.height);
  };
  for (ptrdiff_t channel = 0; channel < r.channels; channel += 2 * kWidth)
    for (ptrdiff_t i = 0; i < w.kernelHeight; ++i) {
      if (!inside(i)) continue;
      if (!sliding) {
        for (ptrdiff_t k = 0; k < w.kernelWidth; ++k) tapGradient<kAny>(w, o, r, i, k, channel);
      } else if (SEPCONV_VECTOR_BYTES == 64 && i + 2 < w.kernelHeight && inside(i + 2)) {
        kSlides[mode][1](w, o, r, i, channel);
        i += 2;
      } else {
        kSlides[mode][0](w, o, r, i, channel);
      }
    }
}
