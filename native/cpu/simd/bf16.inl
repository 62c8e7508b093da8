// The loops behind bf16.h. Products read pairs of k: lane j of a panel's vector holds (k, k + 1) of column j, and a
// 32-bit word of the left operand is broadcast against it. Everything else works on twice the lanes of a vector: one
// load of 2 * kWidth elements is split into its even and its odd channels by a shift and a mask, which is cheaper than
// widening two halves.
#include "activation.inl"

namespace bf16 {

inline Vector activateVector(Vector x, int activation) { return activate(x, activation); }

typedef uint16_t Half __attribute__((vector_size(SEPCONV_VECTOR_BYTES / 2)));
typedef uint16_t HalfUnaligned __attribute__((vector_size(SEPCONV_VECTOR_BYTES / 2), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(SEPCONV_VECTOR_BYTES)));
typedef uint32_t WordsUnaligned __attribute__((vector_size(SEPCONV_VECTOR_BYTES), aligned(2), may_alias));
typedef uint32_t WordUnaligned __attribute__((aligned(2), may_alias));

inline ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
inline ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

inline Words loadWords(const uint16_t* p) { return *reinterpret_cast<const WordsUnaligned*>(p); }
inline void storeWords(uint16_t* p, Words v) { *reinterpret_cast<WordsUnaligned*>(p) = v; }
inline Vector evenOf(Words w) { return (Vector)(w << 16); }
inline Vector oddOf(Words w) { return (Vector)(w & 0xffff0000u); }

// The nearest bfloat16 of every lane in the upper half of its word, ties to even; the lower half is garbage.
inline Words roundedWords(Vector v) {
  const Words u = (Words)v, rounded = u + 0x7fffu + ((u >> 16) & 1u);
  return (Words)(v == v ? (VectorInt)rounded : (VectorInt)(u | 0x400000u));
}

// kWidth neighbouring elements.
inline Vector loadHalf(const uint16_t* p) {
  return (Vector)(__builtin_convertvector((Half) * reinterpret_cast<const HalfUnaligned*>(p), Words) << 16);
}
inline Half narrowed(Vector v) {
#if defined(__AVX512BF16__) && SEPCONV_VECTOR_BYTES == 64
  return (Half)_mm512_cvtneps_pbh((__m512)v);
#else
  return __builtin_convertvector(roundedWords(v) >> 16, Half);
#endif
}
inline void storeHalf(uint16_t* p, Vector v) { *reinterpret_cast<HalfUnaligned*>(p) = narrowed(v); }
inline Vector loadHalf(const uint16_t* p, ptrdiff_t n) {
  if (n >= kWidth) return loadHalf(p);
  alignas(64) uint16_t part[kWidth] = {};
  for (ptrdiff_t i = 0; i < n; ++i) part[i] = p[i];
  return loadHalf(part);
}
inline void storeHalf(uint16_t* p, Vector v, ptrdiff_t n) {
  if (n >= kWidth) return storeHalf(p, v);
  alignas(64) uint16_t part[kWidth];
  storeHalf(part, v);
  for (ptrdiff_t i = 0; i < n; ++i) p[i] = part[i];
}

// 2 * kWidth neighbouring elements as their even and odd ones.
struct Pair {
  Vector even, odd;
};
inline Pair loadPair(const uint16_t* p) {
  const Words w = loadWords(p);
  return {evenOf(w), oddOf(w)};
}
inline Pair loadPair(const uint16_t* p, ptrdiff_t n) {
  if (n >= 2 * kWidth) return loadPair(p);
#if defined(__AVX512BW__) && SEPCONV_VECTOR_BYTES == 64
  const Words w = (Words)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p);
  return {evenOf(w), oddOf(w)};
#else
  alignas(64) uint16_t part[2 * kWidth] = {};
  for (ptrdiff_t i = 0; i < n; ++i) part[i] = p[i];
  return loadPair(part);
#endif
}
// Lanes of a and b taken together, `kStep` apart from `first`.
template <int kFirst, int kStep>
inline Vector everyOther(Vector a, Vector b) {
#if defined(__AVX512F__) && SEPCONV_VECTOR_BYTES == 64
  __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  if (kStep == 2) {
    lanes = _mm512_add_epi32(_mm512_slli_epi32(lanes, 1), _mm512_set1_epi32(kFirst));
  } else {  // one of each in turn
    const __m512i half = _mm512_add_epi32(_mm512_srli_epi32(lanes, 1), _mm512_set1_epi32(kFirst));
    lanes = _mm512_mask_add_epi32(half, 0xaaaa, half, _mm512_set1_epi32(16));
  }
  return (Vector)_mm512_permutex2var_ps((__m512)a, lanes, (__m512)b);
#else
  Vector result;
  for (int i = 0; i < kWidth; ++i) {
    if (kStep == 2) {
      const int lane = 2 * i + kFirst;
      result[i] = lane < kWidth ? a[lane % kWidth] : b[lane % kWidth];
    } else {
      result[i] = i % 2 ? b[kFirst + i / 2] : a[kFirst + i / 2];
    }
  }
  return result;
#endif
}
inline Vector loadSome(const float* p, ptrdiff_t n) {
  return n >= kWidth ? load(p) : n > 0 ? loadPartial(p, static_cast<int>(n)) : Vector{};
}
inline void storeSome(float* p, Vector v, ptrdiff_t n) {
  if (n >= kWidth)
    store(p, v);
  else if (n > 0)
    storePartial(p, v, static_cast<int>(n));
}
// float32 values per channel, split alike.
inline Pair loadPair(const float* p, ptrdiff_t n) {
  const Vector a = loadSome(p, n), b = n > kWidth ? loadSome(p + kWidth, n - kWidth) : Vector{};
  return {everyOther<0, 2>(a, b), everyOther<1, 2>(a, b)};
}
inline Pair loadPairOr(const float* p, ptrdiff_t n, float otherwise) {
  return p ? loadPair(p, n) : Pair{broadcast(otherwise), broadcast(otherwise)};
}
inline void storePair(float* p, Pair v, ptrdiff_t n) {
  storeSome(p, everyOther<0, 1>(v.even, v.odd), n);
  if (n > kWidth) storeSome(p + kWidth, everyOther<kWidth / 2, 1>(v.even, v.odd), n - kWidth);
}
inline Words pairWords(Pair v) {
#if defined(__AVX512BF16__) && SEPCONV_VECTOR_BYTES == 64
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)v.odd, (__m512)v.even);  // 16 even, then 16 odd
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (Words)_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both);
#else
  return (roundedWords(v.even) >> 16) | (roundedWords(v.odd) & 0xffff0000u);
#endif
}
inline void storePair(uint16_t* p, Pair v) { storeWords(p, pairWords(v)); }
inline void storePair(uint16_t* p, Pair v, ptrdiff_t n) {
  if (n >= 2 * kWidth) return storePair(p, v);
#if defined(__AVX512BW__) && SEPCONV_VECTOR_BYTES == 64
  _mm512_mask_storeu_epi16(p, static_cast<__mmask32>((uint64_t{1} << n) - 1), (__m512i)pairWords(v));
#else
  alignas(64) uint16_t part[2 * kWidth];
  storePair(part, v);
  for (ptrdiff_t i = 0; i < n; ++i) p[i] = part[i];
#endif
}
inline Pair activate(Pair v, int activation) {
  return {activateVector(v.even, activation), activateVector(v.odd, activation)};
}

// -- products --

enum {
  kPanel = 2 * kWidth,
#if defined(__AVX512BF16__) && SEPCONV_VECTOR_BYTES == 64
  kPairInstructions = 1,
  kRows = 14,
#elif SEPCONV_VECTOR_BYTES == 64
  kPairInstructions = 0,
  kRows = 12,  // both halves of the filter's vectors and of the left word take registers
#elif defined(__aarch64__)
  kPairInstructions = 0,
  kRows = 8,
#else
  kPairInstructions = 0,
  kRows = 4,
#endif
};

#define SEPCONV_BF16_PRAGMA(text) _Pragma(#text)
#if SEPCONV_VECTOR_BYTES == 64 && !defined(__AVX512F__)
#define SEPCONV_BF16_UNROLL(n) SEPCONV_BF16_PRAGMA(GCC unroll 1)
#else
#define SEPCONV_BF16_UNROLL(n) SEPCONV_BF16_PRAGMA(GCC unroll n)
#endif

struct Tile {
  const uint16_t* a;
  ptrdiff_t aRow, pairs;
  const uint16_t* b;
  uint16_t* c;
  ptrdiff_t cRow, columns;
  const float* scale;  // kPanel values each
  const float* shift;
  const uint16_t* residual;
  const uint16_t* gate;
  int activation, gateActivation;
};

inline uint32_t wordAt(const uint16_t* p) { return *reinterpret_cast<const WordUnaligned*>(p); }

// sum += the pair of products of a word of the left operand with V vectors of pairs.
template <int V>
inline void accumulate(Vector (&sum)[V], uint32_t word, const Words (&right)[V]) {
  const Words left = word + Words{};
#if defined(__AVX512BF16__) && SEPCONV_VECTOR_BYTES == 64
  SEPCONV_BF16_UNROLL(2)
  for (int j = 0; j < V; ++j) sum[j] = (Vector)_mm512_dpbf16_ps((__m512)sum[j], (__m512bh)left, (__m512bh)right[j]);
#else
  const Vector even = evenOf(left), odd = oddOf(left);
  SEPCONV_BF16_UNROLL(2)
  for (int j = 0; j < V; ++j) sum[j] += even * evenOf(right[j]);
  SEPCONV_BF16_UNROLL(2)
  for (int j = 0; j < V; ++j) sum[j] += odd * oddOf(right[j]);
#endif
}

template <int R, int V>
void multiplyTile(const Tile& t) {
  Vector sum[R][V] = {};
  const uint16_t* a = t.a;
  const uint16_t* b = t.b;
  const ptrdiff_t aRow = t.aRow, pairs = t.pairs;
  for (ptrdiff_t k = 0; k < pairs; ++k, a += 2, b += 2 * kPanel) {
    Words right[V];
    SEPCONV_BF16_UNROLL(2)
    for (int j = 0; j < V; ++j) right[j] = loadWords(b + j * 2 * kWidth);
    SEPCONV_BF16_UNROLL(16)
    for (int i = 0; i < R; ++i) accumulate(sum[i], wordAt(a + i * aRow), right);
  }
  SEPCONV_BF16_UNROLL(2)
  for (int j = 0; j < V; ++j) {
    const Vector scale = load(t.scale + j * kWidth), shift = load(t.shift + j * kWidth);
    SEPCONV_BF16_UNROLL(16)
    for (int i = 0; i < R; ++i) sum[i][j] = sum[i][j] * scale + shift;
  }
  const bool plain = !t.gate && t.activation != kActivationElu;
  if (t.columns >= V * kWidth && plain) {
    if (t.residual) {
      SEPCONV_BF16_UNROLL(16)
      for (int i = 0; i < R; ++i) SEPCONV_BF16_UNROLL(2)
      for (int j = 0; j < V; ++j) sum[i][j] += loadHalf(t.residual + i * t.cRow + j * kWidth);
    }
    if (t.activation == kActivationRelu) {
      SEPCONV_BF16_UNROLL(16)
      for (int i = 0; i < R; ++i) SEPCONV_BF16_UNROLL(2)
      for (int j = 0; j < V; ++j) sum[i][j] = relu(sum[i][j]);
    }
    SEPCONV_BF16_UNROLL(16)
    for (int i = 0; i < R; ++i) SEPCONV_BF16_UNROLL(2)
    for (int j = 0; j < V; ++j) storeHalf(t.c + i * t.cRow + j * kWidth, sum[i][j]);
    return;
  }
  // Columns that end within a vector, and what is too rare to be worth code in every tile.
  alignas(64) float edge[R][V * kWidth];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < V; ++j) store(edge[i] + j * kWidth, sum[i][j]);
  for (int i = 0; i < R; ++i)
    for (ptrdiff_t j = 0; j < t.columns && j < V * kWidth; j += kWidth) {
      const ptrdiff_t n = t.columns - j;
      Vector v = load(edge[i] + j);
      if (t.residual) v += loadHalf(t.residual + i * t.cRow + j, n);
      v = activateVector(v, t.activation);
      if (t.gate) v = activationGradient(v, loadHalf(t.gate + i * t.cRow + j, n), t.gateActivation);
      storeHalf(t.c + i * t.cRow + j, v, n);
    }
}

using TileFunction = void (*)(const Tile&);
template <int V>
struct Tiles {
  static constexpr TileFunction of[14] = {
      multiplyTile<1, V>,
      multiplyTile<2, V>,
      multiplyTile<3, V>,
      multiplyTile<4, V>,
      multiplyTile<kRows >= 5 ? 5 : 1, V>,
      multiplyTile<kRows >= 6 ? 6 : 1, V>,
      multiplyTile<kRows >= 7 ? 7 : 1, V>,
      multiplyTile<kRows >= 8 ? 8 : 1, V>,
      multiplyTile<kRows >= 9 ? 9 : 1, V>,
      multiplyTile<kRows >= 10 ? 10 : 1, V>,
      multiplyTile<kRows >= 11 ? 11 : 1, V>,
      multiplyTile<kRows >= 12 ? 12 : 1, V>,
      multiplyTile<kRows >= 13 ? 13 : 1, V>,
      multiplyTile<kRows >= 14 ? 14 : 1, V>,
  };
};

void product(const Bf16Product& p) {
  alignas(64) float scale[kPanel], shift[kPanel];
  Tile tile;
  tile.aRow = p.aRow;
  tile.pairs = p.pairs;
  tile.cRow = p.cRow;
  tile.scale = scale;
  tile.shift = shift;
  tile.activation = p.epilogue.activation;
  tile.gateActivation = p.epilogue.gateActivation;
  const ptrdiff_t tiles = (p.rows + kRows - 1) / kRows;
  for (ptrdiff_t column = 0; column < p.columns; column += kPanel) {
    tile.b = p.b + 2 * column * p.pairs;
    tile.columns = smaller(kPanel, p.columns - column);
    const TileFunction* functions = tile.columns <= kWidth ? Tiles<1>::of : Tiles<2>::of;
    for (ptrdiff_t j = 0; j < kPanel; ++j) {
      scale[j] = p.epilogue.scale && j < tile.columns ? p.epilogue.scale[column + j] : 1;
      shift[j] = p.epilogue.shift && j < tile.columns ? p.epilogue.shift[column + j] : 0;
    }
    ptrdiff_t row = 0;
    for (ptrdiff_t i = 0; i < tiles; ++i) {
      const ptrdiff_t rows = (p.rows - row) / (tiles - i), offset = row * p.cRow + column;
      tile.a = p.a + row * p.aRow;
      tile.c = p.c + offset;
      tile.residual = p.epilogue.residual ? p.epilogue.residual + offset : nullptr;
      tile.gate = p.epilogue.gate ? p.epilogue.gate + offset : nullptr;
      functions[rows - 1](tile);
      row += rows;
    }
  }
}

void activateAll(const uint16_t* source, uint16_t* target, ptrdiff_t n, int activation) {
  if (activation == kActivationNone) {
    __builtin_memcpy(target, source, static_cast<size_t>(n) * 2);
    return;
  }
  for (ptrdiff_t i = 0; i < n; i += 2 * kWidth)
    storePair(target + i, activate(loadPair(source + i, n - i), activation), n - i);
}

// n < kWidth elements as the low halves of words.
inline Words wordsOf(const uint16_t* p, ptrdiff_t n) {
#if defined(__AVX512BW__) && SEPCONV_VECTOR_BYTES == 64
  return (Words)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p));
#else
  Words words = {};
  for (ptrdiff_t i = 0; i < n; ++i) words[i] = p[i];
  return words;
#endif
}
inline Words wordsOf(const uint16_t* p) {
  return __builtin_convertvector((Half) * reinterpret_cast<const HalfUnaligned*>(p), Words);
}

void packColumns(const uint16_t* source, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t columns, ptrdiff_t width,
                 int activation, uint16_t* packed) {
  for (ptrdiff_t k = 0; k < depth; k += 2, packed += 2 * width) {
    const uint16_t* even = source + k * row;
    const bool both = k + 1 < depth;
    const uint16_t* odd = even + row;
    ptrdiff_t j = 0;
    for (; j + kWidth <= columns; j += kWidth)
      storeWords(packed + 2 * j, wordsOf(even + j) | (both ? wordsOf(odd + j) << 16 : Words{}));
    if (const ptrdiff_t n = columns - j) {
      const Words words = wordsOf(even + j, n) | (both ? wordsOf(odd + j, n) << 16 : Words{});
      storeSome(reinterpret_cast<float*>(packed + 2 * j), (Vector)words, n);
    }
    for (j = 2 * columns; j < 2 * width; ++j) packed[j] = 0;
    if (activation != kActivationNone) activateAll(packed, packed, 2 * columns, activation);
  }
}

void packTransposed(const uint16_t* source, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t columns, uint16_t* packed) {
  enum { kBlock = 32 };  // one cache line of each source row at a time
  for (ptrdiff_t first = 0; first < depth; first += kBlock) {
    const ptrdiff_t end = smaller(depth, first + kBlock);
    for (ptrdiff_t j = 0; j < columns; ++j) {
      const uint16_t* from = source + j * row;
      for (ptrdiff_t k = first; k < end; k += 2) {
        uint16_t* to = packed + k * kPanel + 2 * j;
        to[0] = from[k];
        to[1] = k + 1 < depth ? from[k + 1] : 0;
      }
    }
    for (ptrdiff_t k = first; k < end; k += 2)
      for (ptrdiff_t j = 2 * columns; j < 2 * kPanel; ++j) packed[k * kPanel + j] = 0;
  }
}

// One tile of an outer product; what lies beyond `rows` and `columns` multiplies the operands' padding and is not
// stored.
template <int R>
void multiplyOuterTile(const Bf16OuterProduct& p, const uint16_t* a, const uint16_t* b, float* c, ptrdiff_t rows,
                       ptrdiff_t columns) {
  Vector sum[R][2] = {};
  for (ptrdiff_t k = 0; k < p.pairs; ++k, a += 2 * R, b += 2 * kPanel) {
    const Words right[2] = {loadWords(b), loadWords(b + 2 * kWidth)};
    SEPCONV_BF16_UNROLL(16)
    for (int i = 0; i < R; ++i) accumulate(sum[i], wordAt(a + 2 * i), right);
  }
  SEPCONV_BF16_UNROLL(16)
  for (int i = 0; i < R; ++i) {
    if (i >= rows) break;
    SEPCONV_BF16_UNROLL(2)
    for (int j = 0; j < 2; ++j) {
      float* to = c + i * p.cRow + j * kWidth;
      const ptrdiff_t n = columns - j * kWidth;
      storeSome(to, p.accumulate ? loadSome(to, n) + sum[i][j] : sum[i][j], n);
    }
  }
}

using OuterFunction = void (*)(const Bf16OuterProduct&, const uint16_t*, const uint16_t*, float*, ptrdiff_t, ptrdiff_t);
#define SEPCONV_BF16_OUTER(R) multiplyOuterTile<kRows >= R ? R : 1>
constexpr OuterFunction kOuterTiles[14] = {SEPCONV_BF16_OUTER(1),  SEPCONV_BF16_OUTER(2),  SEPCONV_BF16_OUTER(3),
                                           SEPCONV_BF16_OUTER(4),  SEPCONV_BF16_OUTER(5),  SEPCONV_BF16_OUTER(6),
                                           SEPCONV_BF16_OUTER(7),  SEPCONV_BF16_OUTER(8),  SEPCONV_BF16_OUTER(9),
                                           SEPCONV_BF16_OUTER(10), SEPCONV_BF16_OUTER(11), SEPCONV_BF16_OUTER(12),
                                           SEPCONV_BF16_OUTER(13), SEPCONV_BF16_OUTER(14)};

void outerProduct(const Bf16OuterProduct& p) {
  for (ptrdiff_t column = 0; column < p.columns; column += kPanel)
    for (ptrdiff_t row = 0; row < p.rows; row += p.aPanel)
      kOuterTiles[p.aPanel - 1](p, p.a + 2 * row * p.pairs, p.b + 2 * column * p.pairs, p.c + row * p.cRow + column,
                                smaller(p.aPanel, p.rows - row), smaller(kPanel, p.columns - column));
}

// Rows of one block, the mean first: both passes find it in cache.
void columnMoments(const uint16_t* source, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t columns, float* mean,
                   float* deviations) {
  const float share = 1.0f / static_cast<float>(rows);
  for (ptrdiff_t j = 0; j < columns; j += kWidth) {
    const ptrdiff_t n = columns - j;
    const auto sumOf = [&](const auto& term) {
      Vector sum[4] = {};  // so that the adds do not wait for each other
      ptrdiff_t i = 0;
      for (; i + 4 <= rows; i += 4)
        for (int q = 0; q < 4; ++q) sum[q] += term(loadHalf(source + (i + q) * row + j, n));
      for (; i < rows; ++i) sum[0] += term(loadHalf(source + i * row + j, n));
      return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    };
    const Vector average = sumOf([](Vector x) { return x; }) * share;
    storeSome(mean + j, average, n);
    storeSome(deviations + j, sumOf([=](Vector x) { return (x - average) * (x - average); }), n);
  }
}

// -- batch norm over [rows, c], a pair of vectors of channels at a time --

void scaleShift(const uint16_t* x, const float* scale, const float* shift, const uint16_t* residual, int activation,
                ptrdiff_t rows, ptrdiff_t c, uint16_t* y) {
  for (ptrdiff_t j = 0; j < c; j += 2 * kWidth) {
    const ptrdiff_t n = c - j;
    const Pair a = loadPairOr(scale ? scale + j : nullptr, n, 1), b = loadPairOr(shift ? shift + j : nullptr, n, 0);
    for (ptrdiff_t i = j; i < rows * c; i += c) {
      Pair v = loadPair(x + i, n);
      v = {v.even * a.even + b.even, v.odd * a.odd + b.odd};
      if (residual) {
        const Pair r = loadPair(residual + i, n);
        v = {v.even + r.even, v.odd + r.odd};
      }
      storePair(y + i, activate(v, activation), n);
    }
  }
}

void gradientSums(const uint16_t* dy, const uint16_t* x, const float* mean, ptrdiff_t rows, ptrdiff_t c, float* sum,
                  float* product) {
  for (ptrdiff_t j = 0; j < c; j += 2 * kWidth) {
    const ptrdiff_t n = c - j;
    const Pair average = loadPair(mean + j, n);
    Pair sums = {}, products = {};
    for (ptrdiff_t i = j; i < rows * c; i += c) {
      const Pair g = loadPair(dy + i, n), v = loadPair(x + i, n);
      sums = {sums.even + g.even, sums.odd + g.odd};
      products = {products.even + g.even * (v.even - average.even), products.odd + g.odd * (v.odd - average.odd)};
    }
    storePair(sum + j, sums, n);
    storePair(product + j, products, n);
  }
}

void gradientApply(const uint16_t* dy, const uint16_t* x, const float* mean, const float* a, const float* b,
                   const float* d, ptrdiff_t rows, ptrdiff_t c, uint16_t* dx) {
  for (ptrdiff_t j = 0; j < c; j += 2 * kWidth) {
    const ptrdiff_t n = c - j;
    const Pair average = loadPair(mean + j, n), p = loadPair(a + j, n), q = loadPair(b + j, n), r = loadPair(d + j, n);
    for (ptrdiff_t i = j; i < rows * c; i += c) {
      const Pair g = loadPair(dy + i, n), v = loadPair(x + i, n);
      storePair(dx + i,
                {p.even * g.even + (q.even * (v.even - average.even) + r.even),
                 p.odd * g.odd + (q.odd * (v.odd - average.odd) + r.odd)},
                n);
    }
  }
}

// -- pooling, conversion --

inline Vector poolMaximum(Vector best, Vector x) { return (x > best) | (x != x) ? x : best; }

void maxima(const uint16_t* const* taps, ptrdiff_t count, const uint16_t* residual, ptrdiff_t c, uint16_t* y) {
  for (ptrdiff_t j = 0; j < c; j += 2 * kWidth) {
    const ptrdiff_t n = c - j;
    Pair best = loadPair(taps[0] + j, n);
    for (ptrdiff_t t = 1; t < count; ++t) {
      const Pair x = loadPair(taps[t] + j, n);
      best = {poolMaximum(best.even, x.even), poolMaximum(best.odd, x.odd)};
    }
    if (residual) {
      const Pair x = loadPair(residual + j, n);
      best = {best.even + x.even, best.odd + x.odd};
    }
    storePair(y + j, best, n);
  }
}

void widenAll(const uint16_t* source, float* target, ptrdiff_t n) {
  ptrdiff_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(target + i, loadHalf(source + i));
  for (; i < n; ++i) target[i] = loadHalf(source + i, 1)[0];
}
void narrowAll(const float* source, uint16_t* target, ptrdiff_t n) {
  ptrdiff_t i = 0;
  for (; i + kWidth <= n; i += kWidth) storeHalf(target + i, load(source + i));
  if (i < n) storeHalf(target + i, loadPartial(source + i, static_cast<int>(n - i)), n - i);
}

#include "depthwise_bf16.inl"

}  // namespace bf16

constexpr Bf16Table bf16Table = {
    bf16::kPairInstructions != 0,
    bf16::kRows,
    bf16::product,
    bf16::packColumns,
    bf16::packTransposed,
    bf16::activateAll,
    bf16::depthwise,
    bf16::maxima,
    bf16::columnMoments,
    bf16::depthwiseFilterGradient,
    bf16::outerProduct,
    bf16::scaleShift,
    bf16::gradientSums,
    bf16::gradientApply,
    bf16::widenAll,
    bf16::narrowAll,
};
