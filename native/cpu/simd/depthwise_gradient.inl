// The filter gradient of depthwise.h; included by depthwise.inl within its namespace. Stride 1 and 3 or 5 wide: the
// sums of some kernel rows and the last K gradients stay in registers while the input slides past, so each gradient is
// loaded once and each input once per kernel row. Otherwise up to kTaps taps, each an input pointer of its own, share
// one load of the gradient. Either way kTaps or so sums grow side by side, enough to cover an FMA's latency of 4
// cycles. Products with padding are left out, not multiplied by zero.

enum { kTaps = 9, kSlidingRows3 = 3, kSlidingRows5 = SEPCONV_VECTOR_BYTES == 64 ? 5 : 2 };

struct Slice {
  const float* x;  // sliding: pixel 0 of the first input row
  ptrdiff_t rowDistance, pixelDistance, width, column;
  const float* gradient;
  ptrdiff_t gradientDistance, pixels;
  float* sums;
  ptrdiff_t sumRow, sumTap;
  ptrdiff_t channels, multiplier;
  const DepthwiseOperands* operands;
  // any taps: the input of each at output pixel 0, and where its sums lie
  const float* taps[kTaps];
  float* tapSums[kTaps];
  ptrdiff_t step;
  ptrdiff_t nextInput, nextGradient;  // sliding: from a row to the one that the next output row adds
};
using SliceFunction = void (*)(const Slice&);

// True for lanes >= first.
inline VectorInt lanesFrom(ptrdiff_t first) {
  VectorInt lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = i;
  return lane >= static_cast<int32_t>(first);
}

// Columns [0, K - 1) of the inputs belong to fewer than K pixels, as do those past the last pixel; either may be
// padding. Needs at least K - 1 pixels, and no padding in between. The next row is fetched into L2 meanwhile: a slice
// jumps from pixel to pixel by all channels, which the hardware does not follow.
template <int K, int R, Mode mode>
void slide(const Slice& s) {
  ptrdiff_t done =
      0;  // channels below are complete: the last vector may overlap the one before, whose sums must not grow twice
  for (ptrdiff_t c = 0; c < s.channels; c += kWidth) {
    const ptrdiff_t channel = c + kWidth <= s.channels ? c : s.channels - kWidth;
    const Reader<mode, false, false> read(*s.operands, channel, s.channels, 1);
    Vector sum[R][K] = {}, gradient[K] = {};
    const float* x = s.x + read.offset + s.column * s.pixelDistance;
    const float* g = s.gradient + channel;
    const auto inside = [&](ptrdiff_t j) { return static_cast<size_t>(s.column + j) < static_cast<size_t>(s.width); };
#pragma GCC unroll 4
    for (int j = 0; j < K - 1; ++j, x += s.pixelDistance, g += s.gradientDistance) {
#pragma GCC unroll 5
      for (int k = K - 1; k > 0; --k) gradient[k] = gradient[k - 1];
      gradient[0] = load(g);
      if (!inside(j)) continue;
#pragma GCC unroll 5
      for (int r = 0; r < R; ++r) {
        const Vector value = read(x + r * s.rowDistance);
#pragma GCC unroll 5
        for (int k = 0; k <= j; ++k) sum[r][k] += value * gradient[k];
      }
    }
    for (ptrdiff_t j = K - 1; j < s.pixels; ++j, x += s.pixelDistance, g += s.gradientDistance) {
      __builtin_prefetch(g + s.nextGradient, 0, 2);
      __builtin_prefetch(x + (R - 1) * s.rowDistance + s.nextInput, 0, 2);
#pragma GCC unroll 5
      for (int k = K - 1; k > 0; --k) gradient[k] = gradient[k - 1];
      gradient[0] = load(g);
#pragma GCC unroll 5
      for (int r = 0; r < R; ++r) {
        const Vector value = read(x + r * s.rowDistance);
#pragma GCC unroll 5
        for (int k = 0; k < K; ++k) sum[r][k] += value * gradient[k];
      }
    }
#pragma GCC unroll 4
    for (int j = 1; j < K; ++j, x += s.pixelDistance) {
      if (!inside(s.pixels + j - 1)) continue;
#pragma GCC unroll 5
      for (int r = 0; r < R; ++r) {
        const Vector value = read(x + r * s.rowDistance);
#pragma GCC unroll 5
        for (int k = j; k < K; ++k) sum[r][k] += value * gradient[k - j];
      }
    }
    const VectorInt fresh = lanesFrom(done - channel);
#pragma GCC unroll 5
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 5
      for (int k = 0; k < K; ++k) {
        float* target = s.sums + r * s.sumRow + k * s.sumTap + channel;
        store(target, load(target) + (fresh ? sum[r][k] : Vector{}));
      }
    done = channel + kWidth;
  }
}

template <int T, Mode mode, bool kExpand, bool kPartial>
void addTaps(const Slice& s) {
  ptrdiff_t done = 0;
  for (ptrdiff_t c = 0; c < s.channels; c += kWidth) {
    const ptrdiff_t channel = kPartial || c + kWidth <= s.channels ? c : s.channels - kWidth;
    const Reader<mode, kExpand, kPartial> read(*s.operands, channel, s.channels, s.multiplier);
    Vector sum[T] = {};
    const float* x[T];
#pragma GCC unroll 9
    for (int i = 0; i < T; ++i) x[i] = s.taps[i] + read.offset;
    const float* g = s.gradient + channel;
    ptrdiff_t offset = 0;
    for (ptrdiff_t p = 0; p < s.pixels; ++p, g += s.gradientDistance, offset += s.step) {
      const Vector gradient = kPartial ? loadPartial(g, static_cast<int>(s.channels)) : load(g);
#pragma GCC unroll 9
      for (int i = 0; i < T; ++i) sum[i] += read(x[i] + offset) * gradient;
    }
    const VectorInt fresh = lanesFrom(done - channel);
    const int n = kPartial ? static_cast<int>(s.channels) : static_cast<int>(kWidth);
#pragma GCC unroll 9
    for (int i = 0; i < T; ++i) {
      float* target = s.tapSums[i] + channel;
      storeSome(target, loadSome(target, n) + (fresh ? sum[i] : Vector{}), n);
    }
    done = channel + kWidth;
  }
}

template <Mode mode, bool kExpand, bool kPartial>
struct TapFunctions {
  static constexpr SliceFunction value[kTaps] = {
      addTaps<1, mode, kExpand, kPartial>, addTaps<2, mode, kExpand, kPartial>, addTaps<3, mode, kExpand, kPartial>,
      addTaps<4, mode, kExpand, kPartial>, addTaps<5, mode, kExpand, kPartial>, addTaps<6, mode, kExpand, kPartial>,
      addTaps<7, mode, kExpand, kPartial>, addTaps<8, mode, kExpand, kPartial>, addTaps<9, mode, kExpand, kPartial>};
};
template <Mode mode>
struct SlideFunctions {
  static constexpr SliceFunction three[kSlidingRows3] = {slide<3, 1, mode>, slide<3, 2, mode>, slide<3, 3, mode>};
#if SEPCONV_VECTOR_BYTES == 64
  static constexpr SliceFunction five[kSlidingRows5] = {slide<5, 1, mode>, slide<5, 2, mode>, slide<5, 3, mode>,
                                                        slide<5, 4, mode>, slide<5, 5, mode>};
#else
  static constexpr SliceFunction five[kSlidingRows5] = {slide<5, 1, mode>, slide<5, 2, mode>};
#endif
};
const SliceFunction* const kSlides3[3] = {SlideFunctions<kPlain>::three, SlideFunctions<kRelu>::three,
                                          SlideFunctions<kAffine>::three};
const SliceFunction* const kSlides5[3] = {SlideFunctions<kPlain>::five, SlideFunctions<kRelu>::five,
                                          SlideFunctions<kAffine>::five};

// Loops over up to `most` taps. Elu is staged by whoever can; here it works, one tap at a time.
struct TapLoops {
  const SliceFunction* functions;
  ptrdiff_t most;
};
const SliceFunction kEluTaps[2][2] = {{addTaps<1, kElu, false, false>, addTaps<1, kElu, false, true>},
                                      {addTaps<1, kElu, true, false>, addTaps<1, kElu, true, true>}};
TapLoops tapLoops(Mode mode, bool expand, bool partial) {
  if (mode == kElu) return {&kEluTaps[expand][partial], 1};
  if (partial)
    return {expand ? TapFunctions<kAffine, true, true>::value : TapFunctions<kAffine, false, true>::value, kTaps};
  if (expand)
    return {mode == kPlain ? TapFunctions<kPlain, true, false>::value : TapFunctions<kAffine, true, false>::value,
            kTaps};
  static constexpr const SliceFunction* kFunctions[3] = {TapFunctions<kPlain, false, false>::value,
                                                         TapFunctions<kRelu, false, false>::value,
                                                         TapFunctions<kAffine, false, false>::value};
  return {kFunctions[mode], kTaps};
}

// Calls the loops for `count` taps, of which tap i has its input at s.x + input(i) and its sums at s.sums + target(i).
template <class Input, class Target>
void addEach(Slice& s, const TapLoops& loops, ptrdiff_t count, const Input& input, const Target& target) {
  const ptrdiff_t chunks = (count + loops.most - 1) / loops.most;
  for (ptrdiff_t chunk = 0; chunk < chunks; ++chunk) {
    const ptrdiff_t first = chunk * count / chunks, size = (chunk + 1) * count / chunks - first;
    for (ptrdiff_t i = 0; i < size; ++i) {
      s.taps[i] = s.x + input(first + i);
      s.tapSums[i] = s.sums + target(first + i);
    }
    loops.functions[size - 1](s);
  }
}

void filterGradient(const DepthwiseWindow& w, const DepthwiseOperands& operands, const DepthwiseFilterGradientRun& r) {
  // A segment's lines of three input rows and the gradient take half of a 32 KB L1 even where their distance is a
  // multiple of 512.
  constexpr ptrdiff_t kSegment = 32, kChannels = 64;
  const Range rows = insideRange(r.row * w.strideHeight - w.top, w.dilationHeight, w.kernelHeight, w.height);
  const ptrdiff_t rowCount = rows.end - rows.begin;
  const bool expand = w.multiplier > 1, partial = r.channels < kWidth;
  const Mode mode = modeOf(operands);
  const bool slides = w.strideWidth == 1 && w.dilationWidth == 1 && (w.kernelWidth == 3 || w.kernelWidth == 5) &&
                      !partial && !expand && mode != kElu;
  const TapLoops loops = tapLoops(mode, expand, partial);
  const ptrdiff_t block = kChannels * w.multiplier;
  const ptrdiff_t segments = (r.pixels + kSegment - 1) / kSegment;
  const ptrdiff_t sumRow = w.kernelWidth * r.sumDistance;
  Slice s;
  s.rowDistance = w.dilationHeight * w.rowDistance;
  s.pixelDistance = w.pixelDistance;
  s.width = w.width;
  s.gradientDistance = r.gradientDistance;
  s.sumRow = sumRow;
  s.sumTap = r.sumDistance;
  s.multiplier = w.multiplier;
  s.step = w.strideWidth * w.pixelDistance;
  s.nextInput = w.strideHeight * w.rowDistance;
  s.nextGradient = r.pixels * r.gradientDistance;
  for (ptrdiff_t begin = 0; begin < r.channels; begin += block) {
    const ptrdiff_t left = r.channels - begin, channels = left < block + kWidth * w.multiplier ? left : block;
    const ptrdiff_t inputBegin = expand ? begin / w.multiplier : begin;
    const DepthwiseOperands o = operandsAt(operands, begin, inputBegin);
    s.operands = &o;
    s.channels = channels;
    const float* x =
        r.x + inputBegin + (r.row * w.strideHeight - w.top + rows.begin * w.dilationHeight) * w.rowDistance;
    float* sums = r.sums + begin + rows.begin * sumRow;
    for (ptrdiff_t segment = 0; segment < segments; ++segment) {
      const ptrdiff_t first = segment * r.pixels / segments, count = (segment + 1) * r.pixels / segments - first;
      const ptrdiff_t column = (r.column + first) * w.strideWidth - w.left;
      const float* gradient = r.gradient + begin + first * r.gradientDistance;
      s.gradient = gradient;
      s.pixels = count;
      if (slides && count >= w.kernelWidth - 1 && column + w.kernelWidth - 1 >= 0 && column + count - 1 < w.width) {
        const bool three = w.kernelWidth == 3;
        const ptrdiff_t most = three ? kSlidingRows3 : kSlidingRows5, chunks = (rowCount + most - 1) / most;
        s.column = column;
        for (ptrdiff_t chunk = 0; chunk < chunks; ++chunk) {
          const ptrdiff_t row = chunk * rowCount / chunks, size = (chunk + 1) * rowCount / chunks - row;
          s.x = x + row * s.rowDistance;
          s.sums = sums + row * sumRow;
          (three ? kSlides3 : kSlides5)[mode][size - 1](s);
        }
        continue;
      }
      // Pixels whose taps all lie within the row take all taps together; the others take one tap column at a time.
      const auto pixelsOf = [&](ptrdiff_t tap) {
        return insideRange(column + tap * w.dilationWidth, w.strideWidth, count, w.width);
      };
      Range inner = {pixelsOf(0).begin, pixelsOf(w.kernelWidth - 1).end};
      if (inner.begin >= inner.end) inner = {count, count};
      const auto over = [&](ptrdiff_t from, ptrdiff_t to) {
        s.x = x + (column + from * w.strideWidth) * w.pixelDistance;
        s.gradient = gradient + from * r.gradientDistance;
        s.sums = sums;
        s.pixels = to - from;
        return from < to;
      };
      const ptrdiff_t tapDistance = w.dilationWidth * w.pixelDistance;
      if (over(inner.begin, inner.end))
        addEach(
            s, loops, rowCount * w.kernelWidth,
            [&](ptrdiff_t i) { return i / w.kernelWidth * s.rowDistance + i % w.kernelWidth * tapDistance; },
            [&](ptrdiff_t i) { return i * r.sumDistance; });
      for (ptrdiff_t tap = 0; tap < w.kernelWidth; ++tap) {
        const Range own = pixelsOf(tap);
        const Range sides[2] = {{own.begin, smaller(own.end, inner.begin)}, {larger(own.begin, inner.end), own.end}};
        for (const Range& side : sides)
          if (over(side.begin, side.end))
            addEach(
                s, loops, rowCount, [&](ptrdiff_t i) { return i * s.rowDistance + tap * tapDistance; },
                [&](ptrdiff_t i) { return i * sumRow + tap * r.sumDistance; });
      }
    }
    if (channels == left) break;
  }
}
