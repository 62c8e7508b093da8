// C[rows, columns] = A . B^T over operands of operands.cuh on tensor cores (mma.sync, sm_80 and up), float32
// accumulators. A block makes ROWS x COLUMNS, its warps parts of it; operand tiles go to shared memory 16 bytes at a
// time by cp.async, STAGES of them in flight, as they lie in memory: [line][depth] or [depth][line]. ldmatrix
// (bfloat16, transposing where depth is not contiguous) or plain reads (tf32) make fragments of either; the paddings
// keep both free of bank conflicts. A ReLU before the product is applied to fragments. Operands that are computed (the
// depthwise result) are stored to the tile by their threads instead of copied. Sums run over depth in order of the
// steps: deterministic. Needs every vector of 16 bytes to lie within one line or depth: channels in multiples of 8
// (bfloat16) or 4 (tf32).
#pragma once
#include "../arch/async_copy.h"
#include "../arch/mma.h"
#include "gemm.cuh"
#include "moments.cuh"

namespace sepconv::cuda {

struct Bf16Format {
  using Element = arch::Bfloat16;
  static constexpr int vector = 8, depth = 32, instructionDepth = 16;
  static constexpr int depthPadding = 8, linePadding = 8;  // rows 16 bytes apart modulo 128
};
struct Tf32Format {
  using Element = float;
  static constexpr int vector = 4, depth = 16, instructionDepth = 8;
  static constexpr int depthPadding = 4, linePadding = 8;  // fragment reads meet 32 different banks
};

template <int ROWS, int COLUMNS, int WARPS_Y, int BLOCKS_PER_MULTIPROCESSOR>
struct MmaTile {
  static constexpr int rows = ROWS, columns = COLUMNS, warpColumns = 32, warpsX = COLUMNS / warpColumns;
  static constexpr int warpsY = WARPS_Y, warpRows = ROWS / warpsY, warps = warpsX * warpsY, threads = 32 * warps;
  static constexpr int minBlocks = BLOCKS_PER_MULTIPROCESSOR;
};
// 128 registers per thread in all of them. An operand that is computed takes the registers of accumulators: twice the
// warps share the tile.
template <bool IN_MEMORY>
using Mma128x128 = std::conditional_t<IN_MEMORY, MmaTile<128, 128, 2, 2>, MmaTile<128, 128, 4, 1>>;
template <bool IN_MEMORY>
using Mma64x64 = std::conditional_t<IN_MEMORY, MmaTile<64, 64, 2, 4>, MmaTile<64, 64, 4, 2>>;
constexpr int mmaStages = 3;

// One operand's tile of LINES x Format::depth in shared memory, as memory has it: [line][depth] or [depth][line].
template <class Format, bool CONTIGUOUS, int LINES>
struct MmaLayout {
  static constexpr bool contiguous = CONTIGUOUS;
  static constexpr int pitch = contiguous ? Format::depth + Format::depthPadding : LINES + Format::linePadding;
  static constexpr int elements = pitch * (contiguous ? LINES : Format::depth);
  // Where the element (line, depth) of a stage lies.
  static __device__ __forceinline__ int at(int stage, int line, int depth) {
    return stage * elements + (contiguous ? line * pitch + depth : depth * pitch + line);
  }
};

// An operand in memory: copied.
template <class T, class Format, class Operand, int LINES>
class MmaCopied : public MmaLayout<Format, Operand::depthContiguous, LINES> {
  using Layout = MmaLayout<Format, Operand::depthContiguous, LINES>;
  using Element = typename Format::Element;

 public:
  using Layout::contiguous;
  __device__ __forceinline__ void open(const Operand& operand, int64_t first, int64_t lines, int group) {
    group_ = group;
    along_ = arch::threadIndex() % vectors * Format::vector;
    across_ = arch::threadIndex() / vectors;
    // A pass of shared memory takes two lines of 64 bytes; lines 80 bytes apart share banks unless they are 4 apart.
    if constexpr (contiguous) across_ = (across_ & ~7) | (across_ & 1) << 2 | (across_ >> 1 & 3);
    ARCH_UNROLL
    for (int i = 0; i < (contiguous ? loads : 1); ++i) {
      const int64_t line = first + (contiguous ? across_ + i * step : along_);
      lines_[i] = operand.line(line, line < lines, group);
    }
  }

  // Starts the copies of the tile at depth k0.
  __device__ __forceinline__ void issue(const Operand& operand, const arch::Shared<Element>& tile, int stage, int k0,
                                        int end) const {
    if constexpr (contiguous) {
      const auto depth = depthOf(operand, k0 + along_, k0 + along_ < end, group_);
      ARCH_UNROLL
      for (int i = 0; i < loads; ++i)
        copy(operand, tile, Layout::at(stage, across_ + i * step, along_), lines_[i], depth);
    } else {
      ARCH_UNROLL
      for (int i = 0; i < loads; ++i) {
        const int k = k0 + across_ + i * step;
        copy(operand, tile, Layout::at(stage, along_, across_ + i * step), lines_[0],
             depthOf(operand, k, k < end, group_));
      }
    }
  }

 private:
  static constexpr int vectors = (contiguous ? Format::depth : LINES) / Format::vector, step = T::threads / vectors,
                       loads = (contiguous ? LINES : Format::depth) / step;
  static_assert(T::threads % vectors == 0 && (contiguous ? LINES : Format::depth) % step == 0,
                "threads cover the tile evenly");
  static_assert(!contiguous || (vectors == 4 && Layout::pitch * sizeof(Element) == 80 && step % 8 == 0),
                "the order of lines is made for these");

  static __device__ __forceinline__ void copy(const Operand& operand, const arch::Shared<Element>& tile, int to,
                                              const typename Operand::Line& line,
                                              const typename Operand::Depth& depth) {
    int64_t index;
    const bool valid = operand.locate(line, depth, index);
    arch::copyAsync<Format::vector>(
        tile, to, arch::Global<const Element>{static_cast<const Element*>(operand.x.data), operand.x.count}, index,
        valid);
  }

  int group_, along_, across_;
  typename Operand::Line lines_[contiguous ? loads : 1];
};

// An operand that is computed: a thread makes four channels of a strip of four pixels that follow each other. That is
// less than one task per thread, so the warps take turns from step to step while the others multiply.
template <class T, class Format, class Operand, int LINES>
class MmaComputed : public MmaLayout<Format, Operand::depthContiguous, LINES> {
  using Layout = MmaLayout<Format, Operand::depthContiguous, LINES>;
  using Element = typename Format::Element;

 public:
  using Layout::contiguous;  // pixels are lines, channels depth

 private:
  static constexpr int groups = (contiguous ? Format::depth : LINES) / 4,
                       tasks = groups * (contiguous ? LINES : Format::depth) / Operand::strip;
  static constexpr int turns = T::threads / tasks;
  static_assert(T::threads % tasks == 0 && tasks % 32 == 0, "whole warps take turns");

 public:
  __device__ __forceinline__ void open(const Operand&, int64_t first, int64_t lines, int) {
    first_ = static_cast<int>(first);
    lines_ = static_cast<int>(lines);
    const int task = arch::threadIndex() % tasks;
    channel_ = task % groups * 4;
    pixel_ = task / groups * Operand::strip;
    turn_ = arch::threadIndex() / tasks;
  }

  __device__ __forceinline__ void issue(const Operand& operand, const arch::Shared<Element>& tile, int stage, int k0,
                                        int end) const {
    if (k0 / Format::depth % turns != turn_) return;
    const int channel = (contiguous ? k0 : first_) + channel_, pixel = (contiguous ? first_ : k0) + pixel_;
    const bool inside = channel < (contiguous ? end : lines_);
    operand.template computeStrip<Element>(
        pixel, contiguous ? lines_ : end, inside ? channel : -1, [&](int i, const Floats<4>& values) {
          const int to = contiguous ? Layout::at(stage, pixel_ + i, channel_) : Layout::at(stage, channel_, pixel_ + i);
          arch::Vec<Element, 4> stored;
          ARCH_UNROLL
          for (int e = 0; e < 4; ++e) {
            if constexpr (Format::vector == 8)
              stored[e] = arch::toBfloat16(values[e]);
            else
              stored[e] = values[e];
          }
          tile.template store<4>(to, stored);
        });
  }

 private:
  int first_, lines_;  // of the tile, of the operand; at least 8 channels share the 2^31 elements
  int channel_, pixel_, turn_;
};

template <class T, class Format, class Operand, int LINES>
using MmaOperand =
    std::conditional_t<Operand::inMemory, MmaCopied<T, Format, Operand, LINES>, MmaComputed<T, Format, Operand, LINES>>;

// The fragments of 16 lines of A, or of 16 lines of B (two products wide), at depth k; lane l of the warp.
template <class Format, class Tile, bool B>
__device__ __forceinline__ void loadFragment(uint32_t (&fragment)[4],
                                             const arch::Shared<typename Format::Element>& tile, int stage, int line,
                                             int k, bool relu) {
  const int lane = arch::threadIndex() % 32;
  if constexpr (Format::vector == 8) {
    // Matrices in order of the registers: A steps over lines first, B over depth first.
    const int eight = lane / 8 % 2 * 8, sixteen = lane / 16 * 8;
    const int dLine = B ? sixteen : eight, dDepth = B ? eight : sixteen;
    if constexpr (Tile::contiguous)
      arch::loadMatrices<false>(fragment, tile, Tile::at(stage, line + dLine + lane % 8, k + dDepth));
    else
      arch::loadMatrices<true>(fragment, tile, Tile::at(stage, line + dLine, k + dDepth + lane % 8));
    if (relu) {
      ARCH_UNROLL
      for (int i = 0; i < 4; ++i) fragment[i] = arch::reluPair(fragment[i]);
    }
  } else {
    const int g = lane / 4, t = lane % 4;
    ARCH_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int dLine = B ? i / 2 * 8 : i % 2 * 8, dDepth = B ? i % 2 * 4 : i / 2 * 4;
      float value = tile.load(Tile::at(stage, line + dLine + g, k + dDepth + t))[0];
      if (relu) value = arch::reluKeepingNaN(value);
      fragment[i] = arch::toTf32(value);
    }
  }
}

template <class Format, class A, class B>
struct MmaParameters {
  GemmParameters<A, B> gemm;
  bool relu;          // before the product, of A
  Output statistics;  // [row tile][mean, squares][column] of what is stored, where wanted
};

template <class T, class Format, class A, class B>
constexpr size_t mmaSharedBytes() {
  constexpr size_t tiles =
      mmaStages * sizeof(typename Format::Element) *
      (MmaOperand<T, Format, A, T::rows>::elements + MmaOperand<T, Format, B, T::columns>::elements);
  constexpr size_t epilogue = T::warps * 16 * (T::warpColumns + 8) * sizeof(float);
  constexpr size_t moments = T::warpsY * T::columns * 3 * sizeof(float);
  return tiles > epilogue + moments ? tiles : epilogue + moments;
}

template <class T, class Format, class A, class B>
__global__ void __launch_bounds__(T::threads, T::minBlocks)
    gemmMma(const __grid_constant__ MmaParameters<Format, A, B> q) {
  arch::beginLaunch();
  using Left = MmaOperand<T, Format, A, T::rows>;
  using Right = MmaOperand<T, Format, B, T::columns>;
  static_assert(T::warpRows % 16 == 0 && Format::depth % Format::instructionDepth == 0, "whole instructions");
  const GemmParameters<A, B>& p = q.gemm;
  const int64_t row0 = int64_t{arch::blockX()} * T::rows;
  const int column0 = arch::blockY() * T::columns;
  const int group = arch::blockZ() / p.splits, split = arch::blockZ() % p.splits;
  const int begin = split * p.depthPerSplit,
            end = begin + p.depthPerSplit < p.depth ? begin + p.depthPerSplit : p.depth;
  const int warp = arch::threadIndex() / 32, warpRow = warp / T::warpsX * T::warpRows,
            warpColumn = warp % T::warpsX * T::warpColumns;

  float acc[T::warpRows / 16][T::warpColumns / 8][4];
  ARCH_UNROLL
  for (int i = 0; i < T::warpRows / 16; ++i) {
    ARCH_UNROLL
    for (int j = 0; j < T::warpColumns / 8; ++j) {
      ARCH_UNROLL
      for (int e = 0; e < 4; ++e) acc[i][j][e] = 0.f;
    }
  }
  {
    arch::SharedMemory memory;
    const auto a = memory.array<typename Format::Element>(mmaStages * Left::elements);
    const auto b = memory.array<typename Format::Element>(mmaStages * Right::elements);
    Left left;
    Right right;
    left.open(p.a, row0, p.rows, group);
    right.open(p.b, column0, p.columns, group);
    const int steps = (end - begin + Format::depth - 1) / Format::depth;
    const auto issue = [&](int step) {
      if (step < steps) {
        left.issue(p.a, a, step % mmaStages, begin + step * Format::depth, end);
        right.issue(p.b, b, step % mmaStages, begin + step * Format::depth, end);
      }
      arch::commitCopies();  // empty groups keep the count
    };
    // One place that issues: an operand that is computed is code of its own.
    ARCH_NO_UNROLL
    for (int step = 1 - mmaStages; step < steps; ++step) {
      if (step >= 0) {
        arch::waitCopies<mmaStages - 2>();
        arch::syncThreads();  // this stage is complete for all; nobody reads the one before it any more
      }
      issue(step + mmaStages - 1);
      if (step < 0) continue;
      const int stage = step % mmaStages;
      ARCH_UNROLL
      for (int k = 0; k < Format::depth; k += Format::instructionDepth) {
        uint32_t rows[T::warpRows / 16][4], columns[T::warpColumns / 16][4];
        ARCH_UNROLL
        for (int i = 0; i < T::warpRows / 16; ++i)
          loadFragment<Format, Left, false>(rows[i], a, stage, warpRow + i * 16, k, q.relu);
        ARCH_UNROLL
        for (int j = 0; j < T::warpColumns / 16; ++j)
          loadFragment<Format, Right, true>(columns[j], b, stage, warpColumn + j * 16, k, false);
        ARCH_UNROLL
        for (int i = 0; i < T::warpRows / 16; ++i) {
          ARCH_UNROLL
          for (int j = 0; j < T::warpColumns / 8; ++j) {
            if constexpr (Format::vector == 8)
              arch::multiplyBf16(acc[i][j], rows[i], columns[j / 2][j % 2 * 2], columns[j / 2][j % 2 * 2 + 1]);
            else
              arch::multiplyTf32(acc[i][j], rows[i], columns[j / 2][j % 2 * 2], columns[j / 2][j % 2 * 2 + 1]);
          }
        }
      }
    }
  }
  arch::syncThreads();  // the tiles become the epilogue's memory

  // Each warp turns 16 rows at a time through shared memory, so that rows are written 16 bytes per lane.
  constexpr int pitch = T::warpColumns + 8;  // rows 8 banks apart: pairs of four rows fill all 32
  arch::SharedMemory memory;
  const arch::Shared<float> turned = memory.array<float>(T::warps * 16 * pitch);
  const arch::Shared<float> shared = memory.array<float>(T::warpsY * T::columns * 3);
  const int lane = arch::threadIndex() % 32, g = lane / 4, t = lane % 4;
  const int column = warpColumn + lane % 8 * 4, channel = group * p.columns + column0 + column;
  const bool inColumns = column0 + column < p.columns;
  Moments moments[4];
  ARCH_UNROLL
  for (int e = 0; e < 4; ++e) moments[e] = {0.f, 0.f, 0.f};
  ARCH_UNROLL
  for (int i = 0; i < T::warpRows / 16; ++i) {
    ARCH_UNROLL
    for (int j = 0; j < T::warpColumns / 8; ++j) {
      const int at = warp * 16 * pitch + g * pitch + j * 8 + t * 2;
      turned.store<2>(at, {acc[i][j][0], acc[i][j][1]});
      turned.store<2>(at + 8 * pitch, {acc[i][j][2], acc[i][j][3]});
    }
    arch::syncWarp();
    ARCH_UNROLL
    for (int r = 0; r < 16; r += 4) {
      const int within = r + lane / 8;
      const int64_t row = row0 + warpRow + i * 16 + within;
      if (row < p.rows && inColumns) {
        const Floats<4> sum = turned.load<4>((warp * 16 + within) * pitch + lane % 8 * 4);
        const Floats<4> stored = storeProduct<4>(p.store, row, channel, split, sum);
        if (q.statistics.present()) {
          ARCH_UNROLL
          for (int e = 0; e < 4; ++e) add(moments[e], stored[e]);
        }
      }
    }
    arch::syncWarp();
  }
  if (!q.statistics.present()) return;

  // Four lanes share a column, then the warps above each other do.
  ARCH_UNROLL
  for (int e = 0; e < 4; ++e) {
    ARCH_UNROLL
    for (int mask = 8; mask < 32; mask *= 2) moments[e] = mergeAcross(moments[e], mask);
  }
  if (lane < 8) {
    ARCH_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int at = (warp / T::warpsX * T::columns + column + e) * 3;
      shared.store<1>(at, {moments[e].count});
      shared.store<1>(at + 1, {moments[e].mean});
      shared.store<1>(at + 2, {moments[e].squares});
    }
  }
  arch::syncThreads();
  ARCH_NO_UNROLL
  for (int c = arch::threadIndex(); c < T::columns; c += T::threads) {
    if (column0 + c >= p.columns) continue;
    Moments total{0.f, 0.f, 0.f};
    ARCH_UNROLL
    for (int y = 0; y < T::warpsY; ++y) {
      const int at = (y * T::columns + c) * 3;
      total = merge(total, {shared.load(at)[0], shared.load(at + 1)[0], shared.load(at + 2)[0]});
    }
    const int64_t to = int64_t{arch::blockX()} * 2 * p.columns + column0 + c;
    q.statistics.store(to, {total.mean});
    q.statistics.store(to + p.columns, {total.squares});
  }
}

// Host side: `config.tile` is 128x128 or 64x64.
template <class Format, class A, class B>
void launchMma(DeviceInterface& device, const char* name, const MatrixConfig& config, const GemmParameters<A, B>& gemm,
               int groups, Activation before, const Output& statistics = {}) {
  const MmaParameters<Format, A, B> q{gemm, before == Activation::relu, statistics};
  const auto start = [&](auto tile) {
    using T = decltype(tile);
    const Extent grid{static_cast<uint32_t>((gemm.rows + T::rows - 1) / T::rows),
                      static_cast<uint32_t>((gemm.columns + T::columns - 1) / T::columns),
                      static_cast<uint32_t>(groups * gemm.splits)};
    arch::launch(device, name, gemmMma<T, Format, A, B>, grid, T::threads, mmaSharedBytes<T, Format, A, B>(), q);
  };
  if (config.tile == MatrixTile::tile128x128)
    start(Mma128x128<A::inMemory>{});
  else
    start(Mma64x64<A::inMemory>{});
}

template <class A, class B>
void launchMma(DeviceInterface& device, const char* name, const MatrixConfig& config, const GemmParameters<A, B>& gemm,
               int groups, Activation before, const Output& statistics = {}) {
  if (config.precision == Precision::bfloat16)
    launchMma<Bf16Format>(device, name, config, gemm, groups, before, statistics);
  else
    launchMma<Tf32Format>(device, name, config, gemm, groups, before, statistics);
}

}  // namespace sepconv::cuda
