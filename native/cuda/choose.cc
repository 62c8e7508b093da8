#include "choose.h"

#include <algorithm>

namespace sepconv::cuda {
namespace {

// What every device gives without opting in; more would leave fewer than four blocks per multiprocessor.
constexpr size_t tileBudget = 48 << 10;

int64_t blocks(int64_t rows, int64_t columns, int tileRows, int tileColumns) {
  return (rows + tileRows - 1) / tileRows * ((columns + tileColumns - 1) / tileColumns);
}

constexpr int tileSizes[][2] = {{8, 16}, {8, 8}, {4, 8}, {4, 4}, {2, 4}, {1, 4}};

// Of the input of height x width outputs.
double inputTileBytes(const Window& w, int height, int width) {
  const int64_t inHeight = int64_t{height - 1} * w.strideHeight + int64_t{w.kernelHeight - 1} * w.dilationHeight + 1;
  const int64_t inWidth = int64_t{width - 1} * w.strideWidth + int64_t{w.kernelWidth - 1} * w.dilationWidth + 1;
  return static_cast<double>(inHeight) * static_cast<double>(inWidth) * tileBytes;
}

// Copies of 16 bytes are 8 channels of bfloat16.
bool takesHalfTile(const DepthwiseProblem& problem) {
  return problem.dtype == DType::bfloat16 && problem.channels % 8 == 0;
}

std::string tileName(int height, int width) { return std::to_string(height) + "x" + std::to_string(width); }

[[noreturn]] void unknownTile(const std::string& tile) {
  throw Error("ERR_FORMAT", "there is no tile '" + tile + "' for this shape: it was tuned for another version");
}

constexpr const char* matrixTiles[] = {"32x64",  "64x64",   "64x128",  "128x128", "192x184",
                                       "192x96", "128x256", "256x128", "184x192"};
MatrixTile matrixTile(const std::string& name, const std::vector<std::string>& known) {
  if (std::find(known.begin(), known.end(), name) == known.end()) unknownTile(name);
  const auto* at = std::find(std::begin(matrixTiles), std::end(matrixTiles), name);
  return static_cast<MatrixTile>(at - std::begin(matrixTiles));
}

bool onTensorCores(const SeparableProblem& problem) {
  const MatrixProblem& m = problem.pointwise;
  const int lanes = m.precision == Precision::bfloat16 ? 8 : 4;
  return m.precision != Precision::float32 && problem.depthwise.multiplier == 1 && m.depth % lanes == 0 &&
         m.columns % lanes == 0 && m.panel % lanes == 0;
}
bool vectorised(const SeparableProblem& problem) {
  const MatrixProblem& m = problem.pointwise;
  return m.depth % 4 == 0 && m.columns % 4 == 0 && m.panel % 4 == 0 && problem.depthwise.multiplier == 1;
}

int ceilDiv(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Model of a product on tensor cores, in multiply-adds of one multiprocessor at wgmma's full rate: waves of tiles, each
// as long as its multiply-adds over the share of that rate that shared memory can feed. A cycle gives 128 bytes; wgmma
// reads 64 + 4096 / right of them for the left and the right operand, the copies write 4096 / right + 4096 / left.
// mma.sync is taken to reach 0.6 of the rate with two blocks of 128x128 per multiprocessor, and 0.3 with one of 64x64.
// Estimates, not measured on hardware yet.
double modelledCost(const GemmShape& shape, MatrixTile tile, int multiprocessors, int splits) {
  const TileSize size = sizeOf(tile);
  const int64_t rowTiles = ceilDiv(shape.rows, size.rows), columnTiles = ceilDiv(shape.columns, size.columns);
  const double area = double{1} * size.rows * size.columns;
  if (!byWarpgroups(tile)) {
    const bool large = tile == MatrixTile::tile128x128;
    const int places = large ? 2 * multiprocessors : multiprocessors;
    const int waves = ceilDiv(shape.groups * rowTiles * columnTiles * splits, places);
    return large ? waves * 2 * area / 0.6 : waves * area / 0.3;
  }
  const bool swapped = tile == MatrixTile::tile184x192;
  const double left = swapped ? size.columns : size.rows, right = swapped ? size.rows : size.columns;
  const double rate = std::min(1.0, 128 / (64 + 2 * 4096 / right + 4096 / left));
  // Two blocks share right tiles.
  const int64_t pairs = ceilDiv(swapped ? columnTiles : rowTiles, 2) * (swapped ? rowTiles : columnTiles) * splits;
  return ceilDiv(pairs, std::max(1, multiprocessors / 2)) * area / rate;
}

// Splits of a product by wgmma, in whole steps of 64: where the last wave is fullest, each split costing another 128 of
// depth to start, store and add.
void splitForWarpgroups(const GemmShape& shape, const DeviceProperties& device, MatrixConfig& config) {
  double best = 0;
  for (int splits = 1; splits <= std::min(128, std::max(1, shape.depth / 256)); ++splits) {
    const int depth = ceilDiv(ceilDiv(shape.depth, splits), 64) * 64;
    const double cost = modelledCost(shape, config.tile, device.multiprocessors, splits) * (depth + 128);
    if (splits > 1 && cost >= best) continue;
    best = cost;
    config.depthPerSplit = depth;
    config.splits = ceilDiv(shape.depth, depth);
  }
}

}  // namespace

std::string nameOf(MatrixTile tile) { return matrixTiles[static_cast<int>(tile)]; }

std::vector<MatrixTile> warpgroupTiles(const MatrixProblem& problem, Product product, const DeviceProperties& device) {
  const bool relu = problem.inputActivation == Activation::relu;
  if (device.major != 9 || problem.panel) return {};
  if (problem.precision == Precision::tf32) {
    if (product == Product::inputGradient)
      return {MatrixTile::tile192x184, MatrixTile::tile128x256, MatrixTile::tile256x128};
    if (product == Product::forward && !relu) return {MatrixTile::tile184x192, MatrixTile::tile256x128};
    return {};
  }
  std::vector<MatrixTile> tiles = {MatrixTile::tile192x184, MatrixTile::tile128x256};
  if (product != Product::filterGradient) tiles.push_back(MatrixTile::tile192x96);
  if (product != Product::filterGradient && !relu) tiles.push_back(MatrixTile::tile256x128);
  return tiles;
}

TileSize sizeOf(MatrixTile tile) {
  constexpr TileSize sizes[] = {{32, 64},  {64, 64},   {64, 128},  {128, 128}, {192, 184},
                                {192, 96}, {128, 256}, {256, 128}, {184, 192}};
  return sizes[static_cast<int>(tile)];
}

DepthwiseConfig chooseDepthwise(const DepthwiseProblem& problem, const DeviceProperties& device,
                                const std::string& tile) {
  const Window& w = problem.window;
  const int vector = problem.multiplier == 1 && problem.channels % 4 == 0 ? 4 : 1;
  const DepthwiseConfig direct{DepthwiseVariant::direct, vector};
  if (problem.multiplier > 1 || int64_t{w.outHeight} * w.outWidth == 1) return direct;
  DepthwiseVariant variant = DepthwiseVariant::tiled;
  if (w.kernelHeight == 3 && w.kernelWidth == 3 && w.dilationHeight == 1 && w.dilationWidth == 1 &&
      w.strideHeight == w.strideWidth) {
    if (w.strideHeight == 1) variant = DepthwiseVariant::tiled3x3;
    if (w.strideHeight == 2 && vector == 4) variant = DepthwiseVariant::tiled3x3Stride2;
  }
  if (w.kernelHeight == 5 && w.kernelWidth == 5 && w.dilationHeight == 1 && w.dilationWidth == 1 &&
      w.strideHeight == 1 && w.strideWidth == 1 && vector == 4)
    variant = DepthwiseVariant::tiled5x5;
  const size_t budget = std::min(tileBudget, device.sharedBytes);
  const bool halfTile = takesHalfTile(problem);
  // Widest first: less halo per output. Widths are multiples of the strip of four outputs that a thread of the 3x3
  // kernels makes.
  for (const auto& [tallest, widest] : tileSizes) {
    const int height = std::min(tallest, w.outHeight), width = std::min(widest, (w.outWidth + 3) / 4 * 4);
    const double bytes = inputTileBytes(w, height, width);
    if (bytes <= static_cast<double>(budget) && (tile.empty() || tile == tileName(tallest, widest)))
      return {variant, vector, height, width, static_cast<size_t>(bytes), halfTile};
  }
  if (!tile.empty()) unknownTile(tile);
  return direct;  // a window so large or so dilated that its tile does not fit
}

FilterGradientConfig chooseDepthwiseFilterGradient(const DepthwiseProblem& problem, const DeviceProperties& device) {
  const Window& w = problem.window;
  const int channels = problem.channels * problem.multiplier;
  FilterGradientConfig config;
  config.vector = problem.multiplier == 1 && problem.channels % 4 == 0 ? 4 : 1;
  config.halfTile = takesHalfTile(problem);
  const bool square = w.kernelHeight == w.kernelWidth && problem.multiplier == 1;
  if (square && (w.kernelHeight == 3 || (w.kernelHeight == 5 && config.vector == 4))) {
    for (const auto& [tallest, widest] : tileSizes) {
      // Tiles of equal size: 19 columns are two tiles of 12, not one of 16 and a rest.
      const int height = ceilDiv(w.outHeight, ceilDiv(w.outHeight, tallest));
      const int width = (ceilDiv(w.outWidth, ceilDiv(w.outWidth, widest)) + 3) / 4 * 4;
      const double bytes = inputTileBytes(w, height, width) + double{tileBytes} * height * width;
      if (bytes > static_cast<double>(std::min(tileBudget, device.sharedBytes))) continue;
      config.tiled = true;
      config.tileHeight = height;
      config.tileWidth = width;
      // The threads' sums are added in the same memory: at most 4 of 25 taps, 32 channels.
      config.sharedBytes = std::max(static_cast<size_t>(bytes),
                                    static_cast<size_t>(w.kernelHeight == 3 ? 8 * 9 : 4 * 25) * 32 * sizeof(float));
      break;
    }
  }
  if (!config.tiled) config.halfTile = false;
  const int64_t groups = ceilDiv(channels, config.blockChannels());
  const int64_t taps = config.tiled ? 1 : int64_t{w.kernelHeight} * w.kernelWidth;
  const int64_t tiles = config.tiled ? int64_t{problem.batch} * ceilDiv(w.outHeight, config.tileHeight) *
                                           ceilDiv(w.outWidth, config.tileWidth)
                                     : int64_t{problem.batch} * w.outHeight;
  // Two waves of four blocks; more would only leave more partial sums to add.
  const int64_t wanted = std::max<int64_t>(1, int64_t{8} * device.multiprocessors / (groups * taps));
  config.chunkLength = ceilDiv(tiles, std::min(wanted, tiles));
  config.chunks = ceilDiv(tiles, config.chunkLength);
  return config;
}

FilterGradientConfig chooseDepthwiseGradients(const DepthwiseProblem& problem, const DeviceProperties& device) {
  const Window& w = problem.window;
  FilterGradientConfig config;
  config.tiled = true;
  config.vector = 4;
  config.halfTile = problem.dtype == DType::bfloat16;
  config.tileHeight = ceilDiv(w.height, ceilDiv(w.height, 8));
  config.tileWidth = (ceilDiv(w.width, ceilDiv(w.width, 16)) + 3) / 4 * 4;
  // The threads' sums for batch norm; the gradient's tile with its halo, then the threads' sums of 9 taps of 512
  // floats.
  config.sharedBytes = size_t{2} * 512 * sizeof(float) +
                       std::max<size_t>(size_t{tileBytes} * (config.tileHeight + 2) * (config.tileWidth + 2),
                                        size_t{9} * 512 * sizeof(float));
  const int64_t groups = ceilDiv(problem.channels, config.blockChannels());
  const int64_t tiles =
      int64_t{problem.batch} * ceilDiv(w.height, config.tileHeight) * ceilDiv(w.width, config.tileWidth);
  // Two waves of three blocks.
  const int64_t wanted = std::max<int64_t>(1, int64_t{6} * device.multiprocessors / groups);
  config.chunkLength = ceilDiv(tiles, std::min(wanted, tiles));
  config.chunks = ceilDiv(tiles, config.chunkLength);
  return config;
}

std::vector<std::string> tilesOf(const DepthwiseProblem& problem, const DeviceProperties& device) {
  std::vector<std::string> tiles, shapes;
  if (chooseDepthwise(problem, device).variant == DepthwiseVariant::direct) return tiles;
  for (const auto& [height, width] : tileSizes) {
    const int own = std::min(height, problem.window.outHeight),
              across = std::min(width, (problem.window.outWidth + 3) / 4 * 4);
    // Sizes that the image cuts to the same tile are one.
    const std::string shape = tileName(own, across);
    if (own * across < 16 || std::find(shapes.begin(), shapes.end(), shape) != shapes.end() ||
        inputTileBytes(problem.window, own, across) > static_cast<double>(std::min(tileBudget, device.sharedBytes)))
      continue;
    shapes.push_back(shape);
    tiles.push_back(tileName(height, width));
  }
  return tiles;
}

std::vector<std::string> tilesOf(const GemmShape& shape) {
  if (shape.precision != Precision::float32 && shape.tensorCores) {
    std::vector<std::string> tiles = {"64x64", "128x128"};
    for (const MatrixTile tile : shape.warpgroupTiles) tiles.push_back(nameOf(tile));
    return tiles;
  }
  if (!shape.vectorised) return {};
  if (shape.largeTiles) return {"32x64", "64x64", "128x128"};
  return {};
}

std::vector<std::string> tilesOf(const SeparableProblem& problem) {
  if (onTensorCores(problem)) return {"64x64", "128x128"};
  if (vectorised(problem)) return {"32x64", "64x128"};
  return {};
}

MatrixConfig chooseGemm(const GemmShape& shape, const DeviceProperties& device, const std::string& tile) {
  const int64_t enough = int64_t{2} * device.multiprocessors;  // two waves keep every multiprocessor busy
  const auto count = [&](int rows, int columns) {
    return shape.groups * blocks(shape.rows, shape.columns, rows, columns);
  };
  MatrixConfig config{MatrixTile::tile32x64, shape.vectorised ? 4 : 1};
  config.depthPerSplit = shape.depth;
  int64_t started = count(32, 64);
  // The larger tile needs half the loads per product.
  const auto take = [&](MatrixTile tile) {
    config.tile = tile;
    started = count(sizeOf(tile).rows, sizeOf(tile).columns);
  };
  const bool fills = shape.splits;  // splits fill the device, whatever the tile
  if (shape.precision != Precision::float32 && shape.tensorCores) {
    config.precision = shape.precision;
    // Two blocks per multiprocessor: one wave of the large tile is worth more than several of the small one.
    const bool large = shape.rows > 64 && shape.columns > 64 && (fills || count(128, 128) >= device.multiprocessors);
    take(large ? MatrixTile::tile128x128 : MatrixTile::tile64x64);
    // Whatever the tile, splits fill the device: then the cost of the whole area decides.
    const int places = fills ? 1 : device.multiprocessors;
    for (const MatrixTile candidate : shape.warpgroupTiles)
      if (modelledCost(shape, candidate, places, 1) < modelledCost(shape, config.tile, places, 1)) take(candidate);
  } else if (shape.vectorised && shape.largeTiles && shape.rows > 64 && shape.columns > 64 &&
             (fills || count(128, 128) >= enough))
    take(MatrixTile::tile128x128);
  else if (shape.vectorised && shape.rows > 32 && (fills || count(64, 64) >= enough))
    take(MatrixTile::tile64x64);
  if (!tile.empty()) take(matrixTile(tile, tilesOf(shape)));
  if (shape.splits && byWarpgroups(config.tile)) {
    splitForWarpgroups(shape, device, config);
  } else if (shape.splits && started < enough) {
    // At least 128 deep, so that a partial product costs more than adding it.
    const int64_t most = std::max<int64_t>(1, std::min<int64_t>(shape.depth / 128, 65535 / shape.groups));
    const int64_t wanted = std::min((enough + started - 1) / started, most);
    const int64_t depth = (shape.depth + wanted - 1) / wanted;
    config.depthPerSplit = static_cast<int>((depth + 31) / 32 * 32);
    config.splits = (shape.depth + config.depthPerSplit - 1) / config.depthPerSplit;
  }
  return config;
}

MatrixConfig chooseSeparable(const SeparableProblem& problem, const DeviceProperties& device, const std::string& tile) {
  const MatrixProblem& m = problem.pointwise;
  // Every tile of columns computes the depthwise result again: wide tiles.
  MatrixConfig config{MatrixTile::tile32x64, vectorised(problem) ? 4 : 1, 1, m.depth};
  const auto fills = [&](int rows) {
    return m.columns > 64 && blocks(m.rows, m.columns, rows, 128) >= device.multiprocessors;
  };
  if (onTensorCores(problem)) {
    config.precision = m.precision;
    config.tile = fills(128) ? MatrixTile::tile128x128 : MatrixTile::tile64x64;
  } else if (vectorised(problem) && fills(64)) {
    config.tile = MatrixTile::tile64x128;
  }
  if (!tile.empty()) config.tile = matrixTile(tile, tilesOf(problem));
  return config;
}

std::vector<MatrixTile> tilesInTwo(const SeparableProblem& problem, const DeviceProperties& device) {
  // Up to 256 columns memory takes longer than the product, and one or two tiles compute the depthwise.
  if (!onTensorCores(problem) || problem.pointwise.columns <= 256) return {};
  return warpgroupTiles(problem.pointwise, Product::forward, device);
}

std::optional<MatrixTile> chooseInTwo(const SeparableProblem& problem, const DeviceProperties& device,
                                      const std::string& tile) {
  const MatrixProblem& m = problem.pointwise;
  const std::vector<MatrixTile> tiles = tilesInTwo(problem, device);
  for (const MatrixTile known : tiles)
    if (tile == nameOf(known)) return known;
  if (tiles.empty() || !tile.empty()) return {};
  const MatrixConfig config =
      chooseGemm({m.rows, m.columns, m.depth, 1, true, true, false, m.precision, true, tiles}, device);
  return byWarpgroups(config.tile) ? std::optional<MatrixTile>(config.tile) : std::nullopt;
}

namespace {
std::string accessOf(int vector, bool halfTile) {
  return ", " + std::to_string(vector) + (vector > 1 ? " channels" : " channel") + " per access" +
         (halfTile ? ", bfloat16 tile" : "");
}
}  // namespace

std::string describe(const DepthwiseConfig& config) {
  const std::string access = accessOf(config.vector, config.halfTile);
  const std::string tile = " " + std::to_string(config.tileHeight) + "x" + std::to_string(config.tileWidth);
  switch (config.variant) {
    case DepthwiseVariant::direct:
      return "direct" + access;
    case DepthwiseVariant::tiled:
      return "tiled" + tile + access;
    case DepthwiseVariant::tiled3x3:
      return "tiled3x3" + tile + access;
    case DepthwiseVariant::tiled5x5:
      return "tiled5x5" + tile + access;
    case DepthwiseVariant::tiled3x3Stride2:
      return "tiled3x3Stride2" + tile + access;
  }
  return "";
}

std::string describe(const FilterGradientConfig& config) {
  const std::string tile = config.tiled
                               ? "tiled " + std::to_string(config.tileHeight) + "x" + std::to_string(config.tileWidth)
                               : "a tap per block";
  return tile + accessOf(config.vector, config.halfTile);
}

std::string describe(const MatrixConfig& config) {
  std::string text = matrixTiles[static_cast<int>(config.tile)];
  text += ", " + std::to_string(config.vector) + (config.vector > 1 ? " elements" : " element") + " per access";
  if (config.precision != Precision::float32)
    text = std::string(config.precision == Precision::tf32 ? "tf32 " : "bfloat16 ") +
           matrixTiles[static_cast<int>(config.tile)] + (byWarpgroups(config.tile) ? " wgmma" : "");
  if (config.splits > 1) text += ", " + std::to_string(config.splits) + " splits";
  return text;
}

}  // namespace sepconv::cuda
