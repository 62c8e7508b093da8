// The matrix product on bfloat16 operands. Blocks are those of gemm.cc: at half the bytes per element a block of the
// same size in L2 has twice the rows, so that the filter passes half as often.
#include <algorithm>

#include "../shared_blocks.h"
#include "bf16.h"
#include "checks.h"

namespace sepconv::cpu::bf16 {
namespace {

constexpr int64_t kBlockRows = 98, kBlockElements = 320 << 10;
constexpr int64_t kPartColumns = 64;
constexpr int64_t kTaskWork = 1 << 19;  // fewest multiply-adds worth a part of its own: some 2 us

}  // namespace

void packPanels(ThreadPool& pool, const Bf16Table& table, const uint16_t* filter, const Panels& panels,
                uint16_t* packed) {
  const Split pieces{panels.pairs(), std::max<int64_t>(1, std::min(panels.pairs() / 16, panels.elements() >> 14))};
  pool.run(pieces.parts, [&](int64_t task, int) {
    const int64_t begin = pieces.begin(task), end = pieces.end(task);
    for (int64_t p = 0; p < panels.count(); ++p)
      table.packColumns(filter + 2 * begin * panels.n + p * panels.panel, panels.n,
                        std::min(2 * end, panels.k) - 2 * begin, std::min(panels.panel, panels.n - p * panels.panel),
                        panels.panel, activationValue(Activation::none),
                        packed + (p * panels.pairs() + begin) * panels.panel * 2);
  });
}

void packTransposedPanels(ThreadPool& pool, const Bf16Table& table, const uint16_t* filter, const Panels& panels,
                          uint16_t* packed) {
  pool.run(panels.count(), [&](int64_t p, int) {
    table.packTransposed(filter + p * panels.panel * panels.k, panels.k, panels.k,
                         std::min(panels.panel, panels.n - p * panels.panel),
                         packed + p * panels.pairs() * panels.panel * 2);
  });
}

FilterInput::FilterInput(const CallDescription& call, size_t index, const SimdTable& simd,
                         const std::vector<int64_t>& shape)
    : index_(index), packed_(call.attributes.flag("packed")) {
  panels_.n = shape.back();
  panels_.k = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) panels_.k *= shape[i];
  panels_.panel = simd.gemm.panel;
  expectType(
      call, packed_ ? "packed filter" : "filter", call.input(index),
      {DType::bfloat16, packed_ ? std::vector<int64_t>{panels_.count(), panels_.pairs(), panels_.panel, 2} : shape});
}

const uint16_t* FilterInput::at(const Arguments& arguments, const Bf16Table& table, void* workspace) const {
  const uint16_t* filter = arguments.input<uint16_t>(index_);
  if (packed_) return filter;
  uint16_t* packed = static_cast<uint16_t*>(workspace);
  packPanels(arguments.pool, table, filter, panels_, packed);
  return packed;
}

EpilogueInputs::EpilogueInputs(const CallDescription& call, size_t first, int64_t n, const TensorType& y)
    : first_(first), activation_(activationValue(activation(call.attributes, "activation"))) {
  const char* const roles[] = {"scale", "shift", "residual"};
  for (size_t i = 0; i < 3; ++i) {
    present_[i] = call.has(first + i);
    if (present_[i]) expectType(call, roles[i], call.input(first + i), i < 2 ? TensorType{DType::float32, {n}} : y);
  }
}

Bf16Epilogue EpilogueInputs::at(const Arguments& arguments) const {
  return {present_[0] ? arguments.input(first_) : nullptr,
          present_[1] ? arguments.input(first_ + 1) : nullptr,
          present_[2] ? arguments.input<uint16_t>(first_ + 2) : nullptr,
          nullptr,
          activation_,
          activationValue(Activation::none)};
}

MatrixProduct::MatrixProduct(const SimdTable& simd, int64_t rows, int64_t k, int64_t n, bool staged, bool statistics)
    : simd_(&simd), rows_(rows), k_(k), n_(n), staged_(staged), statistics_(statistics) {
  const int64_t tileRows = simd.bf16->rows, tile = tileRows * stagedRow(k);
  const int64_t tilesPerBlock = std::clamp<int64_t>(kBlockElements / tile, 1, kBlockRows / tileRows);
  const int64_t tiles = quotientUp(rows, tileRows);
  blocks_ = RowBlocks(rows, tileRows, std::max<int64_t>(1, (tiles + tilesPerBlock / 2) / tilesPerBlock));
  const int64_t panel = simd.gemm.panel, panels = quotientUp(n, panel),
                group = std::max<int64_t>(1, kPartColumns / panel);
  const int64_t worth = std::max<int64_t>(1, rows * k * n / kTaskWork / blocks_.count());
  columns_ = {panels, std::min(quotientUp(panels, group), worth)};
}

// As in gemm.cc: where few blocks meet many threads, every thread gets as many as any other.
RowBlocks MatrixProduct::blocksFor(int threads) const {
  const int64_t tiles = blocks_.tiles.size, count = blocks_.count();
  if (statistics_ || threads == 1 || count >= 4 * threads || columns_.parts == 1) return blocks_;
  return RowBlocks(rows_, simd_->bf16->rows,
                   std::clamp<int64_t>(quotientUp(count, threads) * threads, 1, quotientUp(tiles, 2)));
}

void MatrixProduct::run(ThreadPool& pool, const uint16_t* left, const Fill& fill, const uint16_t* packed, uint16_t* y,
                        const Bf16Epilogue& epilogue, float* mean, float* variance, void* workspace) const {
  const Bf16Table& table = *simd_->bf16;
  const int64_t panel = simd_->gemm.panel;
  const RowBlocks blocks = blocksFor(pool.threads());
  const int64_t stride = staged_ ? stagedRow(k_) : k_;
  const auto prepare = [&](int64_t block, int thread) -> const uint16_t* {
    const int64_t begin = blocks.begin(block), end = blocks.end(block);
    if (!staged_) return left + begin * k_;
    auto* scratch =
        static_cast<uint16_t*>(pool.scratch(thread, static_cast<size_t>(blocks.largest() * stride) * sizeof(uint16_t)));
    fill(begin, end, scratch);
    if (k_ % 2)
      for (int64_t row = 0; row < end - begin; ++row) scratch[row * stride + k_] = 0;
    return scratch;
  };
  runBlocks(
      pool, blocks.count(), columns_.parts, prepare, [&](int64_t block, int64_t part, const uint16_t* a, int64_t) {
        const int64_t begin = blocks.begin(block), column = columns_.begin(part) * panel, offset = begin * n_ + column;
        Bf16Product product;
        product.a = a;
        product.aRow = stride;
        product.pairs = quotientUp(k_, 2);
        product.b = packed + 2 * column * product.pairs;
        product.c = y + offset;
        product.cRow = n_;
        product.rows = blocks.end(block) - begin;
        product.columns = std::min(n_, columns_.end(part) * panel) - column;
        product.epilogue = epilogue;
        if (epilogue.scale) product.epilogue.scale += column;
        if (epilogue.shift) product.epilogue.shift += column;
        if (epilogue.residual) product.epilogue.residual += offset;
        if (epilogue.gate) product.epilogue.gate += offset;
        table.product(product);
        if (statistics_) {  // of what is stored, in columns that are still in cache
          float* target = static_cast<float*>(workspace) + 2 * block * n_ + column;
          table.columnMoments(product.c, n_, product.rows, product.columns, target, target + n_);
        }
      });
  if (statistics_) combineMoments(pool, blocks_, n_, static_cast<const float*>(workspace), mean, variance);
}

}  // namespace sepconv::cpu::bf16
