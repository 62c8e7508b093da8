// Pixels are far more numerous than channels, so the sum over pixels is what gets cut. A task takes a block of the
// result and a share of the pixels, both fixed by shape. Rows of both operands are contiguous where they lie, so tiles
// read them there; only im2col, an activation and columns that do not fill a panel are copied into cache first.
//  - A small result stays in L2 as one block; a task walks over its pixels in pieces whose rows of both operands stay
//    in L2 too, and fetches the next piece while it computes: these operands come from memory.
//  - Of a large one a block is 98 rows by 128 columns; its operands stay in L2 and come from L3, where the neighbouring
//    blocks of the same pixels find them too.
// Shares of the pixels end up in partial results, added in order.
#include "filter_gradient.h"

#include <algorithm>
#include <utility>

namespace sepconv::cpu {
namespace {

constexpr int64_t kSmallResult = 64 << 10;   // floats of a result that is one block: 256 KB
constexpr int64_t kPieceFloats = 128 << 10;  // of both operands, beside a small result: 512 KB
constexpr int64_t kPiece = 512;              // most pixels of such a piece; sums are added to the result after each
constexpr int64_t kBlockRows = 98, kBlockColumns = 128;
constexpr int64_t kGatheredColumns = 384;             // im2col is repeated by every block of columns
constexpr int64_t kBlockPixels = 1536;                // 98 rows of them take 600 KB
constexpr int64_t kSplitPixels = 512;                 // fewest pixels that are worth a partial result
constexpr int64_t kPartialFloats = int64_t{8} << 20;  // most floats of all partial results

inline void copyFloats(const float* source, int64_t n, float* target) {
  if (n >= 16) {
    std::copy_n(source, n, target);
  } else {
    for (int64_t i = 0; i < n; ++i) target[i] = source[i];
  }
}

// Rows a multiple of 1, 2 or 4 KB apart: a block's 8 lines of each lie in a half, a quarter or an eighth of L2's sets,
// and no more pixels than that share holds should pass at once.
int64_t blockPixels(const GemmTable& gemm, int64_t rowFloats) {
  if (gemm.rows <= 8) return kBlockPixels;
  for (const auto& [floats, pixels] : {std::pair{1024, 256}, {512, 384}, {256, 768}})
    if (rowFloats % floats == 0) return pixels;
  return kBlockPixels;
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
  staged_ = !plain_ || inputActivation != Activation::none;
  m_ = g.kernelHeight * g.kernelWidth * (cin / groups);
  n_ = cout / groups;
  floats_ = m_ * cout;
  const int64_t panels = quotientUp(n_, gemm.panel), pixels = g.batch * g.outHeight * g.outWidth;
  const bool small = m_ * n_ <= kSmallResult;
  rows_ = RowBlocks(m_, gemm.rows, small ? 1 : quotientUp(m_, kBlockRows));
  columns_ = {panels, small ? 1 : quotientUp(n_, plain_ ? kBlockColumns : kGatheredColumns)};
  depth_ = small ? std::clamp<int64_t>(kPieceFloats / (m_ + n_), 1, kPiece)
                 : std::min(blockPixels(gemm, cout), staged_ ? kBlockPixels : blockPixels(gemm, cin));
  const int64_t most = std::max<int64_t>(1, std::min(pixels / kSplitPixels, kPartialFloats / floats_));
  const int64_t tasks = quotientUp(kTasks, groups * rows_.count() * columns_.parts);
  splits_ = {pixels, std::clamp(small ? tasks : std::max(tasks, quotientUp(pixels, kBlockPixels)), int64_t{1}, most)};
}

void FilterGradient::run(ThreadPool& pool, const float* x, const float* gradient, float* dfilter,
                         float* workspace) const {
  float* target = splits_.parts > 1 ? workspace : dfilter;
  pool.run(splits_.parts * groups_ * rows_.count() * columns_.parts,
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
  // Blocks of columns first, then blocks of rows: neighbouring tasks read the same pixels.
  const int64_t columnBlock = task % columns_.parts, rowBlock = task / columns_.parts % rows_.count(),
                group = task / (columns_.parts * rows_.count()) % groups_,
                split = task / (columns_.parts * rows_.count() * groups_);
  const int64_t firstRow = rows_.begin(rowBlock), rows = rows_.end(rowBlock) - firstRow;
  const int64_t firstColumn = columns_.begin(columnBlock) * gemm.panel,
                columns = std::min(n_, columns_.end(columnBlock) * gemm.panel) - firstColumn;
  const int64_t tail = columns % gemm.panel, full = columns - tail;
  const Split pieces{splits_.end(split) - splits_.begin(split),
                     quotientUp(splits_.end(split) - splits_.begin(split), depth_)};
  const int64_t stagedRow = quotientUp(rows, 16) * 16;
  float* const packed = static_cast<float*>(
      pool.scratch(thread, static_cast<size_t>(depth_ * ((tail ? gemm.panel : 0) + (staged_ ? stagedRow : 0))) * 4));
  float* const staged = packed + (tail ? depth_ * gemm.panel : 0);
  const float* const left = x + group * (cin_ / groups_);
  const float* const right = gradient + group * n_ + firstColumn;

  OuterProduct product{};
  product.aRow = staged_ ? stagedRow : cin_;
  product.cRow = cout_;
  product.rows = rows;
  float* const block = target + (splits_.parts > 1 ? split * floats_ : 0) + firstRow * cout_ + group * n_ + firstColumn;
  for (int64_t part = 0; part < pieces.parts; ++part) {
    const int64_t pixel = splits_.begin(split) + pieces.begin(part), depth = pieces.end(part) - pieces.begin(part);
    product.depth = depth;
    product.accumulate = part > 0;
    product.a = left + pixel * cin_ + firstRow;
    if (staged_) {
      stage(left, pixel, depth, firstRow, rows, stagedRow, staged);
      product.a = staged;
    }
    const bool fetches = part + 1 < pieces.parts && groups_ == 1;
    const int64_t next = pixel + depth, nextDepth = pieces.end(part + 1) - pieces.begin(part + 1);
    const Upcoming upcoming[2] = {{x + next * cin_, fetches && !staged_ && rows == m_ ? nextDepth * cin_ : 0},
                                  {gradient + next * cout_, fetches && columns == n_ ? nextDepth * cout_ : 0}};
    product.upcoming = upcoming;
    product.upcomingCount = 2;
    if (full) {
      product.b = right + pixel * cout_;
      product.bRow = cout_;
      product.c = block;
      product.columns = full;
      gemm.outerProduct(product);
    }
    if (tail) {
      gemm.packColumns(right + pixel * cout_ + full, cout_, depth, tail, packed);
      product.b = packed;
      product.bRow = gemm.panel;
      product.c = block + full;
      product.columns = tail;
      if (full) product.upcomingCount = 0;
      gemm.outerProduct(product);
    }
  }
}

// Columns [firstRow, firstRow + rows) of im2col of `pixels` output pixels, activated: target[pixel][targetRow].
void FilterGradient::stage(const float* x, int64_t firstPixel, int64_t pixels, int64_t firstRow, int64_t rows,
                           int64_t targetRow, float* target) const {
  if (plain_) {
    for (int64_t p = 0; p < pixels; ++p)
      gemm_->activate(x + (firstPixel + p) * cin_ + firstRow, target + p * targetRow, rows, activation_);
    return;
  }
  gather(x, firstPixel, pixels, firstRow, rows, targetRow, target);
  if (activation_ != activationValue(Activation::none))
    for (int64_t p = 0; p < pixels; ++p)
      gemm_->activate(target + p * targetRow, target + p * targetRow, rows, activation_);
}

// The same without activation, for kernels larger than 1x1 and for strides.
void FilterGradient::gather(const float* x, int64_t firstPixel, int64_t pixels, int64_t firstRow, int64_t rows,
                            int64_t targetRow, float* target) const {
  const Geometry& g = geometry_;
  const int64_t channels = cin_ / groups_, kernelRow = g.kernelWidth * channels, end = firstRow + rows;
  for (int64_t pixel = firstPixel; pixel < firstPixel + pixels; ++pixel, target += targetRow - rows) {
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
