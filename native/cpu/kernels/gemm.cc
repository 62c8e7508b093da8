// Blocking of the matrix products. A block of about 16 register tiles of rows (96 rows with AVX2, 7 tiles or 98 rows
// with AVX-512) keeps its share of the left operand (512 of k at a time, 196 KB) in L2 while the panels of the filter
// pass by, each read once per block: some 64 bytes per 96 rows and cycle, which any L3 gives. Few rows are made up for
// by cutting the columns as well. A staged operand is filled into a thread's scratch where its block meets all columns;
// where columns are cut it is filled once, into the workspace, before.
#include "gemm.h"

#include <algorithm>

#include "checks.h"

namespace sepconv::cpu {
namespace {

constexpr int64_t kBlockRows = 96;
// Fewest multiply-adds worth a task: some 10 us.
constexpr int64_t kTaskWork = 1 << 19;
// Filling a staged operand block by block needs that many blocks to feed all threads; their rows may be half as many.
constexpr int64_t kFusedBlocks = 16;

}  // namespace

void packPanels(ThreadPool& pool, const GemmTable& gemm, const float* filter, int64_t row, const Panels& panels,
                float* packed) {
  const Split depths{
      panels.k, std::max<int64_t>(1, std::min(quotientUp(panels.k, 32), quotientUp(panels.k * panels.n, 1 << 14)))};
  pool.run(depths.parts, [&](int64_t task, int) {
    const int64_t begin = depths.begin(task), depth = depths.end(task) - begin;
    for (int64_t p = 0; p < panels.count(); ++p)
      gemm.packColumns(filter + begin * row + p * panels.panel, row, depth,
                       std::min(panels.panel, panels.n - p * panels.panel), panels.panel,
                       activationValue(Activation::none), packed + (p * panels.k + begin) * panels.panel);
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

Epilogue advance(const Epilogue& epilogue, int64_t elements, int64_t columns) {
  Epilogue moved = epilogue;
  if (moved.scale) moved.scale += columns;
  if (moved.shift) moved.shift += columns;
  if (moved.residual) moved.residual += elements;
  if (moved.gate) moved.gate += elements;
  return moved;
}

MatrixProduct::MatrixProduct(const GemmTable& gemm, int64_t rows, int64_t k, int64_t n, bool staged, bool statistics)
    : gemm_(&gemm), rows_(rows), k_(k), n_(n), staged_(staged), statistics_(statistics) {
  const int64_t tiles = quotientUp(rows, gemm.rows), tilesPerBlock = std::max<int64_t>(1, kBlockRows / gemm.rows);
  const int64_t panelCount = quotientUp(n, gemm.panel), work = std::max<int64_t>(1, rows * k * n / kTaskWork);
  int64_t blocks = std::max<int64_t>(1, (tiles + tilesPerBlock / 2) / tilesPerBlock);
  if (staged && blocks < kTasks) {
    const int64_t finer = std::min(std::max<int64_t>(1, 2 * tiles / tilesPerBlock), kTasks);
    if (finer >= kFusedBlocks) blocks = std::max(blocks, finer);
  }
  const bool fused = staged && blocks >= kFusedBlocks;
  columns_ = {
      panelCount,
      fused ? 1 : std::clamp(std::min(quotientUp(kTasks, blocks), quotientUp(work, blocks)), int64_t{1}, panelCount)};
  blocks_ = RowBlocks(rows, gemm.rows, blocks);
}

void MatrixProduct::run(ThreadPool& pool, const float* left, const Fill& fill, const float* packed, float* y,
                        const Epilogue& epilogue, float* mean, float* variance, float* workspace) const {
  const GemmTable& gemm = *gemm_;
  const int64_t stride = staged_ ? stagedRow(k_) : k_;
  float* const stage = stageFloats() ? workspace : nullptr;
  float* const moments = workspace + stageFloats();  // [block][mean, deviations][n]
  if (stage) {
    const Split pieces{rows_, std::clamp(rows_ / 8, int64_t{1}, kTasks)};
    pool.run(pieces.parts, [&](int64_t piece, int) {
      fill(pieces.begin(piece), pieces.end(piece), stage + pieces.begin(piece) * stride);
    });
  }
  const ptrdiff_t origin = 0;
  pool.run(blocks_.count() * columns_.parts, [&](int64_t task, int thread) {
    const int64_t block = task % blocks_.count(), begin = blocks_.begin(block), rows = blocks_.end(block) - begin;
    const int64_t part = task / blocks_.count();
    const float* a;
    if (stage) {
      a = stage + begin * stride;
    } else if (staged_) {
      float* scratch = static_cast<float*>(pool.scratch(thread, static_cast<size_t>(rows * stride) * sizeof(float)));
      fill(begin, begin + rows, scratch);
      a = scratch;
    } else {
      a = left + begin * k_;
    }
    const int64_t last = std::min(n_, columns_.end(part) * gemm.panel);
    // Statistics are taken of a few columns at a time, while they are in cache.
    const int64_t step = statistics_ ? 4 * gemm.panel : last;
    for (int64_t column = columns_.begin(part) * gemm.panel; column < last; column += step) {
      const int64_t columns = std::min(step, last - column);
      Product product;
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
      product.columns = columns;
      product.epilogue = advance(epilogue, begin * n_ + column, column);
      gemm.product(product);
      if (statistics_) {
        float* target = moments + 2 * block * n_ + column;
        gemm.columnMoments(product.c, n_, rows, columns, target, target + n_);
      }
    }
  });
  if (statistics_) combineMoments(pool, moments, mean, variance);
}

// Mean of the blocks' means, then the sum of their squared deviations from it, in float64 and in the blocks' order.
void MatrixProduct::combineMoments(ThreadPool& pool, const float* moments, float* mean, float* variance) const {
  constexpr int64_t kColumns = 32;
  pool.run(quotientUp(n_, kColumns), [&](int64_t task, int) {
    const int64_t first = task * kColumns, columns = std::min(kColumns, n_ - first);
    double sum[kColumns] = {}, deviations[kColumns] = {};
    for (int64_t block = 0; block < blocks_.count(); ++block) {
      const double rows = static_cast<double>(blocks_.end(block) - blocks_.begin(block));
      const float* source = moments + 2 * block * n_ + first;
      for (int64_t j = 0; j < columns; ++j) sum[j] += rows * source[j];
    }
    for (int64_t j = 0; j < columns; ++j) sum[j] /= static_cast<double>(rows_);
    for (int64_t block = 0; block < blocks_.count(); ++block) {
      const double rows = static_cast<double>(blocks_.end(block) - blocks_.begin(block));
      const float* source = moments + 2 * block * n_ + first;
      for (int64_t j = 0; j < columns; ++j) {
        const double distance = source[j] - sum[j];
        deviations[j] += source[n_ + j] + rows * distance * distance;
      }
    }
    for (int64_t j = 0; j < columns; ++j) {
      mean[first + j] = static_cast<float>(sum[j]);
      variance[first + j] = static_cast<float>(deviations[j] / static_cast<double>(rows_));
    }
  });
}

}  // namespace sepconv::cpu
