// A task takes a block of some 112 output pixels (whole lines where they are short) and some of the panels. Where its
// window lies wholly inside the source, the product reads the source itself; at the borders, or with an activation to
// apply, the window is first copied into the thread's scratch with its zeros around it: (kernel + block - 1) / block of
// the source, never kernel times as much.
#include "tap_convolution.h"

#include <algorithm>

#include "../shared_blocks.h"

namespace sepconv::cpu {
namespace {

constexpr int64_t kBlockPixels = 112;
constexpr int64_t kTaskWork = 1 << 19;
// Panels that a task reads again for every tile: beside larger ones what is fetched ahead does not stay in L2 (3 to 5 %
// slower at 256 to 728 and 728 to 1024 channels).
constexpr int64_t kPanelFloats = 64 << 10;

}  // namespace

TapConvolution::TapConvolution(const GemmTable& gemm, const Shape& shape, std::vector<TapPhase> phases)
    : gemm_(&gemm),
      shape_(shape),
      groupChannels_(shape.channels / shape.groups),
      groupTargets_(shape.targetChannels / shape.groups),
      groupPanels_(quotientUp(groupTargets_, gemm.panel)) {
  int64_t blocks = 0, work = 0;
  for (TapPhase& phase : phases) {
    if (phase.height <= 0 || phase.width <= 0) continue;
    Plan plan{};
    plan.depth = static_cast<int64_t>(phase.dy.size() * phase.dx.size()) * groupChannels_;
    plan.pixels = {phase.width, phase.width <= kBlockPixels * 5 / 4 ? 1 : quotientUp(phase.width, kBlockPixels)};
    const int64_t lines =
        plan.pixels.parts > 1 ? 1 : std::max<int64_t>(1, (kBlockPixels + phase.width / 2) / phase.width);
    plan.lines = {phase.height, quotientUp(phase.height, lines)};
    blocks += shape.batch * plan.lines.parts * plan.pixels.parts;
    work += shape.batch * phase.height * phase.width * plan.depth * shape.targetChannels;
    plan.phase = std::move(phase);
    plans_.push_back(std::move(plan));
  }
  blocks = std::max<int64_t>(1, blocks);
  const int64_t units = shape.groups * groupPanels_;
  const int64_t parts = std::clamp(std::min(quotientUp(kTasks, blocks), work / kTaskWork / blocks), int64_t{1}, units);
  for (Plan& plan : plans_) {
    const TapPhase& phase = plan.phase;
    plan.units = {units, parts};
    plan.filterOffset = packedFloats_;
    packedFloats_ += units * plan.depth * gemm.panel;
    plan.firstTask = tasks_;
    plan.tasks = shape.batch * plan.lines.parts * plan.pixels.parts * parts;
    tasks_ += plan.tasks;

    plan.direct = segments(phase, shape.width * shape.channels, shape.channels, 0, 0, shape.groups == 1);
    plan.collides = collidingRows(gemm, shape.sourceStepX * shape.channels);
    if (phase.dy.empty() || phase.dx.empty()) continue;
    // Groups that a task's units may touch.
    const int64_t groups =
        shape.groups == 1
            ? 1
            : std::min(shape.groups, quotientUp(quotientUp(units, parts), groupPanels_) + (groupPanels_ > 1));
    const int64_t channels = groups * groupChannels_;
    plan.stagePixel = collidingRows(gemm, shape.sourceStepX * channels) ? stagedRow(channels) : channels;
    plan.stageWidth =
        (quotientUp(phase.width, plan.pixels.parts) - 1) * shape.sourceStepX + phase.dx.back() - phase.dx.front() + 1;
    plan.stageRows =
        (quotientUp(phase.height, plan.lines.parts) - 1) * shape.sourceStepY + phase.dy.back() - phase.dy.front() + 1;
    plan.staged = segments(phase, plan.stageWidth * plan.stagePixel, plan.stagePixel, phase.dy.front(),
                           phase.dx.front(), shape.groups == 1 && plan.stagePixel == channels);
  }
}

TapConvolution::Segments TapConvolution::segments(const TapPhase& phase, int64_t row, int64_t pixel, int64_t originY,
                                                  int64_t originX, bool merge) const {
  const bool touching =
      merge && !phase.dx.empty() && phase.dx.back() - phase.dx.front() + 1 == static_cast<int64_t>(phase.dx.size());
  Segments result;
  result.depth = touching ? static_cast<int64_t>(phase.dx.size()) * groupChannels_ : groupChannels_;
  for (int64_t dy : phase.dy)
    for (int64_t dx : phase.dx) {
      result.offsets.push_back((dy - originY) * row + (dx - originX) * pixel);
      if (touching) break;
    }
  return result;
}

void TapConvolution::run(ThreadPool& pool, const float* source, const float* packed, float* target,
                         const Epilogue& epilogue) const {
  const auto prepare = [](int64_t, int thread) { return thread; };
  runBlocks(pool, tasks_, 1, prepare, [&](int64_t task, int64_t, int thread, int64_t following) {
    runTask(pool, thread, task, following, source, packed, target, epilogue);
  });
}

TapConvolution::Block TapConvolution::blockOf(int64_t task) const {
  size_t p = 0;
  while (task >= plans_[p].firstTask + plans_[p].tasks) ++p;
  const Plan& plan = plans_[p];
  const TapPhase& phase = plan.phase;
  const Shape& s = shape_;
  task -= plan.firstTask;
  Block block{};
  block.plan = &plan;
  const int64_t pixelBlock = task % plan.pixels.parts, lineBlock = task / plan.pixels.parts % plan.lines.parts;
  block.sample = task / (plan.pixels.parts * plan.lines.parts) % s.batch;
  const int64_t part = task / (plan.pixels.parts * plan.lines.parts * s.batch);
  block.line = plan.lines.begin(lineBlock);
  block.lines = plan.lines.end(lineBlock) - block.line;
  block.pixel = plan.pixels.begin(pixelBlock);
  block.pixels = plan.pixels.end(pixelBlock) - block.pixel;
  block.firstUnit = plan.units.begin(part);
  block.lastUnit = plan.units.end(part);
  block.corner = ((block.sample * s.targetHeight + phase.firstY + block.line * s.targetStepY) * s.targetWidth +
                  phase.firstX + block.pixel * s.targetStepX) *
                 s.targetChannels;
  return block;
}

ptrdiff_t TapConvolution::coming(int64_t task, const float* source, const float* target,
                                 Upcoming (&pieces)[kPieces]) const {
  if (task < 0) return 0;
  const Block block = blockOf(task);
  if ((block.lastUnit - block.firstUnit) * block.plan->depth * gemm_->panel > kPanelFloats) return 0;
  const TapPhase& phase = block.plan->phase;
  if (phase.dy.empty() || phase.dx.empty()) return 0;
  const Shape& s = shape_;
  ptrdiff_t count = 0;
  if (s.targetStepX == 1 && s.targetStepY == 1)
    pieces[count++] = {target + block.corner, ((block.lines - 1) * s.targetWidth + block.pixels) * s.targetChannels};
  const int64_t left = std::clamp<int64_t>(block.pixel * s.sourceStepX + phase.dx.front(), 0, s.width);
  const int64_t right = std::min((block.pixel + block.pixels - 1) * s.sourceStepX + phase.dx.back() + 1, s.width);
  int64_t known = block.line == 0 ? -1 : (block.line - 1) * s.sourceStepY + phase.dy.back();
  for (int64_t line = block.line; line < block.line + block.lines && left < right; ++line)
    for (int64_t dy : phase.dy) {
      const int64_t row = line * s.sourceStepY + dy;
      if (row <= known || row < 0 || row >= s.height || count == kPieces) continue;
      known = row;
      pieces[count++] = {source + ((block.sample * s.height + row) * s.width + left) * s.channels,
                         (right - left) * s.channels};
    }
  return count;
}

void TapConvolution::runTask(ThreadPool& pool, int thread, int64_t task, int64_t following, const float* source,
                             const float* packed, float* target, const Epilogue& epilogue) const {
  const auto [planned, sample, line, lines, pixel, pixels, firstUnit, lastUnit, corner] = blockOf(task);
  const Plan& plan = *planned;
  const Shape& s = shape_;
  const TapPhase& phase = plan.phase;
  const int64_t panel = gemm_->panel;
  const int64_t firstGroup = firstUnit / groupPanels_, lastGroup = quotientUp(lastUnit, groupPanels_);
  Upcoming pieces[kPieces];
  const ptrdiff_t pieceCount = coming(following, source, target, pieces);

  const bool taps = !phase.dy.empty() && !phase.dx.empty();
  const bool inside = taps && line * s.sourceStepY + phase.dy.front() >= 0 &&
                      pixel * s.sourceStepX + phase.dx.front() >= 0 &&
                      (line + lines - 1) * s.sourceStepY + phase.dy.back() < s.height &&
                      (pixel + pixels - 1) * s.sourceStepX + phase.dx.back() < s.width;
  Product product;
  const float* left;
  if (!taps || (inside && !plan.collides && s.sourceActivation == activationValue(Activation::none))) {
    left = source + ((sample * s.height + line * s.sourceStepY) * s.width + pixel * s.sourceStepX) * s.channels +
           firstGroup * groupChannels_;
    product.aLine = s.sourceStepY * s.width * s.channels;
    product.aRow = s.sourceStepX * s.channels;
    product.segments = plan.direct.offsets.data();
    product.segmentCount = static_cast<ptrdiff_t>(plan.direct.offsets.size());
    product.depth = plan.direct.depth;
  } else {
    float* scratch = static_cast<float*>(
        pool.scratch(thread, static_cast<size_t>(plan.stageRows * plan.stageWidth * plan.stagePixel) * sizeof(float)));
    stage(plan, source, sample, line, lines, pixel, pixels, firstGroup * groupChannels_,
          (lastGroup - firstGroup) * groupChannels_, scratch);
    left = scratch;
    product.aLine = s.sourceStepY * plan.stageWidth * plan.stagePixel;
    product.aRow = s.sourceStepX * plan.stagePixel;
    product.segments = plan.staged.offsets.data();
    product.segmentCount = static_cast<ptrdiff_t>(plan.staged.offsets.size());
    product.depth = plan.staged.depth;
  }
  product.cLine = s.targetStepY * s.targetWidth * s.targetChannels;
  product.cRow = s.targetStepX * s.targetChannels;
  product.lines = lines;
  product.rows = pixels;
  for (int64_t group = firstGroup; group < lastGroup; ++group) {
    const int64_t firstPanel = std::max(firstUnit - group * groupPanels_, int64_t{0}),
                  lastPanel = std::min(lastUnit - group * groupPanels_, groupPanels_);
    const int64_t column = group * groupTargets_ + firstPanel * panel;
    product.a = left + (group - firstGroup) * groupChannels_;
    product.b = packed + plan.filterOffset + (group * groupPanels_ + firstPanel) * plan.depth * panel;
    product.c = target + corner + column;
    product.columns = std::min(groupTargets_, lastPanel * panel) - firstPanel * panel;
    product.epilogue = advance(epilogue, corner + column, column);
    product.upcoming = pieces;
    product.upcomingCount = group == firstGroup ? pieceCount : 0;
    gemm_->product(product);
  }
}

// The window under a block of output pixels: scratch[row][column][channel], zero outside the source. Rows that no tap
// reads are skipped.
void TapConvolution::stage(const Plan& plan, const float* source, int64_t sample, int64_t firstLine, int64_t lines,
                           int64_t firstPixel, int64_t pixels, int64_t firstChannel, int64_t channels,
                           float* scratch) const {
  const Shape& s = shape_;
  const TapPhase& phase = plan.phase;
  const int64_t top = firstLine * s.sourceStepY + phase.dy.front(),
                left = firstPixel * s.sourceStepX + phase.dx.front();
  const int64_t rows = (lines - 1) * s.sourceStepY + phase.dy.back() - phase.dy.front() + 1;
  const int64_t width = (pixels - 1) * s.sourceStepX + phase.dx.back() - phase.dx.front() + 1;
  const int64_t begin = std::clamp(-left, int64_t{0}, width), end = std::clamp(s.width - left, begin, width);
  for (int64_t row = 0; row < rows; ++row) {
    const bool read = std::any_of(phase.dy.begin(), phase.dy.end(), [&](int64_t dy) {
      const int64_t distance = row - (dy - phase.dy.front());
      return distance >= 0 && distance % s.sourceStepY == 0 && distance / s.sourceStepY < lines;
    });
    if (!read) continue;
    float* target = scratch + row * plan.stageWidth * plan.stagePixel;
    if (top + row < 0 || top + row >= s.height || begin == end) {
      std::fill_n(target, width * plan.stagePixel, 0.0f);
      continue;
    }
    std::fill_n(target, begin * plan.stagePixel, 0.0f);
    std::fill_n(target + end * plan.stagePixel, (width - end) * plan.stagePixel, 0.0f);
    const float* from = source + ((sample * s.height + top + row) * s.width + left + begin) * s.channels + firstChannel;
    target += begin * plan.stagePixel;
    if (channels == s.channels && channels == plan.stagePixel) {
      gemm_->activate(from, target, (end - begin) * channels, s.sourceActivation);
    } else {
      for (int64_t column = begin; column < end; ++column, from += s.channels, target += plan.stagePixel)
        gemm_->activate(from, target, channels, s.sourceActivation);
    }
  }
}

}  // namespace sepconv::cpu
