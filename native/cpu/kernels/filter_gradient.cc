// Pixels are far more numerous than channels, so the sum over pixels is what gets cut: a task takes a block of the
// result and a share of the pixels, both fixed by shape, and walks over them kDepth at a time. Each time both operands
// are packed into panels (a block of 256 x 384 costs 3 % of its product to pack), the left one from rows of im2col
// gathered in cache if the kernel is larger than 1x1. Shares of the pixels end up in partial results, added in order.
#include "filter_gradient.h"

#include <algorithm>

namespace sepconv::cpu {
namespace {

// 256 rows x 192 pixels of the left operand stay in L2 (196 KB) while panels of the right one pass through L1 (12 KB
// with AVX2).
constexpr int64_t kDepth = 192, kBlockRows = 256, kBlockColumns = 384;
constexpr int64_t kSplitPixels = 512;                 // fewest pixels that are worth a partial result
constexpr int64_t kPartialFloats = int64_t{8} << 20;  // most floats of all partial results

// Height of the left panels: the one that wastes the fewest rows, counting one row per panel for its loads of the right
// operand.
int64_t panelHeight(int64_t rows, int64_t most) {
  int64_t best = most, bestCost = INT64_MAX;
  for (int64_t height = most; height >= std::max<int64_t>(1, most - 4); --height) {
    const int64_t cost = quotientUp(rows, height) * (height + 1);
    if (cost < bestCost) best = height, bestCost = cost;
  }
  return best;
}

inline void copyFloats(const float* source, int64_t n, float* target) {
  if (n >= 16) {
    std::copy_n(source, n, target);
  } else {
    for (int64_t i = 0; i < n; ++i) target[i] = source[i];
  }
}

}  // namespace

FilterGradient::FilterGradient(const GemmTable& gemm, const Geometry& geometry, int64_t cin, int64_t cout,
                               int64_t groups, Activation inputActivation)
    : gemm_(&gemm),
      geometry_(geometry),
      cin_(cin),
      cout_(cout),
      groups_(groups),
      activation_(activationValue(inputActivation)) {
  const Geometry& g = geometry;
  plain_ = g.kernelHeight == 1 && g.kernelWidth == 1 && g.strideHeight == 1 && g.strideWidth == 1 && g.top == 0 &&
           g.left == 0 && g.outHeight == g.height && g.outWidth == g.width;
  m_ = g.kernelHeight * g.kernelWidth * (cin / groups);
  n_ = cout / groups;
  floats_ = m_ * cout;
  aPanel_ = panelHeight(m_, gemm.rows);
  const int64_t rowPanels = quotientUp(m_, aPanel_), columnPanels = quotientUp(n_, gemm.panel),
                pixels = g.batch * g.outHeight * g.outWidth;
  rows_ = {rowPanels, quotientUp(rowPanels, std::max<int64_t>(1, kBlockRows / aPanel_))};
  columns_ = {columnPanels, quotientUp(columnPanels, std::max<int64_t>(1, kBlockColumns / gemm.panel))};
  const int64_t most = std::max<int64_t>(1, std::min(pixels / kSplitPixels, kPartialFloats / floats_));
  splits_ = {pixels, std::clamp(quotientUp(kTasks, groups * rows_.parts * columns_.parts), int64_t{1}, most)};
}

void FilterGradient::run(ThreadPool& pool, const float* x, const float* gradient, float* dfilter,
                         float* workspace) const {
  float* target = splits_.parts > 1 ? workspace : dfilter;
  pool.run(splits_.parts * groups_ * rows_.parts * columns_.parts,
           [&](int64_t task, int thread) { runTask(pool, thread, task, x, gradient, target); });
  if (splits_.parts == 1) return;
  const Split pieces{floats_, std::clamp(floats_ / 2048, int64_t{1}, kTasks)};
  pool.run(pieces.parts, [&](int64_t piece, int) {
    const int64_t begin = pieces.begin(piece);
    gemm_->sum(workspace + begin, floats_, splits_.parts, pieces.end(piece) - begin, dfilter + begin);
  });
}

void FilterGradient::runTask(ThreadPool& pool, int thread, int64_t task, const float* x, const float* gradient,
                             float* target) const {
  const GemmTable& gemm = *gemm_;
  const int64_t block = task / splits_.parts, split = task % splits_.parts;
  const int64_t rowBlock = block % rows_.parts, columnBlock = block / rows_.parts % columns_.parts,
                group = block / (rows_.parts * columns_.parts);
  const int64_t firstRow = rows_.begin(rowBlock) * aPanel_, rowPanels = rows_.end(rowBlock) - rows_.begin(rowBlock);
  const int64_t firstColumn = columns_.begin(columnBlock) * gemm.panel,
                columnPanels = columns_.end(columnBlock) - columns_.begin(columnBlock);
  const int64_t rows = std::min(m_ - firstRow, rowPanels * aPanel_),
                columns = std::min(n_ - firstColumn, columnPanels * gemm.panel);

  const int64_t aFloats = static_cast<int64_t>(alignedFloats(rowPanels * aPanel_ * kDepth)),
                bFloats = columnPanels * gemm.panel * kDepth;
  float* const a = static_cast<float*>(
      pool.scratch(thread, static_cast<size_t>(aFloats + bFloats + (plain_ ? 0 : rows * kDepth)) * sizeof(float)));
  float* const b = a + aFloats;
  float* const gathered = b + bFloats;

  OuterProduct product;
  product.a = a;
  product.aPanel = aPanel_;
  product.b = b;
  product.c = target + (splits_.parts > 1 ? split * floats_ : 0) + firstRow * cout_ + group * n_ + firstColumn;
  product.cRow = cout_;
  product.rows = rows;
  product.columns = columns;
  const Split pixels{splits_.end(split) - splits_.begin(split),
                     std::max<int64_t>(1, quotientUp(splits_.end(split) - splits_.begin(split), kDepth))};
  for (int64_t part = 0; part < pixels.parts; ++part) {
    const int64_t pixel = splits_.begin(split) + pixels.begin(part), depth = pixels.end(part) - pixels.begin(part);
    const float* left = gathered;
    int64_t leftRow = rows;
    if (plain_) {
      left = x + pixel * cin_ + group * (cin_ / groups_) + firstRow;
      leftRow = cin_;
    } else {
      gather(x + group * (cin_ / groups_), pixel, depth, firstRow, rows, gathered);
    }
    for (int64_t p = 0; p < rowPanels; ++p)
      gemm.packColumns(left + p * aPanel_, leftRow, depth, std::min(aPanel_, rows - p * aPanel_), aPanel_, activation_,
                       a + p * aPanel_ * depth);
    const float* right = gradient + pixel * cout_ + group * n_ + firstColumn;
    for (int64_t p = 0; p < columnPanels; ++p)
      gemm.packColumns(right + p * gemm.panel, cout_, depth, std::min<int64_t>(gemm.panel, columns - p * gemm.panel),
                       gemm.panel, activationValue(Activation::none), b + p * gemm.panel * depth);
    product.depth = depth;
    product.accumulate = part > 0;
    gemm.outerProduct(product);
  }
}

// Columns [firstRow, firstRow + rows) of im2col of `pixels` output pixels: target[pixel][rows].
void FilterGradient::gather(const float* x, int64_t firstPixel, int64_t pixels, int64_t firstRow, int64_t rows,
                            float* target) const {
  const Geometry& g = geometry_;
  const int64_t channels = cin_ / groups_, kernelRow = g.kernelWidth * channels, end = firstRow + rows;
  for (int64_t pixel = firstPixel; pixel < firstPixel + pixels; ++pixel) {
    const int64_t ox = pixel % g.outWidth, oy = pixel / g.outWidth % g.outHeight,
                  sample = pixel / (g.outWidth * g.outHeight);
    const int64_t left = ox * g.strideWidth - g.left;
    // A kernel row without gaps, wholly inside, is contiguous in the input.
    const bool whole = g.dilationWidth == 1 && groups_ == 1 && left >= 0 && left + g.kernelWidth <= g.width;
    for (int64_t row = firstRow; row < end;) {
      const int64_t i = row / kernelRow, y = oy * g.strideHeight - g.top + i * g.dilationHeight;
      const bool insideRow = y >= 0 && y < g.height;
      const float* source = insideRow ? x + (sample * g.height + y) * g.width * cin_ : nullptr;
      int64_t count;
      if (whole || !insideRow) {
        count = std::min(end, (i + 1) * kernelRow) - row;
        if (insideRow)
          copyFloats(source + left * cin_ + row % kernelRow, count, target);
        else
          std::fill_n(target, count, 0.0f);
      } else {
        const int64_t j = row % kernelRow / channels, channel = row % channels, column = left + j * g.dilationWidth;
        count = std::min(end - row, channels - channel);
        if (column >= 0 && column < g.width)
          copyFloats(source + column * cin_ + channel, count, target);
        else
          std::fill_n(target, count, 0.0f);
      }
      row += count;
      target += count;
    }
  }
}

}  // namespace sepconv::cpu
