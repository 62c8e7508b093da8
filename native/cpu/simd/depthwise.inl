// The loops behind depthwise.h. One tile is up to kPixels neighbouring output pixels of one vector of channels: its
// sums, one row of a 3 or 5 wide kernel and one input vector fill 12 or 14 of AVX2's 16 registers, and each input
// vector is loaded once per kernel row for all the pixels that it touches (10 loads for 8 pixels of a 3 wide kernel).
// The channels of a block run innermost, so memory is read in pieces of kBlock floats, and what neighbouring tiles and
// rows share is still in L1 or L2.
#include "activation.inl"

#define SEPCONV_INLINE inline __attribute__((always_inline))

namespace depthwise {

// Where pixels lie a multiple of 512 bytes apart, the 30 lines of a tile of 8 pixels fall into few sets of L1 and each
// line would be fetched once per vector in it. There a tile is kPaired pixels of two vectors, which doubles the rate at
// 512 and 1024 channels; it costs 15 % at 728, where lines survive.
enum { kPixels = 8, kPaired = 4, kBlock = 128 };
enum Mode { kPlain, kRelu, kAffine, kElu };  // of the prologue; kAffine also clamps at zero if asked to

inline Mode modeOf(const DepthwiseOperands& o) {
  if (o.inputActivation == kActivationElu) return kElu;
  if (o.inputScale || o.inputShift) return kAffine;
  return o.inputActivation == kActivationRelu ? kRelu : kPlain;
}

// lanes[i] picks the lane of x that lane i gets.
inline Vector permute(Vector x, VectorInt lanes) {
#if defined(__clang__)
  Vector y;
  for (int i = 0; i < kWidth; ++i) y[i] = x[lanes[i]];
  return y;
#else
  return __builtin_shuffle(x, lanes);
#endif
}

// Reads what a vector of output channels takes from an input pixel: repeated `multiplier` times if kExpand, after the
// prologue. With kPartial fewer than kWidth output channels are wanted; otherwise vectors end within the run's
// channels.
template <Mode mode, bool kExpand, bool kPartial>
struct Reader {
  ptrdiff_t offset;  // first input channel that is loaded
  int loaded;        // how many are, at most kWidth
  VectorInt lanes;
  Vector scale, shift, low;

  Reader(const DepthwiseOperands& o, ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t multiplier) {
    offset = channel;
    loaded = kPartial ? static_cast<int>(channels) : kWidth;
    if (kExpand) {
      const ptrdiff_t inputs = channels / multiplier, wanted = channel / multiplier;
      const bool whole = inputs >= kWidth;
      offset = !whole ? 0 : wanted + kWidth <= inputs ? wanted : inputs - kWidth;
      loaded = whole ? static_cast<int>(kWidth) : static_cast<int>(inputs);
      // (remainder + i) / multiplier by a product: a half is far more than the rounding takes away.
      Vector position;
      for (int i = 0; i < kWidth; ++i) position[i] = static_cast<float>(i) + 0.5f;
      position =
          (position + static_cast<float>(channel - wanted * multiplier)) * (1.0f / static_cast<float>(multiplier));
      lanes = __builtin_convertvector(position, VectorInt) + static_cast<int32_t>(wanted - offset);
    }
    if (mode == kAffine || mode == kElu) {
      scale = o.inputScale ? fetch(o.inputScale + offset) : broadcast(1.0f);
      shift = o.inputShift ? fetch(o.inputShift + offset) : Vector{};
      low = o.inputActivation == kActivationRelu ? Vector{} : broadcast(-__builtin_inff());
    }
  }
  Vector fetch(const float* p) const {
    if (kExpand) return permute(loaded == kWidth ? load(p) : loadPartial(p, loaded), lanes);
    return kPartial ? loadPartial(p, loaded) : load(p);
  }
  // p: the input pixel at channel `offset`.
  Vector operator()(const float* p) const {
    const Vector x = fetch(p);
    if (mode == kRelu) return relu(x);
    if (mode == kAffine) return maximum(low, x * scale + shift);
    if (mode == kElu) return elu(x * scale + shift);
    return x;
  }
};

struct Tile {
  const float* x;  // pixel 0 of the first input row that is read
  ptrdiff_t rows, rowDistance, pixelDistance;
  ptrdiff_t column, width;  // input column of tap 0 of output pixel 0; columns outside [0, width) are not read
  ptrdiff_t taps, tapStep, pixelStep;
  const float* filter;
  ptrdiff_t filterRow, filterTap;
  ptrdiff_t multiplier, channels;
  const DepthwiseOperands* operands;  // at the first channel of the tile
  bool hasEpilogue;
  float* y;
  const float* residual;
  const float* gate;
  ptrdiff_t yDistance, residualDistance, gateDistance;
};
using TileFunction = void (*)(const Tile&);

inline Vector loadSome(const float* p, int n) { return n == kWidth ? load(p) : loadPartial(p, n); }
inline void storeSome(float* p, Vector v, int n) {
  if (n == kWidth)
    store(p, v);
  else
    storePartial(p, v, n);
}

inline Vector gated(const DepthwiseOperands& o, Vector v, Vector gate, ptrdiff_t c, int n) {
  if (o.gateScale) gate *= loadSome(o.gateScale + c, n);
  if (o.gateShift) gate += loadSome(o.gateShift + c, n);
  return activationGradient(v, gate, o.gateActivation);
}

// K taps beside each other at stride 1 if K > 0, any taps otherwise. kEdge: some taps lie beyond the row's ends.
template <int K, int P, int V, bool kEdge, class Read>
SEPCONV_INLINE void addProducts(Vector (&sum)[P][V], const Tile& t, ptrdiff_t channel, const Read (&read)[V]) {
  const float* row = t.x;
  const float* filter = t.filter + channel;
  for (ptrdiff_t r = 0; r < t.rows; ++r, row += t.rowDistance, filter += t.filterRow) {
    if constexpr (K > 0) {
      Vector weight[K][V];
#pragma GCC unroll 5
      for (int k = 0; k < K; ++k)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) weight[k][v] = load(filter + k * t.filterTap + v * kWidth);
      const float* x = row + t.column * t.pixelDistance;
#pragma GCC unroll 16
      for (int j = 0; j < P + K - 1; ++j, x += t.pixelDistance) {
        if (kEdge && static_cast<size_t>(t.column + j) >= static_cast<size_t>(t.width)) continue;
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          const Vector value = inRegister(read[v](x + read[v].offset));
#pragma GCC unroll 5
          for (int k = 0; k < K; ++k)
            if (j - k >= 0 && j - k < P) sum[j - k][v] += value * weight[k][v];
        }
      }
    } else {
      const ptrdiff_t step = t.pixelStep * t.pixelDistance;
      for (ptrdiff_t k = 0; k < t.taps; ++k) {
        const Vector weight = loadSome(filter + k * t.filterTap, read[0].wanted);
        const ptrdiff_t column = t.column + k * t.tapStep;
        const float* x = row + read[0].offset + column * t.pixelDistance;
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p, x += step)
          if (!kEdge || static_cast<size_t>(column + p * t.pixelStep) < static_cast<size_t>(t.width))
            sum[p][0] += read[0](x) * weight;
      }
    }
  }
}

template <int P, int V>
SEPCONV_INLINE void finish(Vector (&sum)[P][V], const Tile& t, ptrdiff_t channel, int n) {
  const DepthwiseOperands& o = *t.operands;
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    if (!t.hasEpilogue) break;
    const ptrdiff_t c = channel + v * kWidth;
    if (o.scale) {
      const Vector scale = loadSome(o.scale + c, n);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[p][v] *= scale;
    }
    if (o.shift) {
      const Vector shift = loadSome(o.shift + c, n);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[p][v] += shift;
    }
    if (t.residual) {
      const float* residual = t.residual + c;
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p, residual += t.residualDistance) sum[p][v] += loadSome(residual, n);
    }
    if (o.activation == kActivationRelu) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[p][v] = relu(sum[p][v]);
    }
    if (t.gate && o.gateActivation == kActivationRelu) {
      const float* gate = t.gate + c;
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p, gate += t.gateDistance) sum[p][v] = gated(o, sum[p][v], loadSome(gate, n), c, n);
    }
  }
  float* y = t.y + channel;
  const ptrdiff_t distance = t.yDistance;
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p, y += distance)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) storeSome(y + v * kWidth, sum[p][v], n);
}

template <Mode mode, bool kExpand, bool kPartial>
struct TileReader : Reader<mode, kExpand, kPartial> {
  int wanted;  // output channels
  TileReader(const Tile& t, ptrdiff_t channel)
      : Reader<mode, kExpand, kPartial>(*t.operands, channel, t.channels, t.multiplier),
        wanted(kPartial ? static_cast<int>(t.channels) : static_cast<int>(kWidth)) {}
};

// V vectors of channels side by side, of each pixel's cache line: see kPaired.
template <int K, int P, int V, bool kEdge, Mode mode, bool kExpand>
void computeTile(const Tile& tile) {
  enum { kStep = V * kWidth };
  const Tile t = tile;  // a copy that the stores below cannot change
  for (ptrdiff_t c = 0; c < t.channels; c += kStep) {
    const ptrdiff_t channel = c + kStep <= t.channels ? c : t.channels - kStep;
    Vector sum[P][V] = {};
    if constexpr (V == 2) {
      const TileReader<mode, kExpand, false> read[V] = {{t, channel}, {t, channel + kWidth}};
      addProducts<K, P, V, kEdge>(sum, t, channel, read);
    } else {
      const TileReader<mode, kExpand, false> read[V] = {{t, channel}};
      addProducts<K, P, V, kEdge>(sum, t, channel, read);
    }
    finish(sum, t, channel, kWidth);
  }
}

// Fewer channels than a vector has lanes.
template <int P, Mode mode, bool kExpand>
void computePartialTile(const Tile& tile) {
  const Tile t = tile;
  const TileReader<mode, kExpand, true> read[1] = {{t, 0}};
  Vector sum[P][1] = {};
  addProducts<0, P, 1, true>(sum, t, 0, read);
  finish(sum, t, 0, static_cast<int>(t.channels));
}

// By number of pixels less one; runs of fewer than `least` take other tiles.
struct TileSet {
  ptrdiff_t least, most;
  TileFunction inner[kPixels], edge[kPixels];
};
template <Mode mode, bool kExpand>
constexpr TileSet anySet() {
  return {1,
          8,
          {computeTile<0, 1, 1, false, mode, kExpand>, computeTile<0, 2, 1, false, mode, kExpand>,
           computeTile<0, 3, 1, false, mode, kExpand>, computeTile<0, 4, 1, false, mode, kExpand>,
           computeTile<0, 5, 1, false, mode, kExpand>, computeTile<0, 6, 1, false, mode, kExpand>,
           computeTile<0, 7, 1, false, mode, kExpand>, computeTile<0, 8, 1, false, mode, kExpand>},
          {computeTile<0, 1, 1, true, mode, kExpand>, computeTile<0, 2, 1, true, mode, kExpand>,
           computeTile<0, 3, 1, true, mode, kExpand>, computeTile<0, 4, 1, true, mode, kExpand>,
           computeTile<0, 5, 1, true, mode, kExpand>, computeTile<0, 6, 1, true, mode, kExpand>,
           computeTile<0, 7, 1, true, mode, kExpand>, computeTile<0, 8, 1, true, mode, kExpand>}};
}
// An exponential per tap and pixel: width gains nothing.
template <bool kExpand>
constexpr TileSet eluSet() {
  return {1,
          2,
          {computeTile<0, 1, 1, false, kElu, kExpand>, computeTile<0, 2, 1, false, kElu, kExpand>},
          {computeTile<0, 1, 1, true, kElu, kExpand>, computeTile<0, 2, 1, true, kElu, kExpand>}};
}
// A run of 4 pixels or more splits evenly into tiles of 4 to 8.
template <int K, Mode mode, bool kExpand>
constexpr TileSet slidingSet() {
  return {4,
          8,
          {nullptr, nullptr, nullptr, computeTile<K, 4, 1, false, mode, kExpand>,
           computeTile<K, 5, 1, false, mode, kExpand>, computeTile<K, 6, 1, false, mode, kExpand>,
           computeTile<K, 7, 1, false, mode, kExpand>, computeTile<K, 8, 1, false, mode, kExpand>},
          {nullptr, nullptr, nullptr, computeTile<K, 4, 1, true, mode, kExpand>,
           computeTile<K, 5, 1, true, mode, kExpand>, computeTile<K, 6, 1, true, mode, kExpand>,
           computeTile<K, 7, 1, true, mode, kExpand>, computeTile<K, 8, 1, true, mode, kExpand>}};
}
template <Mode mode>
constexpr TileSet pairedSet() {
  return {2,
          4,
          {nullptr, computeTile<3, 2, 2, false, mode, false>, computeTile<3, 3, 2, false, mode, false>,
           computeTile<3, 4, 2, false, mode, false>},
          {nullptr, computeTile<3, 2, 2, true, mode, false>, computeTile<3, 3, 2, true, mode, false>,
           computeTile<3, 4, 2, true, mode, false>}};
}
template <Mode mode, bool kExpand>
constexpr TileSet partialSet() {
  if constexpr (mode == kElu)
    return {1, 1, {computePartialTile<1, mode, kExpand>}, {computePartialTile<1, mode, kExpand>}};
  else
    return {1,
            4,
            {computePartialTile<1, mode, kExpand>, computePartialTile<2, mode, kExpand>,
             computePartialTile<3, mode, kExpand>, computePartialTile<4, mode, kExpand>},
            {computePartialTile<1, mode, kExpand>, computePartialTile<2, mode, kExpand>,
             computePartialTile<3, mode, kExpand>, computePartialTile<4, mode, kExpand>}};
}
const TileSet kAnyTiles[4] = {anySet<kPlain, false>(), anySet<kRelu, false>(), anySet<kAffine, false>(),
                              eluSet<false>()};
const TileSet kTiles3[3] = {slidingSet<3, kPlain, false>(), slidingSet<3, kRelu, false>(),
                            slidingSet<3, kAffine, false>()};
const TileSet kTiles5[3] = {slidingSet<5, kPlain, false>(), slidingSet<5, kRelu, false>(),
                            slidingSet<5, kAffine, false>()};
#if SEPCONV_VECTOR_BYTES < 64
const TileSet kPairedTiles[3] = {pairedSet<kPlain>(), pairedSet<kRelu>(), pairedSet<kAffine>()};
#endif
// The affine prologue serves the others too where it hardly counts.
const TileSet kExpandedTiles[3] = {anySet<kPlain, true>(), anySet<kAffine, true>(), eluSet<true>()};
const TileSet kExpandedTiles3 = slidingSet<3, kAffine, true>();
const TileSet kPartialTiles[2][2] = {{partialSet<kAffine, false>(), partialSet<kAffine, true>()},
                                     {partialSet<kElu, false>(), partialSet<kElu, true>()}};

const TileSet& tilesFor(const DepthwiseWindow& w, Mode mode, ptrdiff_t pixels, ptrdiff_t channels) {
  const bool expand = w.multiplier > 1;
  if (channels < kWidth) return kPartialTiles[mode == kElu][expand];
  if (expand && w.kernelWidth == 3 && w.strideWidth == 1 && w.dilationWidth == 1 && mode != kElu &&
      pixels >= kExpandedTiles3.least)
    return kExpandedTiles3;
  if (expand) return kExpandedTiles[mode == kElu ? 2 : mode != kPlain];
  if (w.strideWidth != 1 || w.dilationWidth != 1 || mode == kElu) return kAnyTiles[mode];
#if SEPCONV_VECTOR_BYTES < 64
  if (w.kernelWidth == 3 && w.pixelDistance % 128 == 0 && channels >= 2 * kWidth && pixels >= kPairedTiles[mode].least)
    return kPairedTiles[mode];
#endif
  if (w.kernelWidth == 3 && pixels >= kTiles3[mode].least) return kTiles3[mode];
  if (w.kernelWidth == 5 && pixels >= kTiles5[mode].least) return kTiles5[mode];
  return kAnyTiles[mode];
}

// What is too rare for every tile: elu, and the gate of elu, over a run just stored.
__attribute__((noinline)) void finishElu(const DepthwiseOperands& o, float* y, ptrdiff_t yDistance, const float* gate,
                                         ptrdiff_t gateDistance, ptrdiff_t pixels, ptrdiff_t channels) {
  for (ptrdiff_t p = 0; p < pixels; ++p)
    for (ptrdiff_t c = 0; c < channels; c += kWidth) {
      const int n = channels - c < kWidth ? static_cast<int>(channels - c) : static_cast<int>(kWidth);
      Vector v = loadSome(y + p * yDistance + c, n);
      if (o.activation == kActivationElu) v = elu(v);
      if (gate && o.gateActivation == kActivationElu) v = gated(o, v, loadSome(gate + p * gateDistance + c, n), c, n);
      storeSome(y + p * yDistance + c, v, n);
    }
}

inline ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
inline ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

// Taps i in [begin, end) of `taps` that land in [0, size) from `first` in steps of `step`.
struct Range {
  ptrdiff_t begin, end;
};
inline Range insideRange(ptrdiff_t first, ptrdiff_t step, ptrdiff_t taps, ptrdiff_t size) {
  const ptrdiff_t begin = first < 0 ? (-first + step - 1) / step : 0;
  const ptrdiff_t end = first < size ? smaller(taps, (size - first + step - 1) / step) : 0;
  return {begin, end > begin ? end : begin};
}

inline DepthwiseOperands operandsAt(const DepthwiseOperands& o, ptrdiff_t channel, ptrdiff_t input) {
  const auto at = [](const float* p, ptrdiff_t offset) { return p ? p + offset : nullptr; };
  return {o.filter + channel, at(o.inputScale, input),  at(o.inputShift, input),
          o.inputActivation,  at(o.scale, channel),     at(o.shift, channel),
          o.activation,       at(o.gateScale, channel), at(o.gateShift, channel),
          o.gateActivation};
}

void run(const DepthwiseWindow& w, const DepthwiseOperands& operands, const DepthwiseRun& r) {
  const Range rows = insideRange(r.row * w.strideHeight - w.top, w.dilationHeight, w.kernelHeight, w.height);
  const bool expand = w.multiplier > 1;
  const TileSet& tiles = tilesFor(w, modeOf(operands), r.pixels, r.channels);
  const ptrdiff_t reach = (w.kernelWidth - 1) * w.dilationWidth;
  const ptrdiff_t block = kBlock * w.multiplier;
  // Blocks of channels and tiles of pixels are spread evenly: no thin last one.
  const ptrdiff_t tileCount = (r.pixels + tiles.most - 1) / tiles.most;
  Tile t;
  t.rows = rows.end - rows.begin;
  t.rowDistance = w.dilationHeight * w.rowDistance;
  t.pixelDistance = w.pixelDistance;
  t.width = w.width;
  t.taps = w.kernelWidth;
  t.tapStep = w.dilationWidth;
  t.pixelStep = w.strideWidth;
  t.filterRow = w.filterRowDistance;
  t.filterTap = w.filterTapDistance;
  t.multiplier = w.multiplier;
  t.yDistance = r.yDistance;
  t.residualDistance = r.residualDistance;
  t.gateDistance = r.gateDistance;
  t.hasEpilogue = operands.scale || operands.shift || r.residual || operands.activation || r.gate;
  Fetch fetch{r.upcoming, r.upcomingCount};
  ptrdiff_t lines = 0;  // per tile
  for (ptrdiff_t i = 0; i < r.upcomingCount; ++i) lines += Fetch::lines(r.upcoming[i]);
  const ptrdiff_t blocks = larger(1, (r.channels + block / 2) / block);
  lines = (lines + tileCount * blocks - 1) / (tileCount * blocks);
  for (ptrdiff_t begin = 0; begin < r.channels; begin += block) {
    // Less than a pair of vectors left over joins the last block.
    const ptrdiff_t left = r.channels - begin, channels = left < block + 2 * kWidth * w.multiplier ? left : block;
    const ptrdiff_t input = expand ? begin / w.multiplier : begin;
    const DepthwiseOperands o = operandsAt(operands, begin, input);
    t.operands = &o;
    t.channels = channels;
    t.x = r.x + input + (r.row * w.strideHeight - w.top + rows.begin * w.dilationHeight) * w.rowDistance;
    t.filter = o.filter + rows.begin * w.filterRowDistance;
    for (ptrdiff_t i = 0; i < tileCount; ++i) {
      const ptrdiff_t first = i * r.pixels / tileCount, count = (i + 1) * r.pixels / tileCount - first;
      t.column = (r.column + first) * w.strideWidth - w.left;
      t.y = r.y + begin + first * r.yDistance;
      t.residual = r.residual ? r.residual + begin + first * r.residualDistance : nullptr;
      t.gate = r.gate ? r.gate + begin + first * r.gateDistance : nullptr;
      fetch.run(lines);
      const bool edge = t.column < 0 || t.column + (count - 1) * w.strideWidth + reach >= w.width;
      (edge ? tiles.edge : tiles.inner)[count - 1](t);
    }
    if (o.activation == kActivationElu || (r.gate && o.gateActivation == kActivationElu))
      finishElu(o, r.y + begin, r.yDistance, r.gate ? r.gate + begin : nullptr, r.gateDistance, r.pixels, channels);
    if (channels == left) break;
  }
}

#include "depthwise_gradient.inl"

template <Mode mode>
void stage(const DepthwiseOperands& o, const float* x, ptrdiff_t xDistance, float* y, ptrdiff_t yDistance,
           ptrdiff_t pixels, ptrdiff_t channels) {
  for (ptrdiff_t p = 0; p < pixels; ++p, x += xDistance, y += yDistance) {
    ptrdiff_t c = 0;
    for (; c + kWidth <= channels; c += kWidth) {
      const Reader<mode, false, false> read(o, c, channels, 1);
      store(y + c, read(x + c));
    }
    if (c < channels) {
      const Reader<mode, false, true> read(operandsAt(o, c, c), 0, channels - c, 1);
      storePartial(y + c, read(x + c), read.loaded);
    }
  }
}

void prologue(const DepthwiseOperands& o, const float* x, ptrdiff_t xDistance, float* y, ptrdiff_t yDistance,
              ptrdiff_t pixels, ptrdiff_t channels) {
  static constexpr decltype(&stage<kPlain>) kStages[] = {stage<kPlain>, stage<kRelu>, stage<kAffine>, stage<kElu>};
  kStages[modeOf(o)](o, x, xDistance, y, yDistance, pixels, channels);
}

// Lane i of the result is lane 2 * i + odd of a and b one after the other.
inline Vector everySecond(Vector a, Vector b, int odd) {
#if defined(__clang__)
  Vector y;
  for (int i = 0; i < kWidth; ++i) y[i] = 2 * i + odd < kWidth ? a[2 * i + odd] : b[2 * i + odd - kWidth];
  return y;
#else
  VectorInt lanes;
  for (int i = 0; i < kWidth; ++i) lanes[i] = 2 * i + odd;
  return __builtin_shuffle(a, b, lanes);
#endif
}
// Sums of each M neighbouring floats, a vector of them.
template <int M>
inline Vector neighbourSums(const float* x) {
  if constexpr (M == 1) {
    return load(x);
  } else {
    const Vector a = neighbourSums<M / 2>(x), b = neighbourSums<M / 2>(x + M / 2 * kWidth);
    return everySecond(a, b, 0) + everySecond(a, b, 1);
  }
}
template <int M>
ptrdiff_t sumNeighbours(const float* x, float* y, ptrdiff_t channels) {
  ptrdiff_t c = 0;
  for (; c + kWidth <= channels; c += kWidth) store(y + c, neighbourSums<M>(x + c * M));
  if (c == 0) return 0;
  if (c < channels) store(y + channels - kWidth, neighbourSums<M>(x + (channels - kWidth) * M));
  return channels;
}

void sumMultiplier(const DepthwiseOperands& o, const float* x, ptrdiff_t xDistance, float* y, ptrdiff_t yDistance,
                   const float* gate, ptrdiff_t gateDistance, ptrdiff_t pixels, ptrdiff_t channels,
                   ptrdiff_t multiplier) {
  for (ptrdiff_t p = 0; p < pixels; ++p, x += xDistance, y += yDistance) {
    ptrdiff_t c = multiplier == 2   ? sumNeighbours<2>(x, y, channels)
                  : multiplier == 4 ? sumNeighbours<4>(x, y, channels)
                                    : 0;
    for (; c < channels; ++c) {
      float sum = 0;
      for (ptrdiff_t j = 0; j < multiplier; ++j) sum += x[c * multiplier + j];
      y[c] = sum;
    }
    if (!gate) continue;
    for (c = 0; c < channels; c += kWidth) {
      const int n = channels - c < kWidth ? static_cast<int>(channels - c) : static_cast<int>(kWidth);
      storeSome(y + c, gated(o, loadSome(y + c, n), loadSome(gate + p * gateDistance + c, n), c, n), n);
    }
  }
}

}  // namespace depthwise

const DepthwiseTable depthwiseTable = {depthwise::run, depthwise::filterGradient, depthwise::prologue,
                                       depthwise::sumMultiplier};
