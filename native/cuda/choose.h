// The second layer of a kernel: which variant with which tiles serves a problem on a device. Pure functions of plain
// data, so that the choice is tested and printed without a GPU. The rules are estimates (not measured on hardware yet).
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "driver.h"
#include "problem.h"

namespace sepconv::cuda {

// A block of a tiled depthwise kernel holds this much per position, 32 channels of float32 or 64 of bfloat16: one
// transaction of memory, and all banks of shared memory once.
constexpr int tileBytes = 128;

// `direct`: a thread per output, reading x through the caches; serves any window, any multiplier. `tiled`: the block's
// input tile with its halo in shared memory. 3x3 and 5x5 variants keep
// the window in registers.
enum class DepthwiseVariant : uint8_t { direct, tiled, tiled3x3, tiled3x3Stride2, tiled5x5 };

struct DepthwiseConfig {
  DepthwiseVariant variant;
  int vector;                         // channels per access: 4 or 1
  int tileHeight = 0, tileWidth = 0;  // outputs per block; 0 for direct
  size_t sharedBytes = 0;
  bool halfTile = false;  // the tile holds bfloat16: copied 16 bytes at a time, and half the shared-memory traffic
  int blockChannels() const { return tileBytes / (halfTile ? 2 : 4); }
};

// `tiled`: 3x3 or 5x5 in one pass over tiles of x and dy; else a tap per block. Chunks of tiles (or of output rows)
// leave a partial sum each.
struct FilterGradientConfig {
  bool tiled = false;
  int vector = 1;
  int tileHeight = 0, tileWidth = 0;
  size_t sharedBytes = 0;
  bool halfTile = false;
  int chunkLength = 1, chunks = 1;  // tiles or rows per chunk
  int blockChannels() const { return tileBytes / (halfTile ? 2 : 4); }
};

// Products: rows x columns of y per block. From 192x184 on: by wgmma, compute capability 9.0 alone.
enum class MatrixTile : uint8_t {
  tile32x64,
  tile64x64,
  tile64x128,
  tile128x128,
  tile192x184,
  tile192x96,
  tile128x256,
  tile256x128,
  tile184x192,
};
struct TileSize {
  int rows, columns;
};
TileSize sizeOf(MatrixTile tile);
std::string nameOf(MatrixTile tile);  // '128x128'
inline bool byWarpgroups(MatrixTile tile) { return tile >= MatrixTile::tile192x184; }

// A product C[rows, columns] over depth, one per group.
struct GemmShape {
  int64_t rows;
  int columns, depth, groups;
  bool vectorised;  // memory can be read and written in fours
  bool largeTiles;  // tiles of 128x128 exist
  bool splits;      // depth may be cut into partial products (filter gradients: few rows and columns, much depth)
  // What was asked for, and whether tensor cores can serve it: whole vectors of 16 bytes (8 channels of bfloat16, 4 of
  // tf32) and no elu before the product. Otherwise the exact kernel does.
  Precision precision = Precision::float32;
  bool tensorCores = false;
  // The tiles that wgmma has for this product on this device, if any.
  std::vector<MatrixTile> warpgroupTiles = {};
};

// The tiles that wgmma has for one of the three pointwise products on this device. It takes a ReLU before the product
// in bfloat16 alone, and not the filter gradient of tf32, whose operands both run along lines.
enum class Product : uint8_t { forward, inputGradient, filterGradient };
std::vector<MatrixTile> warpgroupTiles(const MatrixProblem& problem, Product product, const DeviceProperties& device);

struct MatrixConfig {
  MatrixTile tile;
  int vector;
  int splits = 1, depthPerSplit = 0;
  Precision precision = Precision::float32;  // others: tensor cores, tiles of 128x128 or 64x64, or byWarpgroups
};

// `tile`: '' for the rule's own choice, or one of the names that tilesOf gives, which the tuner has measured; anything
// else throws ERR_FORMAT.
DepthwiseConfig chooseDepthwise(const DepthwiseProblem& problem, const DeviceProperties& device,
                                const std::string& tile = "");
FilterGradientConfig chooseDepthwiseFilterGradient(const DepthwiseProblem& problem, const DeviceProperties& device);
// Of the kernel that makes both gradients: tiles of x.
FilterGradientConfig chooseDepthwiseGradients(const DepthwiseProblem& problem, const DeviceProperties& device);
MatrixConfig chooseGemm(const GemmShape& shape, const DeviceProperties& device, const std::string& tile = "");
MatrixConfig chooseSeparable(const SeparableProblem& problem, const DeviceProperties& device,
                             const std::string& tile = "");

// The tiles of wgmma for a separable convolution in two launches; empty where one serves it better. Of them, or of what
// `tile` names, the one to take; none where `tile` names one of the fused kernel.
std::vector<MatrixTile> tilesInTwo(const SeparableProblem& problem, const DeviceProperties& device);
std::optional<MatrixTile> chooseInTwo(const SeparableProblem& problem, const DeviceProperties& device,
                                      const std::string& tile = "");

// Tiles that serve a problem, by name; fewer than two: there is nothing to choose.
std::vector<std::string> tilesOf(const DepthwiseProblem& problem, const DeviceProperties& device);
std::vector<std::string> tilesOf(const GemmShape& shape);
std::vector<std::string> tilesOf(const SeparableProblem& problem);

// 'tiled3x3 8x16, 4 channels per access': for reports and tests.
std::string describe(const DepthwiseConfig& config);
std::string describe(const FilterGradientConfig& config);
std::string describe(const MatrixConfig& config);

}  // namespace sepconv::cuda
