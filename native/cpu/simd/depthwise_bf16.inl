// Depthwise convolution of one run of output pixels, as depthwise.inl does it in float32: a tile is up to kPixels
// neighbouring pixels of 2 * kWidth channels, and a kernel row's weights stay in registers while the input slides past.

enum { kPixels = 6 };
enum DepthwiseMode { kPlainInput, kReluInput, kAffineInput };  // kAffineInput takes any activation

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

template <int P>
inline void finishDepthwise(Pair (&sum)[P], const DepthwiseTile& t) {
  const Bf16DepthwiseOperands& o = *t.operands;
  const ptrdiff_t n = t.channels;
  if (o.scale || o.shift || t.residual || o.activation || t.gate) {
    const Pair scale = o.scale ? loadPair(o.scale + t.channel, n) : Pair{broadcast(1.0f), broadcast(1.0f)};
    const Pair shift = o.shift ? loadPair(o.shift + t.channel, n) : Pair{};
    for (int p = 0; p < P; ++p) {
      Pair v = {sum[p].even * scale.even + shift.even, sum[p].odd * scale.odd + shift.odd};
      if (t.residual) {
        const Pair r = loadPair(t.residual + p * t.residualDistance, n);
        v = {v.even + r.even, v.odd + r.odd};
      }
      v = activate(v, o.activation);
      if (t.gate) {
        Pair g = loadPair(t.gate + p * t.gateDistance, n);
        if (o.gateScale) {
          const Pair s = loadPair(o.gateScale + t.channel, n);
          g = {g.even * s.even, g.odd * s.odd};
        }
        if (o.gateShift) {
          const Pair s = loadPair(o.gateShift + t.channel, n);
          g = {g.even + s.even, g.odd + s.odd};
        }
        v = {activationGradient(v.even, g.even, o.gateActivation), activationGradient(v.odd, g.odd, o.gateActivation)};
      }
      sum[p] = v;
    }
  }
  SEPCONV_BF16_UNROLL(8)
  for (int p = 0; p < P; ++p) storePair(t.y + p * t.yDistance, sum[p], n);
}

// K taps beside each other at stride 1 if K > 0, any taps otherwise. kInner: every tap is inside the row and the
// vector is whole.
template <int K, int P, bool kInner, DepthwiseMode mode>
void depthwiseTile(const DepthwiseTile& tile) {
  const DepthwiseTile t = tile;  // a copy that the stores cannot change
  const Bf16DepthwiseOperands& o = *t.operands;
  const ptrdiff_t n = t.channels;
  Pair scale = {}, shift = {};
  if (mode == kAffineInput) {
    scale = o.inputScale ? loadPair(o.inputScale + t.channel, n) : Pair{broadcast(1.0f), broadcast(1.0f)};
    if (o.inputShift) shift = loadPair(o.inputShift + t.channel, n);
  }
  const int inputActivation = o.inputActivation;
  const auto read = [&](const uint16_t* p) {
    Pair v = kInner ? loadPair(p) : loadPair(p, n);
    if (mode == kReluInput) v = {relu(v.even), relu(v.odd)};
    if (mode == kAffineInput)
      v = activate({v.even * scale.even + shift.even, v.odd * scale.odd + shift.odd}, inputActivation);
    return v;
  };
  Pair sum[P] = {};
  const uint16_t* row = t.x;
  const uint16_t* filter = t.filter;
  for (ptrdiff_t r = 0; r < t.rows; ++r, row += t.rowDistance, filter += t.filterRow) {
    if constexpr (K > 0) {
      Pair weight[K > 0 ? K : 1];
      SEPCONV_BF16_UNROLL(5)
      for (int k = 0; k < K; ++k)
        weight[k] = kInner ? loadPair(filter + k * t.filterTap) : loadPair(filter + k * t.filterTap, n);
      const uint16_t* x = row + t.column * t.pixelDistance;
      SEPCONV_BF16_UNROLL(16)
      for (int j = 0; j < P + K - 1; ++j, x += t.pixelDistance) {
        if (!kInner && static_cast<size_t>(t.column + j) >= static_cast<size_t>(t.width)) continue;
        const Pair value = read(x);
        SEPCONV_BF16_UNROLL(5)
        for (int k = 0; k < K; ++k)
          if (j - k >= 0 && j - k < P) {
            sum[j - k].even += value.even * weight[k].even;
            sum[j - k].odd += value.odd * weight[k].odd;
          }
      }
    } else {
      const ptrdiff_t step = t.pixelStep * t.pixelDistance;
      for (ptrdiff_t k = 0; k < t.taps; ++k) {
        const Pair weight = loadPair(filter + k * t.filterTap, n);
        const ptrdiff_t column = t.column + k * t.tapStep;
        const uint16_t* x = row + column * t.pixelDistance;
        SEPCONV_BF16_UNROLL(8)
        for (int p = 0; p < P; ++p, x += step)
          if (kInner || static_cast<size_t>(column + p * t.pixelStep) < static_cast<size_t>(t.width)) {
            const Pair value = read(x);
            sum[p].even += value.even * weight.even;
            sum[p].odd += value.odd * weight.odd;
          }
      }
    }
  }
  finishDepthwise(sum, t);
}

using DepthwiseFunction = void (*)(const DepthwiseTile&);
struct DepthwiseSet {
  DepthwiseFunction edge[kPixels], inner[kPixels];
};
template <int K, DepthwiseMode mode>
constexpr DepthwiseSet depthwiseSet() {
  return {{depthwiseTile<K, 1, false, mode>, depthwiseTile<K, 2, false, mode>, depthwiseTile<K, 3, false, mode>,
           depthwiseTile<K, 4, false, mode>, depthwiseTile<K, 5, false, mode>, depthwiseTile<K, 6, false, mode>},
          {depthwiseTile<K, 1, true, mode>, depthwiseTile<K, 2, true, mode>, depthwiseTile<K, 3, true, mode>,
           depthwiseTile<K, 4, true, mode>, depthwiseTile<K, 5, true, mode>, depthwiseTile<K, 6, true, mode>}};
}
const DepthwiseSet kDepthwise3[3] = {depthwiseSet<3, kPlainInput>(), depthwiseSet<3, kReluInput>(),
                                     depthwiseSet<3, kAffineInput>()};
const DepthwiseSet kDepthwiseAny = depthwiseSet<0, kAffineInput>();

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
  const ptrdiff_t top = r.row * w.strideHeight - w.top;
  const ptrdiff_t begin = top < 0 ? (-top + w.dilationHeight - 1) / w.dilationHeight : 0;
  const ptrdiff_t end =
      top < w.height ? smaller(w.kernelHeight, (w.height - top + w.dilationHeight - 1) / w.dilationHeight) : 0;
  DepthwiseMode mode = kAffineInput;
  if (!operands.inputScale && !operands.inputShift && operands.inputActivation != kActivationElu)
    mode = operands.inputActivation == kActivationRelu ? kReluInput : kPlainInput;
  const bool sliding = w.kernelWidth == 3 && w.strideWidth == 1 && w.dilationWidth == 1;
  const DepthwiseSet& set = sliding ? kDepthwise3[mode] : kDepthwiseAny;
  const ptrdiff_t tiles = (r.pixels + kPixels - 1) / kPixels, reach = (w.kernelWidth - 1) * w.dilationWidth;
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
  // Blocks of channels innermost but one: what neighbouring tiles of pixels share stays in L1.
  enum { kStep = 2 * kWidth, kBlock = 8 * kStep };
  for (ptrdiff_t block = 0; block < r.channels; block += kBlock)
    for (ptrdiff_t i = 0; i < tiles; ++i) {
      const ptrdiff_t first = i * r.pixels / tiles, count = (i + 1) * r.pixels / tiles - first;
      t.column = (r.column + first) * w.strideWidth - w.left;
      const bool inside = t.column >= 0 && t.column + (count - 1) * w.strideWidth + reach < w.width;
      for (ptrdiff_t c = block; c < smaller(r.channels, block + kBlock); c += kStep) {
        // A last vector that is not whole overlaps the one before.
        t.channel = c + kStep <= r.channels || r.channels < kStep ? c : r.channels - kStep;
        t.channels = r.channels - t.channel;
        t.x = r.x + (top + begin * w.dilationHeight) * w.rowDistance + t.channel;
        t.filter = operands.filter + begin * w.filterRowDistance + t.channel;
        t.y = r.y + first * r.yDistance + t.channel;
        t.residual = r.residual ? r.residual + first * r.residualDistance + t.channel : nullptr;
        t.gate = r.gate ? r.gate + first * r.gateDistance + t.channel : nullptr;
        (inside && t.channels >= kStep ? set.inner : set.edge)[count - 1](t);
      }
    }
}

// Filter gradient: the sums of one kernel row stay in registers while input and gradient pass. Products with padding
// are left out, not multiplied by zero.
template <int K, DepthwiseMode mode>
void filterGradientRow(const DepthwiseWindow& w, const Bf16DepthwiseOperands& o, const Bf16FilterGradientRun& r,
                       ptrdiff_t i, ptrdiff_t firstTap, ptrdiff_t channel) {
  const ptrdiff_t n = r.channels - channel, y = r.row * w.strideHeight - w.top + i * w.dilationHeight;
  const uint16_t* x = r.x + y * w.rowDistance + channel;
  const uint16_t* g = r.gradient + channel;
  Pair scale = {}, shift = {};
  if (mode == kAffineInput) {
    scale = o.inputScale ? loadPair(o.inputScale + channel, n) : Pair{broadcast(1.0f), broadcast(1.0f)};
    if (o.inputShift) shift = loadPair(o.inputShift + channel, n);
  }
  Pair sum[K] = {};
  const ptrdiff_t first = r.column * w.strideWidth - w.left + firstTap * w.dilationWidth;
  for (ptrdiff_t p = 0; p < r.pixels; ++p, g += r.gradientDistance) {
    const Pair gradient = loadPair(g, n);
    const ptrdiff_t column = first + p * w.strideWidth;
    SEPCONV_BF16_UNROLL(5)
    for (int k = 0; k < K; ++k) {
      const ptrdiff_t at = column + k * w.dilationWidth;
      if (static_cast<size_t>(at) >= static_cast<size_t>(w.width)) continue;
      Pair value = loadPair(x + at * w.pixelDistance, n);
      if (mode == kReluInput) value = {relu(value.even), relu(value.odd)};
      if (mode == kAffineInput)
        value = activate({value.even * scale.even + shift.even, value.odd * scale.odd + shift.odd}, o.inputActivation);
      sum[k].even += value.even * gradient.even;
      sum[k].odd += value.odd * gradient.odd;
    }
  }
  for (int k = 0; k < K; ++k) {
    float* to = r.sums + (i * w.kernelWidth + firstTap + k) * r.sumDistance + channel;
    for (ptrdiff_t j = 0; j < n && j < 2 * kWidth; ++j) to[j] += (j % 2 ? sum[k].odd : sum[k].even)[j / 2];
  }
}

void depthwiseFilterGradient(const DepthwiseWindow& w, const Bf16DepthwiseOperands& o, const Bf16FilterGradientRun& r) {
  DepthwiseMode mode = kAffineInput;
  if (!o.inputScale && !o.inputShift && o.inputActivation != kActivationElu)
    mode = o.inputActivation == kActivationRelu ? kReluInput : kPlainInput;
  using Row = decltype(&filterGradientRow<1, kPlainInput>);
  static constexpr Row kRowsOf[3][2] = {{filterGradientRow<1, kPlainInput>, filterGradientRow<3, kPlainInput>},
                                        {filterGradientRow<1, kReluInput>, filterGradientRow<3, kReluInput>},
                                        {filterGradientRow<1, kAffineInput>, filterGradientRow<3, kAffineInput>}};
  for (ptrdiff_t channel = 0; channel < r.channels; channel += 2 * kWidth)
    for (ptrdiff_t i = 0; i < w.kernelHeight; ++i) {
      const ptrdiff_t y = r.row * w.strideHeight - w.top + i * w.dilationHeight;
      if (y < 0 || y >= w.height) continue;
      ptrdiff_t tap = 0;
      for (; tap + 3 <= w.kernelWidth; tap += 3) kRowsOf[mode][1](w, o, r, i, tap, channel);
      for (; tap < w.kernelWidth; ++tap) kRowsOf[mode][0](w, o, r, i, tap, channel);
    }
}
