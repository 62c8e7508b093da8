#include "choose.h"

#include <algorithm>

namespace sepconv::cuda {
namespace {

// What every device gives without opting in; more would leave fewer than four blocks per multiprocessor.
constexpr size_t tileBudget = 48 << 10;

int64_t blocks(const MatrixProblem& problem, int rows, int columns) {
  return (problem.rows + rows - 1) / rows * ((problem.columns + columns - 1) / columns);
}

// 16-byte accesses need every row of x, filter and y to start at a multiple of four floats.
bool vectorised(const MatrixProblem& problem) {
  return problem.depth % 4 == 0 && problem.columns % 4 == 0 && problem.panel % 4 == 0;
}

}  // namespace

DepthwiseConfig chooseDepthwise(const DepthwiseProblem& problem, const DeviceProperties& device) {
  const Window& w = problem.window;
  const int vector = problem.multiplier == 1 && problem.channels % 4 == 0 ? 4 : 1;
  const DepthwiseConfig direct{DepthwiseVariant::direct, vector, 0, 0, 0};
  if (problem.multiplier > 1 || int64_t{w.outHeight} * w.outWidth == 1) return direct;
  DepthwiseVariant variant = DepthwiseVariant::tiled;
  if (w.kernelHeight == 3 && w.kernelWidth == 3 && w.dilationHeight == 1 && w.dilationWidth == 1 &&
      w.strideHeight == w.strideWidth) {
    if (w.strideHeight == 1) variant = DepthwiseVariant::tiled3x3;
    if (w.strideHeight == 2 && vector == 4) variant = DepthwiseVariant::tiled3x3Stride2;
  }
  const size_t budget = std::min(tileBudget, device.sharedBytes);
  // Widest first: less halo per output. Widths are multiples of the strip of four outputs that a thread of the 3x3
  // kernels makes.
  const int sizes[][2] = {{8, 16}, {8, 8}, {4, 8}, {4, 4}, {2, 4}, {1, 4}};
  for (const auto& [tallest, widest] : sizes) {
    const int height = std::min(tallest, w.outHeight), width = std::min(widest, (w.outWidth + 3) / 4 * 4);
    const int64_t inHeight = int64_t{height - 1} * w.strideHeight + int64_t{w.kernelHeight - 1} * w.dilationHeight + 1;
    const int64_t inWidth = int64_t{width - 1} * w.strideWidth + int64_t{w.kernelWidth - 1} * w.dilationWidth + 1;
    const double bytes =
        static_cast<double>(inHeight) * static_cast<double>(inWidth) * depthwiseChannels * sizeof(float);
    if (bytes <= static_cast<double>(budget)) return {variant, vector, height, width, static_cast<size_t>(bytes)};
  }
  return direct;  // a window so large or so dilated that its tile does not fit
}

MatrixConfig chooseMatrix(const MatrixProblem& problem, const DeviceProperties& device) {
  const int vector = vectorised(problem) ? 4 : 1;
  // The larger tile needs half the loads per product, but only two waves of blocks keep every multiprocessor busy.
  const int64_t enough = int64_t{2} * device.multiprocessors;
  if (vector == 4 && problem.columns > 64 && blocks(problem, 128, 128) >= enough) return {MatrixTile::tile128x128, 4};
  if (problem.rows > 32 && blocks(problem, 64, 64) >= enough) return {MatrixTile::tile64x64, vector};
  return {MatrixTile::tile32x64, vector};
}

MatrixConfig chooseSeparable(const SeparableProblem& problem, const DeviceProperties& device) {
  const DepthwiseProblem& d = problem.depthwise;
  const int vector = vectorised(problem.pointwise) && d.multiplier == 1 && d.channels % 4 == 0 ? 4 : 1;
  // Every tile of columns computes the depthwise result again: wide tiles.
  const bool wide =
      vector == 4 && problem.pointwise.columns > 64 && blocks(problem.pointwise, 64, 128) >= device.multiprocessors;
  return {wide ? MatrixTile::tile64x128 : MatrixTile::tile32x64, vector};
}

std::string describe(const DepthwiseConfig& config) {
  const std::string access =
      ", " + std::to_string(config.vector) + (config.vector > 1 ? " channels" : " channel") + " per access";
  const std::string tile = " " + std::to_string(config.tileHeight) + "x" + std::to_string(config.tileWidth);
  switch (config.variant) {
    case DepthwiseVariant::direct:
      return "direct" + access;
    case DepthwiseVariant::tiled:
      return "tiled" + tile + access;
    case DepthwiseVariant::tiled3x3:
      return "tiled3x3" + tile + access;
    case DepthwiseVariant::tiled3x3Stride2:
      return "tiled3x3Stride2" + tile + access;
  }
  return "";
}

std::string describe(const MatrixConfig& config) {
  const std::string access =
      ", " + std::to_string(config.vector) + (config.vector > 1 ? " floats" : " float") + " per access";
  switch (config.tile) {
    case MatrixTile::tile32x64:
      return "32x64" + access;
    case MatrixTile::tile64x64:
      return "64x64" + access;
    case MatrixTile::tile64x128:
      return "64x128" + access;
    case MatrixTile::tile128x128:
      return "128x128" + access;
  }
  return "";
}

}  // namespace sepconv::cuda
