// Products on the tensor cores of compute capability 9.0: C[left line, right line] = sum over depth of left . right.
// Persistent blocks in clusters of two, each with a producer warp that keeps a ring of operand tiles filled by TMA, and
// two or three consumer warpgroups that multiply them by wgmma and store what comes out. Both blocks of a cluster work
// on the same right tile: each loads half of it and multicasts it to both. The left operand goes from shared memory
// into the tensor cores, or through registers where something happens to it on the way: a ReLU, or the turn from
// [depth] [line] that wgmma does not do for tf32. docs/hopper-kernels.md describes how it works and why.
#pragma once
#include <algorithm>

#include "../arch/cluster.h"
#include "../arch/roles.h"
#include "../arch/tma.h"
#include "../arch/wgmma.h"
#include "gemm.cuh"
#include "moments.cuh"

namespace sepconv::cuda {

// A row of an operand tile in shared memory is 128 bytes of either.
struct WgmmaBf16 {
  using Element = arch::Bfloat16;
  static constexpr bool tf32 = false;
  static constexpr int rowElements = 64, instructionDepth = 16;
};
struct WgmmaTf32 {
  using Element = float;
  static constexpr bool tf32 = true;
  static constexpr int rowElements = 32, instructionDepth = 8;
};

constexpr int clusterBlocks = 2;

// A block's tile: each of WARPGROUPS makes BLOCKS times 64 left lines and all RIGHT ones.
template <int WARPGROUPS, int BLOCKS, int RIGHT>
struct WgmmaTile {
  static constexpr int warpgroups = WARPGROUPS, blocks = BLOCKS, left = WARPGROUPS * BLOCKS * 64, right = RIGHT;
  // TMA moves whole rows of 128 bytes, in halves: 184 lines are loaded as 192.
  static constexpr int loaded = (RIGHT + 63) / 64 * 64;
  static constexpr int consumers = WARPGROUPS * 128, threads = consumers + 128, warps = consumers / 32;
  // 65,536 registers; wgmma needs up to 128 for accumulators, the producer next to none.
  static constexpr int producerRegisters = WARPGROUPS == 2 ? 24 : 32, consumerRegisters = WARPGROUPS == 2 ? 240 : 160;
  static constexpr int stages = 4, rowBytes = 128;
  static constexpr int leftBytes = left * rowBytes, rightBytes = loaded * rowBytes;  // of a stage
};
using Wgmma192x184 = WgmmaTile<3, 1, 184>;
using Wgmma192x96 = WgmmaTile<3, 1, 96>;
using Wgmma128x256 = WgmmaTile<2, 1, 256>;
using Wgmma256x128 = WgmmaTile<2, 2, 128>;

struct WgmmaParameters {
  arch::TensorMap left, right;
  Store store;
  Output statistics;  // [row tile][mean, squares][column] of what is stored, where wanted
  int64_t rows;       // of y
  int columns;        // of y
  int depth, depthPerSplit, splits;
  int leftTiles, rightTiles;
  bool relu;  // before the product, of the left operand
};

// What a kernel does with its operands. LEFT, RIGHT: along what their memory runs. REGISTERS: left through registers.
// SWAPPED: left lines are columns of y, right lines its rows.
template <class FORMAT, arch::Major LEFT, arch::Major RIGHT, bool REGISTERS = false, bool SWAPPED = false>
struct WgmmaProduct {
  using Format = FORMAT;
  static constexpr arch::Major left = LEFT, right = RIGHT;
  static constexpr bool registers = REGISTERS, swapped = SWAPPED;
};

// The epilogue turns 32 lines of 16 at a time through shared memory, a warp by itself.
template <bool SWAPPED>
struct WgmmaStaging {
  // [16 rows][32 columns], rows 8 banks apart; or [32 rows][16 columns], pairs of rows 8 banks apart.
  static constexpr int pitch = SWAPPED ? 20 : 40, floats = (SWAPPED ? 32 : 16) * pitch;
};

template <class T, class P>
constexpr size_t wgmmaSharedBytes() {
  return size_t{T::stages} * (T::leftBytes + T::rightBytes) +
         size_t{T::warps} * WgmmaStaging<P::swapped>::floats * sizeof(float) + 2 * T::stages * sizeof(uint64_t);
}

// Where a block is in its list of tiles: a unit is two neighbouring left tiles, one per block of the cluster, of one
// right tile and one split. Units of the same left tiles follow each other, so that those are read from memory once.
struct WgmmaUnit {
  int left, right, split, begin, end;

  __device__ __forceinline__ WgmmaUnit(const WgmmaParameters& p, int unit, int rank) {
    right = unit % p.rightTiles;
    const int pairs = (p.leftTiles + clusterBlocks - 1) / clusterBlocks;
    left = unit / p.rightTiles % pairs * clusterBlocks + rank;
    split = unit / p.rightTiles / pairs;
    begin = split * p.depthPerSplit;
    end = begin + p.depthPerSplit < p.depth ? begin + p.depthPerSplit : p.depth;
  }
  static __device__ __forceinline__ int count(const WgmmaParameters& p) {
    return (p.leftTiles + clusterBlocks - 1) / clusterBlocks * p.rightTiles * p.splits;
  }
};

#if ARCH_HOPPER

template <class Element>
struct WgmmaShared {
  arch::Shared<Element> left, right;  // [stage][...], as TMA writes them
  arch::Shared<float> staging;        // [warp][...]
  arch::Barriers full, empty;         // by stage
};

// The stage of the ring that comes next, and which time round it is.
template <int STAGES>
struct Ring {
  int stage = 0, round = 0;
  __device__ __forceinline__ void advance() {
    if (++stage < STAGES) return;
    stage = 0;
    round ^= 1;
  }
};

// One thread: fills the ring.
template <class T, class P>
__device__ __forceinline__ void produce(const WgmmaParameters& p,
                                        const WgmmaShared<typename P::Format::Element>& shared, int rank) {
  constexpr int row = P::Format::rowElements, everyone = (1 << clusterBlocks) - 1;
  Ring<T::stages> ring;
  const int units = WgmmaUnit::count(p);
  ARCH_NO_UNROLL
  for (int unit = arch::blockX() / clusterBlocks; unit < units; unit += arch::gridX() / clusterBlocks) {
    const WgmmaUnit at(p, unit, rank);
    ARCH_NO_UNROLL
    for (int depth = at.begin; depth < at.end; depth += row) {
      arch::waitFor(shared.empty, ring.stage, ring.round ^ 1);  // of both blocks: the other's half lands here too
      arch::arriveExpecting(shared.full, ring.stage, T::leftBytes + T::rightBytes);
      const int leftAt = ring.stage * T::left * row, rightAt = ring.stage * T::loaded * row;
      if constexpr (P::left == arch::Major::depth) {
        arch::loadBox(p.left, shared.left, leftAt, shared.full, ring.stage, depth, at.left * T::left);
      } else {
        ARCH_UNROLL
        for (int i = 0; i < T::left; i += row)
          arch::loadBox(p.left, shared.left, leftAt + i * row, shared.full, ring.stage, at.left * T::left + i, depth);
      }
      if constexpr (P::right == arch::Major::depth) {
        const int half = rank * T::loaded / clusterBlocks;
        arch::loadBoxMulticast(p.right, shared.right, rightAt + half * row, shared.full, ring.stage, depth,
                               at.right * T::right + half, everyone);
      } else {
        const int half = rank * row / clusterBlocks;
        ARCH_UNROLL
        for (int i = 0; i < T::loaded; i += row)
          arch::loadBoxMulticast(p.right, shared.right, rightAt + (i + half) * row, shared.full, ring.stage,
                                 at.right * T::right + i, depth + half, everyone);
      }
      ring.advance();
    }
  }
}

// The A fragment of 16 lines per warp at depth k of a stage, for wgmma with A in registers.
template <class P>
__device__ __forceinline__ void loadLeft(uint32_t (&fragment)[4], const arch::Shared<typename P::Format::Element>& tile,
                                         int at, int line, int k, bool relu) {
  const int lane = arch::threadIndex() % 32;
  if constexpr (!P::Format::tf32) {
    // Chunks of 8 elements lie in the order of the swizzle.
    const int eight = lane / 8 % 2 * 8, sixteen = lane / 16 * 8, within = lane % 8;
    if constexpr (P::left == arch::Major::depth) {
      arch::loadMatrices<false>(fragment, tile, at + (line + eight + within) * 64 + (((k + sixteen) / 8) ^ within) * 8);
    } else {
      const int l = line + eight;
      arch::loadMatrices<true>(fragment, tile,
                               at + l / 64 * 4096 + (k + sixteen + within) * 64 + ((l % 64 / 8) ^ within) * 8);
    }
    if (relu) {
      ARCH_UNROLL
      for (int i = 0; i < 4; ++i) fragment[i] = arch::reluPair(fragment[i]);
    }
  } else {
    const int g = lane / 4, t = lane % 4;
    ARCH_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int l = line + i % 2 * 8 + g, depth = k + i / 2 * 4 + t;
      fragment[i] =
          arch::floatBits(tile.load(at + l / 32 * 1024 + depth * 32 + ((l % 32 / 4) ^ (depth % 8)) * 4 + l % 4)[0]);
    }
  }
}

// With those of all lanes whose number differs in bits from FIRST up.
template <int FIRST>
__device__ __forceinline__ void mergeLanes(Moments (&moments)[4]) {
  ARCH_UNROLL
  for (int e = 0; e < 4; ++e) {
    ARCH_UNROLL
    for (int mask = FIRST; mask < 32; mask *= 2) moments[e] = mergeAcross(moments[e], mask);
  }
}

// A warp's 16 lines of 64 and all right lines: through shared memory to y, rows 16 bytes per lane.
template <class T, class P>
__device__ __forceinline__ void storeTile(const WgmmaParameters& p, const arch::Shared<float>& staging,
                                          const float (&acc)[T::blocks][T::right / 2], const WgmmaUnit& at) {
  using Staging = WgmmaStaging<P::swapped>;
  const int warp = arch::threadIndex() / 32, lane = arch::threadIndex() % 32, g = lane / 4, t = lane % 4;
  const int own = warp * Staging::floats;
  const int64_t row0 = int64_t{P::swapped ? at.right * T::right : at.left * T::left};
  const int column0 = P::swapped ? at.left * T::left : at.right * T::right;
  const int firstLine = warp / 4 * T::blocks * 64 + warp % 4 * 16;  // of the block's first 64
  // 8 lanes share 4 rows of 32 columns; or 4 lanes share 8 rows of 16, rows 4 apart lying 16 banks apart.
  constexpr int step = P::swapped ? 8 : 4, lines = P::swapped ? 32 : 16;
  const int within = P::swapped ? (lane / 4 & 1) * 4 + lane / 8 : lane / 8,
            across = P::swapped ? lane % 4 * 4 : lane % 8 * 4;
  Moments moments[4];
  ARCH_UNROLL
  for (int e = 0; e < 4; ++e) moments[e] = {0.f, 0.f, 0.f};
  ARCH_UNROLL
  for (int chunk = 0; chunk < T::right; chunk += 32) {
    ARCH_UNROLL
    for (int block = 0; block < T::blocks; ++block) {
      ARCH_UNROLL
      for (int j = 0; j < 32 && chunk + j < T::right; j += 8) {
        const float* d = acc[block] + (chunk + j) / 2;
        if constexpr (P::swapped) {
          const int to = own + (j + t * 2) * Staging::pitch + g;
          staging.store<1>(to, {d[0]});
          staging.store<1>(to + Staging::pitch, {d[1]});
          staging.store<1>(to + 8, {d[2]});
          staging.store<1>(to + Staging::pitch + 8, {d[3]});
        } else {
          const int to = own + g * Staging::pitch + j + t * 2;
          staging.store<2>(to, {d[0], d[1]});
          staging.store<2>(to + 8 * Staging::pitch, {d[2], d[3]});
        }
      }
      arch::syncWarp();
      const int line = firstLine + block * 64;
      const int column = P::swapped ? column0 + line + across : column0 + chunk + across;
      const bool inTile = P::swapped || chunk + across < T::right;
      ARCH_UNROLL
      for (int r = 0; r < lines; r += step) {
        const int inChunk = r + within;
        const int64_t row = row0 + (P::swapped ? chunk : line) + inChunk;
        if (P::swapped && chunk + inChunk >= T::right) continue;
        if (row < p.rows && inTile && column < p.columns) {
          const Floats<4> sum = staging.load<4>(own + inChunk * Staging::pitch + across);
          const Floats<4> stored = storeProduct<4>(p.store, row, column, at.split, sum);
          if (p.statistics.present()) {
            ARCH_UNROLL
            for (int e = 0; e < 4; ++e) add(moments[e], stored[e]);
          }
        }
      }
      arch::syncWarp();
    }
    if (P::swapped || !p.statistics.present()) continue;
    // Lanes that share a column, then warps in order.
    mergeLanes<8>(moments);
    if (lane < 8) {
      ARCH_UNROLL
      for (int e = 0; e < 4; ++e) {
        staging.store<1>(own + across + e, {moments[e].count});
        staging.store<1>(own + 32 + across + e, {moments[e].mean});
        staging.store<1>(own + 64 + across + e, {moments[e].squares});
      }
    }
    arch::syncNamed(1, T::consumers);
    const int column = column0 + chunk + lane;
    if (warp == chunk / 32 % T::warps && chunk + lane < T::right && column < p.columns && row0 < p.rows) {
      Moments total{0.f, 0.f, 0.f};
      ARCH_UNROLL
      for (int w = 0; w < T::warps; ++w) {
        const int from = w * Staging::floats + lane;
        total = merge(total, {staging.load(from)[0], staging.load(from + 32)[0], staging.load(from + 64)[0]});
      }
      const int64_t to = int64_t{at.left} * 2 * p.columns + column;
      p.statistics.store(to, {total.mean});
      p.statistics.store(to + p.columns, {total.squares});
    }
    arch::syncNamed(1, T::consumers);
    ARCH_UNROLL
    for (int e = 0; e < 4; ++e) moments[e] = {0.f, 0.f, 0.f};
  }
  if (!P::swapped || !p.statistics.present()) return;
  // A column's rows are all in this warp.
  mergeLanes<4>(moments);
  ARCH_UNROLL
  for (int e = 0; e < 4; ++e) {
    const int column = column0 + firstLine + across + e;
    if (lane >= 4 || column >= p.columns || row0 >= p.rows) continue;
    const int64_t to = int64_t{at.right} * 2 * p.columns + column;
    p.statistics.store(to, {moments[e].mean});
    p.statistics.store(to + p.columns, {moments[e].squares});
  }
}

// A warp of a consumer warpgroup: multiplies what the ring holds.
template <class T, class P>
__device__ __forceinline__ void consume(const WgmmaParameters& p,
                                        const WgmmaShared<typename P::Format::Element>& shared, int rank) {
  using Format = typename P::Format;
  constexpr int row = Format::rowElements, instructions = row / Format::instructionDepth;
  // One instruction's depth further, in descriptors' units of 16 bytes.
  constexpr uint64_t leftStep = P::left == arch::Major::depth ? 2 : 128,
                     rightStep = P::right == arch::Major::depth ? 2 : 128;
  constexpr int linesBytes = 64 * T::rowBytes;  // from 64 lines to the next 64, along lines
  const int lane = arch::threadIndex() % 32, group = arch::threadIndex() / 128,
            quarter = arch::threadIndex() / 32 % 4 * 16;
  const auto release = [&](int stage) {
    if (lane < clusterBlocks) arch::arriveAt(shared.empty, stage, lane);
  };
  Ring<T::stages> ring;
  float acc[T::blocks][T::right / 2];
  [[maybe_unused]] uint32_t fragments[2][4];
  const int units = WgmmaUnit::count(p);
  ARCH_NO_UNROLL
  for (int unit = arch::blockX() / clusterBlocks; unit < units; unit += arch::gridX() / clusterBlocks) {
    const WgmmaUnit at(p, unit, rank);
    ARCH_UNROLL
    for (int block = 0; block < T::blocks; ++block) {
      ARCH_UNROLL
      for (int i = 0; i < T::right / 2; ++i) acc[block][i] = 0.f;
    }
    int before = -1;  // the stage whose products may still run
    ARCH_NO_UNROLL
    for (int depth = at.begin; depth < at.end; depth += row) {
      arch::waitFor(shared.full, ring.stage, ring.round);
      const uint64_t right = arch::describeOperand(shared.right, ring.stage * T::rightBytes, linesBytes);
      if constexpr (P::registers) {
        static_assert(T::blocks == 1 && instructions % 2 == 0, "two fragments take turns");
        ARCH_UNROLL
        for (int k = 0; k < instructions; ++k) {
          loadLeft<P>(fragments[k % 2], shared.left, ring.stage * T::left * row, group * 64 + quarter,
                      k * Format::instructionDepth, p.relu);
          arch::fenceProducts();
          arch::multiplyGroup<Format, P::right>(acc[0], fragments[k % 2], right + static_cast<uint64_t>(k) * rightStep);
          arch::commitProducts();
          arch::waitProducts<1>();  // the other fragment is free
          if (k == 0 && before >= 0) release(before);
        }
      } else {
        arch::fenceProducts();
        ARCH_UNROLL
        for (int k = 0; k < instructions; ++k) {
          ARCH_UNROLL
          for (int block = 0; block < T::blocks; ++block) {
            const uint64_t left = arch::describeOperand(
                shared.left, ring.stage * T::leftBytes + (group * T::blocks + block) * linesBytes, linesBytes);
            arch::multiplyGroup<Format, P::left, P::right>(acc[block], left + static_cast<uint64_t>(k) * leftStep,
                                                           right + static_cast<uint64_t>(k) * rightStep);
          }
        }
        arch::commitProducts();
        arch::waitProducts<1>();  // those of the step before are done: its stage may be filled again
        if (before >= 0) release(before);
      }
      before = ring.stage;
      ring.advance();
    }
    arch::waitProducts<0>();
    ARCH_UNROLL
    for (int block = 0; block < T::blocks; ++block) arch::keepInRegisters(acc[block]);
    release(before);
    storeTile<T, P>(p, shared.staging, acc, at);
  }
}

#endif

template <class T, class P>
__global__ void __launch_bounds__(T::threads, 1) gemmWgmma(const __grid_constant__ WgmmaParameters p) {
#if ARCH_HOPPER
  using Element = typename P::Format::Element;
  constexpr int row = P::Format::rowElements;
  arch::SharedMemory memory;
  WgmmaShared<Element> shared;
  shared.left = memory.array<Element, 1024>(T::stages * T::left * row);
  shared.right = memory.array<Element, 1024>(T::stages * T::loaded * row);
  shared.staging = memory.array<float>(T::warps * WgmmaStaging<P::swapped>::floats);
  shared.full = memory.array<uint64_t>(T::stages);
  shared.empty = memory.array<uint64_t>(T::stages);
  const int rank = arch::clusterRank();
  if (arch::threadIndex() == 0) {
    ARCH_UNROLL
    for (int stage = 0; stage < T::stages; ++stage) {
      arch::initialiseBarrier(shared.full, stage, 1);
      arch::initialiseBarrier(shared.empty, stage, clusterBlocks * T::warps);
    }
    arch::fenceBarrierInitialisation();
  }
  arch::clusterArrive();
  arch::clusterWait();
  arch::beginLaunch();
  if (arch::threadIndex() >= T::consumers) {
    arch::giveBackRegisters<T::producerRegisters>();
    if (arch::threadIndex() / 32 == T::warps && arch::electOne()) produce<T, P>(p, shared, rank);
    arch::syncWarp();
  } else {
    arch::takeRegisters<T::consumerRegisters>();
    consume<T, P>(p, shared, rank);
  }
  // The other block may still write this one's shared memory and arrive at its barriers.
  arch::clusterArrive();
  arch::clusterWait();
#endif
}

// Host side: a matrix of `lines` by `depth` elements as an operand, in boxes of half or all of a tile.
template <class Format, arch::Major MAJOR>
arch::TensorMap operandMap(DeviceInterface& device, const AnyInput& x, int64_t lines, int depth, int boxLines,
                           int boxDepth) {
  const bool along = MAJOR == arch::Major::depth;
  TensorMapRequest request{};
  request.data = const_cast<void*>(x.data);
  request.dtype = x.dtype;
  request.roundsToTf32 = Format::tf32;
  request.rows = static_cast<uint64_t>(along ? lines : depth);
  request.columns = static_cast<uint64_t>(along ? depth : lines);
  request.rowBytes = request.columns * sizeof(typename Format::Element);
  request.boxRows = static_cast<uint32_t>(along ? boxLines : boxDepth);
  request.boxColumns = Format::rowElements;
  return arch::tensorMap(device, request);
}

// `left` and `right` as dense matrices; p.left, p.right and the numbers of tiles are filled in here.
template <class T, class P>
void launchWgmma(DeviceInterface& device, const char* name, const AnyInput& left, const AnyInput& right,
                 WgmmaParameters p) {
  constexpr int row = P::Format::rowElements;
  const int64_t leftLines = P::swapped ? p.columns : p.rows, rightLines = P::swapped ? p.rows : p.columns;
  p.left = operandMap<typename P::Format, P::left>(device, left, leftLines, p.depth, T::left, row);
  p.right = operandMap<typename P::Format, P::right>(device, right, rightLines, p.depth, T::loaded / clusterBlocks,
                                                     row / clusterBlocks);
  p.leftTiles = static_cast<int>((leftLines + T::left - 1) / T::left);
  p.rightTiles = static_cast<int>((rightLines + T::right - 1) / T::right);
  const int units = (p.leftTiles + clusterBlocks - 1) / clusterBlocks * p.rightTiles * p.splits;
  const int clusters = std::min(units, std::max(1, device.properties().multiprocessors / clusterBlocks));
  LaunchOptions options;
  options.cluster = clusterBlocks;
  options.asynchronous = true;
  arch::launch(device, name, gemmWgmma<T, P>, {static_cast<uint32_t>(clusters * clusterBlocks), 1, 1}, T::threads,
               wgmmaSharedBytes<T, P>(), p, options);
}

}  // namespace sepconv::cuda
