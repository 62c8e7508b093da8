// The loops behind gemm.h. One register tile is R rows by V vectors; its accumulators, V vectors of the panel and one
// broadcast element of the left operand fill the registers: 14 x 2 of 64 bytes with AVX-512 (28 + 2 + 1 of 32), 6 x 2
// of 32 bytes with AVX2 (12 + 2 + 1 of 16), 8 x 2 of 16 bytes with NEON, 4 x 2 with SSE2, where multiply and add are
// two instructions. Columns that fit one vector take taller tiles, since 6 sums in flight do not cover an FMA's
// latency. k is cut into blocks of kDepth so that a block of the panel stays in L1 while all rows pass over it; sums
// wait in the output meanwhile.
#include "activation.inl"

// Sums must be unrolled to live in registers. Not so in the table `wide`, whose 64-byte vectors are two registers each:
// it has the tiles of AVX-512 for tests' sake, and unrolled it would only be long to compile.
#define SEPCONV_PRAGMA(text) _Pragma(#text)
#if SEPCONV_VECTOR_BYTES == 64 && !defined(__AVX512F__)
#define SEPCONV_UNROLL(n) SEPCONV_PRAGMA(GCC unroll 1)
#else
#define SEPCONV_UNROLL(n) SEPCONV_PRAGMA(GCC unroll n)
#endif

namespace gemm {

enum {
  kPanel = 2 * kWidth,
#if SEPCONV_VECTOR_BYTES == 64
  kRows = 14,
  kNarrowRows = 14,
#elif SEPCONV_VECTOR_BYTES == 32
  kRows = 6,
  kNarrowRows = 12,
#elif defined(__aarch64__)
  kRows = 8,
  kNarrowRows = 12,
#else
  kRows = 4,
  kNarrowRows = 8,
#endif
  kDepth = 2048,
};

// One tile's share of a product.
struct Tile {
  const float* a;
  ptrdiff_t aRow;
  const ptrdiff_t* segments;
  ptrdiff_t segmentCount, depth;
  const float* b;
  float* c;
  ptrdiff_t cRow;
  ptrdiff_t columns;
  const float* scale;  // kPanel values each, of the whole panel
  const float* shift;
  const float* residual;
  const float* gate;
  int activation, gateActivation;
  bool first, last;  // of the blocks that k is cut into
  const char* next;  // lines that are fetched, one in each step of k
  ptrdiff_t fetched;
};

inline Vector loadColumns(const float* p, ptrdiff_t n) {
  return n >= kWidth ? load(p) : n > 0 ? loadPartial(p, static_cast<int>(n)) : Vector{};
}
inline void storeColumns(float* p, Vector v, ptrdiff_t n) {
  if (n >= kWidth)
    store(p, v);
  else if (n > 0)
    storePartial(p, v, static_cast<int>(n));
}

// What is too rare to be worth registers or code in every tile: elu and the gate of an input gradient, on the tile just
// stored.
__attribute__((noinline)) void finish(const Tile& t, ptrdiff_t rows) {
  for (ptrdiff_t i = 0; i < rows; ++i)
    for (ptrdiff_t j = 0; j < t.columns; j += kWidth) {
      const ptrdiff_t n = t.columns - j;
      float* c = t.c + i * t.cRow + j;
      Vector v = loadColumns(c, n);
      if (t.activation == kActivationElu) v = elu(v);
      if (t.gate) v = activationGradient(v, loadColumns(t.gate + i * t.cRow + j, n), t.gateActivation);
      storeColumns(c, v, n);
    }
}

// A tile whose columns end within a vector works on a copy of whole vectors; these move it in and out.
__attribute__((noinline)) void copyIn(const Tile& t, ptrdiff_t rows, float* edge, ptrdiff_t edgeRow) {
  for (ptrdiff_t i = 0; i < rows; ++i)
    for (ptrdiff_t j = 0; j < t.columns; ++j) edge[i * edgeRow + j] = t.c[i * t.cRow + j];
}
__attribute__((noinline)) void copyOut(const Tile& t, ptrdiff_t rows, const float* edge, ptrdiff_t edgeRow) {
  const float* residual = t.last ? t.residual : nullptr;
  const bool clamped = t.last && t.activation == kActivationRelu;
  for (ptrdiff_t i = 0; i < rows; ++i)
    for (ptrdiff_t j = 0; j < t.columns; ++j) {
      float v = edge[i * edgeRow + j];
      if (residual) v += residual[i * t.cRow + j];
      t.c[i * t.cRow + j] = clamped && 0.0f > v ? 0.0f : v;
    }
}

// Of whole tiles residual and ReLU too; copyOut does those of the others.
template <int R, int V>
inline __attribute__((always_inline)) void applyEpilogue(const Tile& t, Vector (&sum)[R][V], bool whole) {
  SEPCONV_UNROLL(2)
  for (int j = 0; j < V; ++j) {
    const Vector scale = load(t.scale + j * kWidth), shift = load(t.shift + j * kWidth);
    SEPCONV_UNROLL(16)
    for (int i = 0; i < R; ++i) sum[i][j] = sum[i][j] * scale + shift;
  }
  if (t.residual && whole) {
    SEPCONV_UNROLL(16)
    for (int i = 0; i < R; ++i) SEPCONV_UNROLL(2)
    for (int j = 0; j < V; ++j) sum[i][j] += load(t.residual + i * t.cRow + j * kWidth);
  }
  if (t.activation == kActivationRelu && whole) {
    SEPCONV_UNROLL(16)
    for (int i = 0; i < R; ++i) SEPCONV_UNROLL(2)
    for (int j = 0; j < V; ++j) sum[i][j] = relu(sum[i][j]);
  }
}

template <int R, int V>
void multiplyTile(const Tile& t) {
  enum { kColumns = V * kWidth };
  alignas(64) float edge[R * kColumns];
  const bool whole = t.columns >= kColumns;
  float* const c = whole ? t.c : edge;
  const ptrdiff_t cRow = whole ? t.cRow : static_cast<ptrdiff_t>(kColumns);
  Vector sum[R][V] = {};
  if (!t.first) {
    if (!whole) copyIn(t, R, edge, kColumns);
    SEPCONV_UNROLL(16)
    for (int i = 0; i < R; ++i) SEPCONV_UNROLL(2)
    for (int j = 0; j < V; ++j) sum[i][j] = load(c + i * cRow + j * kWidth);
  }
  const float* b = t.b;
  const ptrdiff_t aRow = t.aRow;
  const char* next = t.next;
  ptrdiff_t fetched = t.fetched;
  for (ptrdiff_t s = 0; s < t.segmentCount; ++s) {
    const float* a = t.a + t.segments[s];
    const auto step = [&](ptrdiff_t k) {
      Vector right[V];
      SEPCONV_UNROLL(2)
      for (int j = 0; j < V; ++j) right[j] = load(b + j * kWidth);
      SEPCONV_UNROLL(16)
      for (int i = 0; i < R; ++i) {
        const Vector left = broadcast(a[i * aRow + k]);
        SEPCONV_UNROLL(2)
        for (int j = 0; j < V; ++j) sum[i][j] += left * right[j];
      }
      b += kPanel;
    };
    const ptrdiff_t fetching = fetched < t.depth ? fetched : t.depth;
    fetched -= fetching;
    ptrdiff_t k = 0;
    for (; k < fetching; ++k, next += kFetchedLine) {
      __builtin_prefetch(next, 0, 2);
      step(k);
    }
    SEPCONV_UNROLL(2)
    for (; k < t.depth; ++k) step(k);
  }
  if (t.last) applyEpilogue(t, sum, whole);
  SEPCONV_UNROLL(16)
  for (int i = 0; i < R; ++i) SEPCONV_UNROLL(2)
  for (int j = 0; j < V; ++j) store(c + i * cRow + j * kWidth, sum[i][j]);
  if (!whole) copyOut(t, R, edge, kColumns);
  if (t.last && (t.gate || t.activation == kActivationElu)) finish(t, R);
}

using TileFunction = void (*)(const Tile&);
// Rows 1 .. 14; a tile taller than what this instruction set takes stands for a tile of one row and is never called.
#define SEPCONV_TILES(function, most, V)                                                                            \
  {                                                                                                                 \
    function<1, V>, function<most >= 2 ? 2 : 1, V>, function<most >= 3 ? 3 : 1, V>, function<most >= 4 ? 4 : 1, V>, \
        function<most >= 5 ? 5 : 1, V>, function<most >= 6 ? 6 : 1, V>, function<most >= 7 ? 7 : 1, V>,             \
        function<most >= 8 ? 8 : 1, V>, function<most >= 9 ? 9 : 1, V>, function<most >= 10 ? 10 : 1, V>,           \
        function<most >= 11 ? 11 : 1, V>, function<most >= 12 ? 12 : 1, V>, function<most >= 13 ? 13 : 1, V>,       \
        function<most >= 14 ? 14 : 1, V>,                                                                           \
  }
constexpr TileFunction kTiles[14] = SEPCONV_TILES(multiplyTile, kRows, 2);
constexpr TileFunction kNarrowTiles[14] = SEPCONV_TILES(multiplyTile, kNarrowRows, 1);

inline ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
inline ptrdiff_t quotientUp(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

void product(const Product& p) {
  // Blocks of k: parts of one segment where segments are long, several segments where they are short.
  const ptrdiff_t total = p.segmentCount * p.depth;
  const ptrdiff_t parts = p.depth > kDepth ? quotientUp(p.depth, kDepth) : 1;
  ptrdiff_t groups = parts > 1 ? p.segmentCount : smaller(p.segmentCount, quotientUp(total, kDepth));
  if (groups == 0) groups = 1;  // a sum over nothing is zero, and has an epilogue
  alignas(64) float scale[kPanel], shift[kPanel];
  Tile tile{};
  tile.aRow = p.aRow;
  tile.cRow = p.cRow;
  tile.scale = scale;
  tile.shift = shift;
  tile.activation = p.epilogue.activation;
  tile.gateActivation = p.epilogue.gateActivation;
  Fetch fetch{p.upcoming, p.upcomingCount};
  for (ptrdiff_t block = 0; block < groups * parts; ++block) {
    const ptrdiff_t group = block / parts, part = block % parts;
    const ptrdiff_t firstSegment = group * p.segmentCount / groups, firstDepth = part * p.depth / parts;
    tile.segments = p.segments + firstSegment;
    tile.segmentCount = (group + 1) * p.segmentCount / groups - firstSegment;
    tile.depth = (part + 1) * p.depth / parts - firstDepth;
    tile.first = block == 0;
    tile.last = block == groups * parts - 1;
    for (ptrdiff_t column = 0; column < p.columns; column += kPanel) {
      tile.b = p.b + column * total + (firstSegment * p.depth + firstDepth) * kPanel;
      tile.columns = smaller(kPanel, p.columns - column);
      const bool narrow = tile.columns <= kWidth;
      const TileFunction* functions = narrow ? kNarrowTiles : kTiles;
      const ptrdiff_t tiles = quotientUp(p.rows, narrow ? kNarrowRows : kRows);
      for (ptrdiff_t j = 0; j < kPanel; ++j) {
        scale[j] = p.epilogue.scale && j < tile.columns ? p.epilogue.scale[column + j] : 1;
        shift[j] = p.epilogue.shift && j < tile.columns ? p.epilogue.shift[column + j] : 0;
      }
      for (ptrdiff_t line = 0; line < p.lines; ++line) {
        ptrdiff_t row = 0;
        for (ptrdiff_t i = 0; i < tiles; ++i) {
          const ptrdiff_t rows = (p.rows - row) / (tiles - i);
          const ptrdiff_t offset = line * p.cLine + row * p.cRow + column;
          tile.a = p.a + line * p.aLine + row * p.aRow + firstDepth;
          tile.c = p.c + offset;
          tile.residual = p.epilogue.residual ? p.epilogue.residual + offset : nullptr;
          tile.gate = p.epilogue.gate ? p.epilogue.gate + offset : nullptr;
          tile.fetched = fetch.take(tile.segmentCount * tile.depth, &tile.next);
          functions[rows - 1](tile);
          row += rows;
        }
      }
    }
  }
}

#include "strassen.inl"

// One tile of an outer product, which fetches 128 bytes of `next` every kFetch steps.
struct OuterTile {
  const float* a;
  ptrdiff_t aRow;
  const float* b;
  ptrdiff_t bRow, depth;
  float* c;
  ptrdiff_t cRow, columns;
  bool accumulate;
  const char* next;
  ptrdiff_t nextStep;  // bytes; 0 where there is nothing to fetch
};

enum { kFetch = 4, kFetchedBytes = 2 * kFetchedLine, kRowsAhead = 8 };

__attribute__((noinline)) void copyOut(const OuterTile& t, ptrdiff_t rows, const float* edge, ptrdiff_t edgeRow) {
  for (ptrdiff_t i = 0; i < rows; ++i)
    for (ptrdiff_t j = 0; j < t.columns; ++j) {
      float& c = t.c[i * t.cRow + j];
      c = t.accumulate ? c + edge[i * edgeRow + j] : edge[i * edgeRow + j];
    }
}

// With `ahead` the rows of both operands are fetched into L1 kAhead steps before their turn: rows lie pages apart,
// which the processor's own prefetchers do not follow, and the first tile to read a row finds it in L3.
template <int R, int V, bool ahead>
inline __attribute__((always_inline)) void multiplyOuter(const OuterTile& t) {
  enum { kColumns = V * kWidth };
  alignas(64) float edge[R * kColumns];
  Vector sum[R][V] = {};
  const float* a = t.a;
  const float* b = t.b;
  const ptrdiff_t aRow = t.aRow, bRow = t.bRow;
  const auto step = [&] {
    Vector right[V];
    SEPCONV_UNROLL(2)
    for (int j = 0; j < V; ++j) right[j] = load(b + j * kWidth);
    SEPCONV_UNROLL(16)
    for (int i = 0; i < R; ++i) {
      const Vector left = broadcast(a[i]);
      SEPCONV_UNROLL(2)
      for (int j = 0; j < V; ++j) sum[i][j] += left * right[j];
    }
    if constexpr (ahead) {
      const float *nextA = a + kRowsAhead * aRow, *nextB = b + kRowsAhead * bRow;
      __builtin_prefetch(nextA);
      __builtin_prefetch(nextA + R - 1);
      __builtin_prefetch(nextB);
      __builtin_prefetch(nextB + kColumns - 1);
    }
    a += aRow;
    b += bRow;
  };
  const char* next = t.next;
  ptrdiff_t k = 0;
  for (; k + kFetch <= t.depth; k += kFetch, next += t.nextStep) {
    __builtin_prefetch(next, 0, 2);
    __builtin_prefetch(next + kFetchedLine, 0, 2);
    __builtin_prefetch(next + kFetchedBytes - 1, 0, 2);
    SEPCONV_UNROLL(4)
    for (int i = 0; i < kFetch; ++i) step();
  }
  for (; k < t.depth; ++k) step();
  const bool whole = t.columns >= kColumns;
  float* const c = whole ? t.c : edge;
  const ptrdiff_t cRow = whole ? t.cRow : static_cast<ptrdiff_t>(kColumns);
  if (whole && t.accumulate) {
    SEPCONV_UNROLL(16)
    for (int i = 0; i < R; ++i) SEPCONV_UNROLL(2)
    for (int j = 0; j < V; ++j) sum[i][j] += load(c + i * cRow + j * kWidth);
  }
  SEPCONV_UNROLL(16)
  for (int i = 0; i < R; ++i) SEPCONV_UNROLL(2)
  for (int j = 0; j < V; ++j) store(c + i * cRow + j * kWidth, sum[i][j]);
  if (!whole) copyOut(t, R, edge, kColumns);
}

template <int R, int V>
void multiplyOuterTile(const OuterTile& t) {
  multiplyOuter<R, V, false>(t);
}
template <int R, int V>
void multiplyFirstOuterTile(const OuterTile& t) {
  multiplyOuter<R, V, true>(t);
}

using OuterTileFunction = void (*)(const OuterTile&);
constexpr OuterTileFunction kOuterTiles[14] = SEPCONV_TILES(multiplyOuterTile, kRows, 2);
constexpr OuterTileFunction kFirstOuterTiles[14] = SEPCONV_TILES(multiplyFirstOuterTile, kRows, 2);
constexpr OuterTileFunction kNarrowOuterTiles[14] = SEPCONV_TILES(multiplyOuterTile, kNarrowRows, 1);

void outerProduct(const OuterProduct& p) {
  OuterTile tile;
  tile.aRow = p.aRow;
  tile.bRow = p.bRow;
  tile.depth = p.depth;
  tile.cRow = p.cRow;
  tile.accumulate = p.accumulate;
  Fetch fetch{p.upcoming, p.upcomingCount};
  for (ptrdiff_t column = 0; column < p.columns; column += kPanel) {
    tile.columns = smaller(kPanel, p.columns - column);
    const bool narrow = tile.columns <= kWidth;
    const ptrdiff_t tiles = quotientUp(p.rows, narrow ? kNarrowRows : kRows);
    tile.b = p.b + column;
    ptrdiff_t row = 0;
    for (ptrdiff_t i = 0; i < tiles; ++i) {
      const ptrdiff_t rows = (p.rows - row) / (tiles - i);
      tile.a = p.a + row;
      tile.c = p.c + row * p.cRow + column;
      tile.next = reinterpret_cast<const char*>(p.a);
      tile.nextStep = fetch.take(2 * quotientUp(p.depth, kFetch), &tile.next) > 0 ? kFetchedBytes : 0;
      if (!tile.nextStep && column + kPanel < p.columns) {  // the next panel's rows, from this tile's share of them on
        tile.next = reinterpret_cast<const char*>(tile.b + kPanel + i * p.depth / tiles * p.bRow);
        tile.nextStep = p.bRow * static_cast<ptrdiff_t>(sizeof(float));
      }
      const bool first = column == 0 || i == 0;
      (narrow ? kNarrowOuterTiles : first ? kFirstOuterTiles : kOuterTiles)[rows - 1](tile);
      row += rows;
    }
  }
}

void packColumns(const float* source, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t columns, float* packed) {
  for (ptrdiff_t k = 0; k < depth; ++k, source += row, packed += kPanel)
    for (ptrdiff_t j = 0; j < kPanel; j += kWidth) store(packed + j, loadColumns(source + j, columns - j));
}

// One step of a transposition: of rows i and i + h, lanes l + h of the first and l of the second change places, for all
// l without bit h.
template <int h>
inline void exchange(Vector& first, Vector& second) {
  const Vector a = first, b = second;
#if defined(__clang__)
  for (int l = 0; l < kWidth; ++l) {
    first[l] = l & h ? b[l - h] : a[l];
    second[l] = l & h ? b[l] : a[l + h];
  }
#else
  VectorInt upper, lower;
  for (int l = 0; l < kWidth; ++l) {
    upper[l] = l & h ? kWidth + l - h : l;
    lower[l] = l & h ? kWidth + l : l + h;
  }
  first = __builtin_shuffle(a, b, upper);
  second = __builtin_shuffle(a, b, lower);
#endif
}
template <int h>
inline void transpose(Vector (&rows)[kWidth]) {
  SEPCONV_UNROLL(16)
  for (int i = 0; i < kWidth; ++i)
    if (!(i & h)) exchange<h>(rows[i], rows[i + h]);
  if constexpr (2 * h < kWidth) transpose<2 * h>(rows);
}

void packTransposed(const float* source, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t columns, float* packed) {
  ptrdiff_t j = 0;
  for (; j + kWidth <= columns; j += kWidth) {
    ptrdiff_t k = 0;
    for (; k + kWidth <= depth; k += kWidth) {
      Vector block[kWidth];
      SEPCONV_UNROLL(16)
      for (int i = 0; i < kWidth; ++i) block[i] = load(source + (j + i) * row + k);
      transpose<1>(block);
      SEPCONV_UNROLL(16)
      for (int i = 0; i < kWidth; ++i) store(packed + (k + i) * kPanel + j, block[i]);
    }
    for (; k < depth; ++k)
      for (int i = 0; i < kWidth; ++i) packed[k * kPanel + j + i] = source[(j + i) * row + k];
  }
  enum { kBlock = 16 };  // one cache line of each source row at a time
  for (ptrdiff_t first = 0; first < depth && j < kPanel; first += kBlock) {
    const ptrdiff_t end = smaller(depth, first + kBlock);
    for (ptrdiff_t i = j; i < columns; ++i)
      for (ptrdiff_t k = first; k < end; ++k) packed[k * kPanel + i] = source[i * row + k];
    for (ptrdiff_t k = first; k < end; ++k)
      for (ptrdiff_t i = columns; i < kPanel; ++i) packed[k * kPanel + i] = 0;
  }
}

void activateAll(const float* source, float* target, ptrdiff_t n, int activation) {
  ptrdiff_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(target + i, activate(load(source + i), activation));
  if (i < n)
    storePartial(target + i, activate(loadPartial(source + i, static_cast<int>(n - i)), activation),
                 static_cast<int>(n - i));
}

// Four sums over every fourth row, so that the adds do not wait for each other.
template <class Term>
inline Vector columnSum(const float* source, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t columns, const Term& term) {
  Vector sum[4] = {};
  ptrdiff_t i = 0;
  for (; i + 4 <= rows; i += 4) SEPCONV_UNROLL(4)
  for (int q = 0; q < 4; ++q) sum[q] += term(loadColumns(source + (i + q) * row, columns));
  for (; i < rows; ++i) sum[0] += term(loadColumns(source + i * row, columns));
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

void columnMoments(const float* source, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t columns, float* mean,
                   float* deviations) {
  const Vector share = broadcast(1.0f / static_cast<float>(rows));
  for (ptrdiff_t j = 0; j < columns; j += kWidth) {
    const ptrdiff_t n = columns - j;
    const Vector average = columnSum(source + j, row, rows, n, [](Vector x) { return x; }) * share;
    storeColumns(mean + j, average, n);
    storeColumns(deviations + j,
                 columnSum(source + j, row, rows, n, [=](Vector x) { return (x - average) * (x - average); }), n);
  }
}

void sum(const float* source, ptrdiff_t stride, ptrdiff_t count, ptrdiff_t n, float* target) {
  for (ptrdiff_t i = 0; i < n; i += kWidth) {
    Vector total = loadColumns(source + i, n - i);
    for (ptrdiff_t s = 1; s < count; ++s) total += loadColumns(source + s * stride + i, n - i);
    storeColumns(target + i, total, n - i);
  }
}

}  // namespace gemm

constexpr GemmTable gemmTable = {
    gemm::kRows,       gemm::kPanel,         gemm::product,         gemm::outerProduct,
    gemm::packColumns, gemm::packTransposed, gemm::activateAll,     gemm::columnMoments,
    gemm::sum,         gemm::strassenLeft,   gemm::strassenProduct,
};
