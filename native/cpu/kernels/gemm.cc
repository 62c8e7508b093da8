// Blocking of the matrix products. A block of rows (98 with AVX-512: 7 register tiles) stays in its thread's L2 (286 KB
// at k = 728, 640 KB at most) while the panels of the filter pass by, one after the other; a panel (93 KB) stays there
// while the block's tiles pass by. Per cycle a tile then reads 9 bytes of filter and 4 of the left operand from L2,
// and 1.3 of filter from L3: a sixth of what those give. A staged operand is filled into the thread's own scratch, so
// that a separable convolution's depthwise result never leaves L2. Threads share blocks as ../shared_blocks.h says.
#include "gemm.h"

#include <algorithm>

#include "../shared_blocks.h"
#include "checks.h"

namespace sepconv::cpu {
namespace {

constexpr int64_t kBlockRows = 98, kBlockFloats = 160 << 10;
// Groups of two register tiles in a block of Strassen's algorithm: 112 rows with AVX-512. At k = 728 operand and sums
// take 570 KB of L2, a pair of panels 186 KB and the next one as much; with fewer rows panels come from L3 too often
// (measured), with more nothing is won.
constexpr int64_t kBlockGroups = 4;
// Columns of a part: statistics find them in cache, and a straggler holds the others up for some 30 us.
constexpr int64_t kPartColumns = 64;
// Fewest multiply-adds worth a part of its own: some 2 us.
constexpr int64_t kTaskWork = 1 << 18;

}  // namespace

void packPanels(ThreadPool& pool, const GemmTable& gemm, const float* filter, int64_t row, const Panels& panels,
                float* packed) {
  const Split depths{
      panels.k, std::max<int64_t>(1, std::min(quotientUp(panels.k, 32), quotientUp(panels.k * panels.n, 1 << 14)))};
  pool.run(depths.parts, [&](int64_t task, int) {
    const int64_t begin = depths.begin(task), depth = depths.end(task) - begin;
    for (int64_t p = 0; p < panels.count(); ++p)
      gemm.packColumns(filter + begin * row + p * panels.panel, row, depth,
                       std::min(panels.panel, panels.n - p * panels.panel),
                       packed + (p * panels.k + begin) * panels.panel);
  });
}

void packTransposedPanels(ThreadPool& pool, const GemmTable& gemm, const float* filter, int64_t row,
                          const Panels& panels, float* packed) {
  pool.run(panels.count(), [&](int64_t p, int) {
    gemm.packTransposed(filter + p * panels.panel * row, row, panels.k,
                        std::min(panels.panel, panels.n - p * panels.panel), packed + p * panels.k * panels.panel);
  });
}

EpilogueInputs::EpilogueInputs(const CallDescription& call, size_t first, int64_t n, const TensorType& y)
    : first_(first), activation_(activationValue(activation(call.attributes, "activation"))) {
  const char* const roles[] = {"scale", "shift", "residual"};
  for (size_t i = 0; i < 3; ++i) {
    present_[i] = call.has(first + i);
    if (present_[i]) expectType(call, roles[i], call.input(first + i), i < 2 ? TensorType{DType::float32, {n}} : y);
  }
}

Epilogue EpilogueInputs::at(const Arguments& arguments) const {
  const auto input = [&](size_t i) { return present_[i] ? arguments.input(first_ + i) : nullptr; };
  return {input(0), input(1), input(2), nullptr, activation_, activationValue(Activation::none)};
}

GateInput::GateInput(const CallDescription& call, size_t index, const TensorType& dx)
    : index_(index), activation_(activationValue(activation(call.attributes, "inputActivation"))) {
  if (activation_ == activationValue(Activation::none)) return;
  if (!call.has(index)) fail(call, "ERR_SHAPE", "x is missing, which inputActivation needs");
  expectType(call, "x", call.input(index), dx);
}

Epilogue GateInput::at(const Arguments& arguments) const {
  const int none = activationValue(Activation::none);
  return {nullptr, nullptr, nullptr, activation_ == none ? nullptr : arguments.input(index_), none, activation_};
}

FilterInput::FilterInput(const CallDescription& call, size_t index, const GemmTable& gemm,
                         const std::vector<int64_t>& shape)
    : index_(index), packed_(call.attributes.flag("packed")) {
  panels_.n = shape.back();
  panels_.k = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) panels_.k *= shape[i];
  panels_.panel = gemm.panel;
  const TensorType expected{DType::float32,
                            packed_ ? std::vector<int64_t>{panels_.count(), panels_.k, panels_.panel} : shape};
  if (packed_ && call.input(index).shape != expected.shape)
    fail(call, "ERR_SHAPE",
         "packed filter: expected shape " + formatShape(expected.shape) + ", got " + formatType(call.input(index)) +
             "; panels of another width belong to another instruction set");
  expectType(call, "filter", call.input(index), expected);
}

const float* FilterInput::at(const Arguments& arguments, const GemmTable& gemm, float* workspace) const {
  const float* filter = arguments.input(index_);
  if (packed_) return filter;
  packPanels(arguments.pool, gemm, filter, panels_.n, panels_, workspace);
  return workspace;
}

bool strassenFlag(const CallDescription& call, int64_t k) {
  const bool strassen = call.attributes.flag("strassen");
  if (strassen && (k < 2 || k % 2 != 0))
    fail(call, "ERR_ARGUMENT", "strassen: k must be even, got " + std::to_string(k));
  return strassen;
}

Epilogue advance(const Epilogue& epilogue, int64_t elements, int64_t columns) {
  Epilogue moved = epilogue;
  if (moved.scale) moved.scale += columns;
  if (moved.shift) moved.shift += columns;
  if (moved.residual) moved.residual += elements;
  if (moved.gate) moved.gate += elements;
  return moved;
}

MatrixProduct::MatrixProduct(const GemmTable& gemm, int64_t rows, int64_t k, int64_t n, bool staged, bool statistics,
                             bool strassen)
    : gemm_(&gemm), rows_(rows), k_(k), n_(n), staged_(staged), statistics_(statistics), strassen_(strassen) {
  if (strassen) {
    // An even number of groups, so that two threads get as many: 361 rows are 13 groups of 28 or 14 of 26.
    const int64_t groups = quotientUp(rows, 2 * gemm.rows), even = groups > 1 ? quotientUp(groups, 2) * 2 : 1;
    blocks_.rows = rows;
    blocks_.tiles = {even, quotientUp(even, kBlockGroups)};
    columns_ = {n / (2 * gemm.panel), n / (2 * gemm.panel)};
    return;
  }
  const int64_t tileFloats = gemm.rows * stagedRow(k);
  const int64_t tilesPerBlock = std::clamp<int64_t>(kBlockFloats / tileFloats, 1, kBlockRows / gemm.rows);
  const int64_t tiles = quotientUp(rows, gemm.rows);
  blocks_ = RowBlocks(rows, gemm.rows, std::max<int64_t>(1, (tiles + tilesPerBlock / 2) / tilesPerBlock));
  const int64_t panels = quotientUp(n, gemm.panel), group = std::max<int64_t>(1, kPartColumns / gemm.panel);
  const int64_t worth = std::max<int64_t>(1, rows * k * n / kTaskWork / blocks_.count());
  columns_ = {panels, std::min(quotientUp(panels, group), worth)};
}

// Where few blocks meet many threads, every thread gets as many as any other; statistics are sums over blocks, whose
// number is therefore a matter of shape.
RowBlocks MatrixProduct::blocksFor(int threads) const {
  const int64_t tiles = blocks_.tiles.size, count = blocks_.count();
  if (statistics_ || threads == 1 || count >= 4 * threads || columns_.parts == 1) return blocks_;
  return blocks_.in(std::clamp<int64_t>(quotientUp(count, threads) * threads, 1, quotientUp(tiles, 2)));
}

MatrixProduct::Coming MatrixProduct::Coming::part(int64_t part, int64_t parts) const {
  Coming share = *this;
  for (Upcoming& piece : share.pieces) {
    const int64_t lines = piece.floats / 16, from = lines * part / parts * 16, to = lines * (part + 1) / parts * 16;
    piece = {piece.data + from, to - from};
  }
  return share;
}

MatrixProduct::Coming MatrixProduct::coming(const RowBlocks& blocks, int64_t block, const Left& left, const float* y,
                                            const Epilogue& epilogue) const {
  Coming coming{};
  if (block < 0) return coming;
  const int64_t begin = blocks.begin(block), rows = blocks.end(block) - begin;
  const auto piece = [&](const float* matrix) { return Upcoming{matrix + begin * n_, matrix ? rows * n_ : 0}; };
  if (left.rows)
    coming.pieces[0] = {left.rows + begin * k_, rows * k_};
  else if (left.ahead)
    coming.pieces[0] = left.ahead(begin, begin + rows);
  coming.pieces[1] = piece(epilogue.residual);
  coming.pieces[2] = piece(epilogue.gate);
  coming.pieces[3] = piece(y);
  return coming;
}

void MatrixProduct::run(ThreadPool& pool, const Left& left, const float* packed, float* y, const Epilogue& epilogue,
                        float* mean, float* variance, float* workspace) const {
  if (strassen_) {
    runStrassen(pool, left, packed, y, epilogue);
    return;
  }
  const GemmTable& gemm = *gemm_;
  const RowBlocks blocks = blocksFor(pool.threads());
  const int64_t stride = staged_ ? stagedRow(k_) : k_;
  const ptrdiff_t origin = 0;
  const auto prepare = [&](int64_t block, int thread) -> const float* {
    const int64_t begin = blocks.begin(block), end = blocks.end(block);
    if (!staged_) return left.rows + begin * k_;
    auto* scratch =
        static_cast<float*>(pool.scratch(thread, static_cast<size_t>(blocks.largest() * stride) * sizeof(float)));
    left.fill(begin, end, scratch, {});
    return scratch;
  };
  runBlocks(pool, blocks.count(), columns_.parts, prepare,
            [&](int64_t block, int64_t part, const float* a, int64_t following) {
              const int64_t begin = blocks.begin(block), rows = blocks.end(block) - begin;
              const int64_t column = columns_.begin(part) * gemm.panel;
              const Coming pieces = coming(blocks, following, left, y, epilogue).part(part, columns_.parts);
              Product product;
              product.upcoming = pieces.pieces;
              product.upcomingCount = 4;
              product.a = a;
              product.aLine = 0;
              product.aRow = stride;
              product.segments = &origin;
              product.segmentCount = 1;
              product.depth = k_;
              product.b = packed + column * k_;
              product.c = y + begin * n_ + column;
              product.cLine = 0;
              product.cRow = n_;
              product.lines = 1;
              product.rows = rows;
              product.columns = std::min(n_, columns_.end(part) * gemm.panel) - column;
              product.epilogue = advance(epilogue, begin * n_ + column, column);
              gemm.product(product);
              if (statistics_) {  // of columns that are still in cache
                float* target = workspace + 2 * block * n_ + column;
                gemm.columnMoments(product.c, n_, rows, product.columns, target, target + n_);
              }
            });
  if (statistics_) combineMoments(pool, blocks_, n_, workspace, mean, variance);
}

// A block's rows come in groups of two register tiles, whose left operand and sums (1.75 times as large) stay in L2
// beside the pair of panels that passes by. Groups are a matter of shape alone, so results do not depend on threads.
// Columns beyond the last pair of whole panels are multiplied in the plain way, before the sums take the place of two
// quarters of the operand.
void MatrixProduct::runStrassen(ThreadPool& pool, const Left& left, const float* packed, float* y,
                                const Epilogue& epilogue) const {
  const GemmTable& gemm = *gemm_;
  const RowBlocks blocks = blocksFor(pool.threads());
  const int64_t stride = stagedRow(k_), sumStride = stagedRow(k_ / 2), groupSums = 3 * gemm.rows * sumStride;
  const int64_t pair = 2 * gemm.panel, paired = columns_.size * pair;
  const ptrdiff_t origin = 0;
  const auto prepare = [&](int64_t block, int thread) -> float* {
    const int64_t begin = blocks.begin(block), rows = blocks.end(block) - begin;
    const int64_t groups = quotientUp(blocks.tiles.size, blocks.tiles.parts);
    auto* a = static_cast<float*>(
        pool.scratch(thread, static_cast<size_t>(blocks.largest() * stride + groups * groupSums) * sizeof(float)));
    // The columns beyond the last pair are the first to be multiplied.
    const int64_t rest = quotientUp(n_ - paired, gemm.panel) * gemm.panel * k_;
    left.fill(begin, begin + rows, a, rest ? Upcoming{packed + paired * k_, rest} : Upcoming{packed, pair * k_});
    if (paired < n_) {
      const Upcoming firstPair = {packed, pair * k_};
      Product product{};
      product.upcoming = &firstPair;
      product.upcomingCount = 1;
      product.a = a;
      product.aRow = stride;
      product.segments = &origin;
      product.segmentCount = product.lines = 1;
      product.depth = k_;
      product.b = packed + paired * k_;
      product.c = y + begin * n_ + paired;
      product.cRow = n_;
      product.rows = rows;
      product.columns = n_ - paired;
      product.epilogue = advance(epilogue, begin * n_ + paired, paired);
      gemm.product(product);
    }
    float* sums = a + blocks.largest() * stride;
    forEachGroup(blocks, block, [&](int64_t row, int64_t count) {
      gemm.strassenLeft(a + (row - begin) * stride, stride, count, k_, sums, sumStride);
      sums += groupSums;
    });
    return a;
  };
  runBlocks(
      pool, blocks.count(), columns_.parts, prepare,
      [&](int64_t block, int64_t part, const float* a, int64_t following) {
        const int64_t begin = blocks.begin(block), column = part * pair;
        const float* sums = a + blocks.largest() * stride;
        // The next pair of panels comes from memory while this one is multiplied, and this part's share of what the
        // next block wants; each group of rows fetches its share of both.
        const int64_t groups = blocks.tiles.end(block) - blocks.tiles.begin(block);
        const Upcoming panels = {packed + (column + pair) * k_, part + 1 < columns_.parts ? pair * k_ : 0};
        const Coming pieces = coming(blocks, following, left, y, epilogue).part(part, columns_.parts);
        int64_t group = 0;
        forEachGroup(blocks, block, [&](int64_t row, int64_t count) {
          const Coming share = pieces.part(group, groups);
          const Coming panelShare = Coming{{panels}}.part(group, groups);
          const Upcoming upcoming[] = {panelShare.pieces[0], share.pieces[0], share.pieces[1], share.pieces[3]};
          gemm.strassenProduct({a + (row - begin) * stride, stride, sums, sumStride, count, k_, packed + column * k_,
                                y + row * n_ + column, n_, advance(epilogue, row * n_ + column, column), upcoming, 4});
          sums += groupSums;
          ++group;
        });
      });
}

// Mean of the blocks' means, then the sum of their squared deviations from it, in float64 and in the blocks' order.
void combineMoments(ThreadPool& pool, const RowBlocks& blocks, int64_t n, const float* moments, float* mean,
                    float* variance) {
  constexpr int64_t kColumns = 32;
  pool.run(quotientUp(n, kColumns), [&](int64_t task, int) {
    const int64_t first = task * kColumns, columns = std::min(kColumns, n - first);
    double sum[kColumns] = {}, deviations[kColumns] = {};
    for (int64_t block = 0; block < blocks.count(); ++block) {
      const double rows = static_cast<double>(blocks.end(block) - blocks.begin(block));
      const float* source = moments + 2 * block * n + first;
      for (int64_t j = 0; j < columns; ++j) sum[j] += rows * source[j];
    }
    for (int64_t j = 0; j < columns; ++j) sum[j] /= static_cast<double>(blocks.rows);
    for (int64_t block = 0; block < blocks.count(); ++block) {
      const double rows = static_cast<double>(blocks.end(block) - blocks.begin(block));
      const float* source = moments + 2 * block * n + first;
      for (int64_t j = 0; j < columns; ++j) {
        const double distance = source[j] - sum[j];
        deviations[j] += source[n + j] + rows * distance * distance;
      }
    }
    for (int64_t j = 0; j < columns; ++j) {
      mean[first + j] = static_cast<float>(sum[j]);
      variance[first + j] = static_cast<float>(deviations[j] / static_cast<double>(blocks.rows));
    }
  });
}

}  // namespace sepconv::cpu
