// Convolution as a product without im2col: for every output pixel, the left row of the product is made of segments of
// the source that lie at fixed offsets from the pixel, one per tap (one per kernel row where taps touch). A register
// tile is a run of output pixels of one line, whose segments are a constant distance apart. conv2d is one phase of such
// taps; the input gradient of a strided convolution is one phase per residue of the input position, each with the taps
// that reach it.
#pragma once
#include <vector>

#include "gemm.h"

namespace sepconv::cpu {

// Output pixels (firstY + targetStep * y, firstX + targetStep * x), y < height, x < width, sum over taps (dy, dx) of
// the source pixel (sourceStep * y + dy, sourceStep * x + dx); dy and dx ascend, and no taps at all makes a sum of
// zero.
struct TapPhase {
  std::vector<int64_t> dy, dx;
  int64_t firstY, firstX, height, width;
};

class TapConvolution {
 public:
  struct Shape {
    int64_t batch, height, width, channels;  // source
    int64_t targetHeight, targetWidth, targetChannels;
    int64_t groups;
    int64_t sourceStepY, sourceStepX, targetStepY, targetStepX;
    int sourceActivation;
  };

  TapConvolution() = default;
  TapConvolution(const GemmTable& gemm, const Shape& shape, std::vector<TapPhase> phases);

  // The filter's panels: [phase][group][panel][taps * channels of a group][GemmTable::panel], taps in the order of dy,
  // then dx.
  int64_t packedFloats() const { return packedFloats_; }
  int64_t phaseOffset(size_t phase) const { return plans_[phase].filterOffset; }
  Panels groupPanels(size_t phase) const { return {plans_[phase].depth, groupTargets_, gemm_->panel}; }

  void run(ThreadPool& pool, const float* source, const float* packed, float* target, const Epilogue& epilogue) const;

 private:
  // Offsets of the segments from the left row of a pixel.
  struct Segments {
    std::vector<ptrdiff_t> offsets;
    int64_t depth;
  };
  struct Plan {
    TapPhase phase;
    int64_t depth, filterOffset;  // of the product; in floats
    Split lines, pixels, units;   // blocks of the phase's height and width; of (group, panel)
    int64_t firstTask, tasks;
    Segments direct, staged;
    bool collides;                              // direct rows share too few sets of L1
    int64_t stageWidth, stagePixel, stageRows;  // of a block's window in scratch
  };
  Segments segments(const TapPhase& phase, int64_t row, int64_t pixel, int64_t originY, int64_t originX,
                    bool merge) const;
  // What a task computes.
  struct Block {
    const Plan* plan;
    int64_t sample, line, lines, pixel, pixels, firstUnit, lastUnit;
    int64_t corner;  // of the target, in floats
  };
  Block blockOf(int64_t task) const;
  void runTask(ThreadPool& pool, int thread, int64_t task, int64_t following, const float* source, const float* packed,
               float* target, const Epilogue& epilogue) const;
  // What a task reads that the task before it did not, as far as there is room, and what it writes; how many pieces.
  static constexpr ptrdiff_t kPieces = 8;
  ptrdiff_t coming(int64_t task, const float* source, const float* target, Upcoming (&pieces)[kPieces]) const;
  void stage(const Plan& plan, const float* source, int64_t sample, int64_t firstLine, int64_t lines,
             int64_t firstPixel, int64_t pixels, int64_t firstChannel, int64_t channels, float* scratch) const;

  const GemmTable* gemm_ = nullptr;
  Shape shape_{};
  int64_t groupChannels_ = 0, groupTargets_ = 0, groupPanels_ = 0, packedFloats_ = 0, tasks_ = 0;
  std::vector<Plan> plans_;
};

}  // namespace sepconv::cpu
