// One level of Strassen's algorithm, on a tile of 2 R rows and two panels. With left A, right B and result C in
// quarters,
//
//   M1 = (A11 + A22)(B11 + B22)   M2 = (A21 + A22) B11   M3 = A11 (B12 - B22)   M4 = A22 (B21 - B11)
//   M5 = (A11 + A12) B22          M6 = (A21 - A11)(B11 + B12)   M7 = (A12 - A22)(B21 + B22)
//   C11 = M1 + M4 - M5 + M7   C12 = M3 + M5   C21 = M2 + M4   C22 = M1 - M2 + M3 + M6
//
// (Strassen 1969; Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 23.2.2: of the
// algorithms with seven products the one with the smaller error bound.) The left sums are made once per block of rows,
// since all panels use them. Those of the right operand are made in registers, as it is loaded: a store of them would
// be twice the filter's memory, or some 6 % of the products' time; units that add run idle beside those that multiply
// and add, and at most two panels' quarters stream from L2 (18 bytes a cycle). A tile's sums start where others have
// ended, so that of the 18 additions of the algorithm none is a pass of its own: five tiles of sums (1.8 KB each) wait
// in L1.

struct StrassenTile {
  Tile tile;
  const float* other;                // right operand: b + other or b - other
  const float *from, *plus, *minus;  // sums begin with from + plus - minus, rows kPanel apart; null: 0
};

// Steps of k by which lines of the panels are fetched into L1 ahead of their use: an L2 that answers late would hold up
// two streams.
enum { kAhead = 6 };

template <int R, int V>
inline __attribute__((always_inline)) void addSums(Vector (&sum)[R][V], const float* from, bool negative) {
  if (!from) return;
  SEPCONV_UNROLL(16)
  for (int i = 0; i < R; ++i) SEPCONV_UNROLL(2)
  for (int j = 0; j < V; ++j) {
    const Vector term = load(from + i * kPanel + j * kWidth);
    sum[i][j] = negative ? sum[i][j] - term : sum[i][j] + term;
  }
}

// kSign: of `other`; 0: without it.
template <int R, int kSign>
void strassenTile(const StrassenTile& t) {
  Vector sum[R][2] = {};
  addSums(sum, t.from, false);
  addSums(sum, t.plus, false);
  addSums(sum, t.minus, true);
  const float *a = t.tile.a, *b = t.tile.b;
  const ptrdiff_t aRow = t.tile.aRow, other = kSign ? t.other - b : 0;
  const auto step = [&](ptrdiff_t k) {
    __builtin_prefetch(b + kAhead * kPanel, 0, 3);
    __builtin_prefetch(b + kAhead * kPanel + kWidth, 0, 3);
    if (kSign) __builtin_prefetch(b + other + kAhead * kPanel, 0, 3);
    if (kSign) __builtin_prefetch(b + other + kAhead * kPanel + kWidth, 0, 3);
    Vector right[2];
    SEPCONV_UNROLL(2)
    for (int j = 0; j < 2; ++j) {
      right[j] = load(b + j * kWidth);
      if (kSign > 0) right[j] += load(b + other + j * kWidth);
      if (kSign < 0) right[j] -= load(b + other + j * kWidth);
    }
    SEPCONV_UNROLL(16)
    for (int i = 0; i < R; ++i) {
      const Vector left = broadcast(a[i * aRow + k]);
      SEPCONV_UNROLL(2)
      for (int j = 0; j < 2; ++j) sum[i][j] += left * right[j];
    }
    b += kPanel;
  };
  const char* next = t.tile.next;
  ptrdiff_t k = 0;
  for (; k < t.tile.fetched; ++k, next += kFetchedLine) {
    __builtin_prefetch(next, 0, 2);
    step(k);
  }
  for (; k < t.tile.depth; ++k) step(k);
  if (t.tile.last) applyEpilogue(t.tile, sum, true);
  SEPCONV_UNROLL(16)
  for (int i = 0; i < R; ++i) SEPCONV_UNROLL(2)
  for (int j = 0; j < 2; ++j) store(t.tile.c + i * t.tile.cRow + j * kWidth, sum[i][j]);
  if (t.tile.last && (t.tile.gate || t.tile.activation == kActivationElu)) finish(t.tile, R);
}

using StrassenTileFunction = void (*)(const StrassenTile&);
constexpr StrassenTileFunction kStrassenTiles[3][14] = {SEPCONV_TILES(strassenTile, kRows, -1),
                                                        SEPCONV_TILES(strassenTile, kRows, 0),
                                                        SEPCONV_TILES(strassenTile, kRows, 1)};

// A12 becomes A12 - A22 and A21 becomes A21 - A11: nothing else reads them. A row that the lower half lacks counts as
// zeros.
void strassenLeft(float* a, ptrdiff_t aRow, ptrdiff_t rows, ptrdiff_t k, float* s, ptrdiff_t sRow) {
  const ptrdiff_t half = k / 2, upper = (rows + 1) / 2;
  for (ptrdiff_t i = 0; i < upper; ++i) {
    const bool paired = upper + i < rows;
    float *a11 = a + i * aRow, *a12 = a11 + half, *a21 = a + (upper + i) * aRow, *a22 = a21 + half;
    float *both = s + i * sRow, *lower = s + (upper + i) * sRow, *across = s + (2 * upper + i) * sRow;
    for (ptrdiff_t j = 0; j < half; j += kWidth) {
      const ptrdiff_t n = half - j;
      const Vector x11 = loadColumns(a11 + j, n), x12 = loadColumns(a12 + j, n);
      const Vector x21 = paired ? loadColumns(a21 + j, n) : Vector{}, x22 = paired ? loadColumns(a22 + j, n) : Vector{};
      storeColumns(both + j, x11 + x22, n);
      storeColumns(across + j, x11 + x12, n);
      storeColumns(a12 + j, x12 - x22, n);
      if (!paired) continue;
      storeColumns(lower + j, x21 + x22, n);
      storeColumns(a21 + j, x21 - x11, n);
    }
  }
}

void strassenProduct(const StrassenProduct& p) {
  enum { kPlain = 1, kPlus = 2, kMinus = 0 };
  const ptrdiff_t half = p.k / 2, upper = (p.rows + 1) / 2, lower = p.rows - upper;
  const float *a11 = p.a, *a12 = a11 + half, *a21 = p.a + upper * p.aRow, *a22 = a21 + half;
  const float *both = p.s, *below = p.s + upper * p.sRow, *across = p.s + 2 * upper * p.sRow;
  const float *b11 = p.b, *b21 = b11 + half * kPanel, *b12 = b11 + p.k * kPanel, *b22 = b12 + half * kPanel;
  alignas(64) float scale[2 * kPanel], shift[2 * kPanel];
  alignas(64) float m1[kRows * kPanel], m2[kRows * kPanel], m3[kRows * kPanel], m4[kRows * kPanel], m5[kRows * kPanel];
  for (ptrdiff_t j = 0; j < 2 * kPanel; ++j) {
    scale[j] = p.epilogue.scale ? p.epilogue.scale[j] : 1;
    shift[j] = p.epilogue.shift ? p.epilogue.shift[j] : 0;
  }
  StrassenTile t{};
  Fetch fetch{p.upcoming, p.upcomingCount};
  t.tile.depth = half;
  t.tile.columns = kPanel;
  t.tile.activation = p.epilogue.activation;
  t.tile.gateActivation = p.epilogue.gateActivation;
  const auto multiply = [&](int sign, const float* left, ptrdiff_t row, const float* right, const float* other,
                            ptrdiff_t rows) {
    t.tile.a = left;
    t.tile.aRow = row;
    t.tile.b = right;
    t.other = other;
    if (rows == 0) return;
    t.tile.fetched = fetch.take(t.tile.depth, &t.tile.next);
    kStrassenTiles[sign][rows - 1](t);
  };
  const auto into = [&](float* sums) {
    t.tile.last = false;
    t.tile.c = sums;
    t.tile.cRow = kPanel;
    t.from = t.plus = t.minus = nullptr;
  };
  const auto finishAt = [&](ptrdiff_t row, ptrdiff_t panel, const float* from, const float* plus, const float* minus) {
    const ptrdiff_t offset = row * p.cRow + panel * kPanel;
    t.tile.last = true;
    t.tile.c = p.c + offset;
    t.tile.cRow = p.cRow;
    t.tile.residual = p.epilogue.residual ? p.epilogue.residual + offset : nullptr;
    t.tile.gate = p.epilogue.gate ? p.epilogue.gate + offset : nullptr;
    t.tile.scale = scale + panel * kPanel;
    t.tile.shift = shift + panel * kPanel;
    t.from = from;
    t.plus = plus;
    t.minus = minus;
  };
  into(m1);
  multiply(kPlus, both, p.sRow, b11, b22, upper);
  into(m2);
  multiply(kPlain, below, p.sRow, b11, nullptr, lower);
  into(m3);
  multiply(kMinus, a11, p.aRow, b12, b22, upper);
  into(m5);
  multiply(kPlain, across, p.sRow, b22, nullptr, upper);
  if (lower < upper)
    for (ptrdiff_t j = 0; j < kPanel; ++j) m4[lower * kPanel + j] = 0;
  into(m4);
  multiply(kMinus, a22, p.aRow, b21, b11, lower);
  // M4 comes in last, through a buffer of its own: C11 = M1 + M4 - M5 + M7.
  finishAt(0, 0, m1, m4, m5);
  multiply(kPlus, a12, p.aRow, b21, b22, upper);
  // C22 = (M3 - M2 + M1) + M6
  finishAt(upper, 1, m1, m3, m2);
  multiply(kPlus, a21, p.aRow, b11, b12, lower);
  t.tile.depth = 0;
  finishAt(0, 1, m3, m5, nullptr);
  multiply(kPlain, a11, p.aRow, b11, nullptr, upper);
  finishAt(upper, 0, m2, m4, nullptr);
  multiply(kPlain, a11, p.aRow, b11, nullptr, lower);
}
