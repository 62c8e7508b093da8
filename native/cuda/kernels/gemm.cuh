// C[rows, columns] = A . B^T over operands of operands.cuh, float32 on the SIMT units, exact for any shape and storage.
// A block makes a tile of ROWS x COLUMNS in steps of DEPTH, a thread THREAD_ROWS x THREAD_COLUMNS of it in registers.
// Operand tiles are double-buffered in shared memory as [depth][line], through registers, since an operand may have to
// be computed, converted or transposed; the next step's loads are in flight while this one is multiplied. Sums run over
// depth in order: deterministic. One barrier per step.
#pragma once
#include "../arch/launch.h"
#include "../arch/sync.h"
#include "../choose.h"
#include "operands.cuh"

namespace sepconv::cuda {

template <int ROWS, int COLUMNS, int DEPTH, int THREAD_ROWS, int THREAD_COLUMNS, int BLOCKS_PER_MULTIPROCESSOR>
struct Tile {
  static constexpr int rows = ROWS, columns = COLUMNS, depth = DEPTH, threadRows = THREAD_ROWS,
                       threadColumns = THREAD_COLUMNS;
  static constexpr int threadsX = COLUMNS / THREAD_COLUMNS, threads = threadsX * (ROWS / THREAD_ROWS);
  static constexpr int minBlocks = BLOCKS_PER_MULTIPROCESSOR;
  // Lines are four floats longer than needed: transposing stores of a warp then meet in two banks at most, and the
  // lines stay 16-byte aligned.
  static constexpr int pitchA = ROWS + 4, pitchB = COLUMNS + 4;
  static constexpr int aFloats = DEPTH * pitchA, bFloats = DEPTH * pitchB;
  static constexpr size_t sharedBytes = 2 * (aFloats + bFloats) * sizeof(float);
};
using Tile32x64 = Tile<32, 64, 16, 4, 4, 4>;
using Tile64x64 = Tile<64, 64, 16, 4, 4, 3>;
using Tile64x128 = Tile<64, 128, 16, 4, 8, 2>;
// 64 accumulators; two blocks leave 128 registers per thread, which depth 16 exceeds.
using Tile128x128 = Tile<128, 128, 8, 8, 8, 2>;

// What one thread fetches of an operand's tile of LINES x T::depth: `loads` vectors, along depth or along the lines.
template <class T, class Operand, int LINES, int PITCH, int VECTOR>
class OperandTile {
  static constexpr bool contiguous = Operand::depthContiguous;
  static constexpr int vectors = (contiguous ? T::depth : LINES) / VECTOR, step = T::threads / vectors,
                       loads = (contiguous ? LINES : T::depth) / step;
  static_assert(VECTOR == 1 || VECTOR == 4, "4 or 16 bytes");
  static_assert(T::threads % vectors == 0 && (contiguous ? LINES : T::depth) % step == 0,
                "threads cover the tile evenly");

 public:
  __device__ __forceinline__ void open(const Operand& operand, int64_t first, int64_t lines, int group) {
    group_ = group;
    along_ = arch::threadIndex() % vectors * VECTOR;
    across_ = arch::threadIndex() / vectors;
    ARCH_UNROLL
    for (int i = 0; i < (contiguous ? loads : 1); ++i) {
      const int64_t line = first + (contiguous ? across_ + i * step : along_);
      lines_[i] = operand.line(line, line < lines, group);
    }
  }
  __device__ __forceinline__ void fetch(const Operand& operand, int k0, int end) {
    if constexpr (contiguous) {
      const auto depth = depthOf(operand, k0 + along_, k0 + along_ < end, group_);
      ARCH_UNROLL
      for (int i = 0; i < loads; ++i) fetched_[i] = loadOperand<VECTOR>(operand, lines_[i], depth);
    } else {
      ARCH_UNROLL
      for (int i = 0; i < loads; ++i) {
        const int k = k0 + across_ + i * step;
        fetched_[i] = loadOperand<VECTOR>(operand, lines_[0], depthOf(operand, k, k < end, group_));
      }
    }
  }
  __device__ __forceinline__ void keep(const arch::Shared<float>& tile, int stage) const {
    ARCH_UNROLL
    for (int i = 0; i < loads; ++i) {
      if constexpr (contiguous) {
        ARCH_UNROLL
        for (int v = 0; v < VECTOR; ++v)
          tile.store<1>(stage + (along_ + v) * PITCH + across_ + i * step, {fetched_[i][v]});
      } else {
        tile.store<VECTOR>(stage + (across_ + i * step) * PITCH + along_, fetched_[i]);
      }
    }
  }

 private:
  int group_, along_, across_;
  typename Operand::Line lines_[contiguous ? loads : 1];
  Floats<VECTOR> fetched_[loads];
};

// Stores N elements of C and returns what was stored.
template <int N>
__device__ __forceinline__ Floats<N> storeProduct(const Store& store, int64_t row, int channel, int split,
                                                  Floats<N> value) {
  int64_t index = row * store.rowStride + channel;
  if (store.splitStride) {
    index += split * store.splitStride;
  } else if (store.mask.x.present()) {
    store.mask.apply<N>(value, index, channel);
  } else {
    ChannelEpilogue<N>(store.epilogue, channel).apply(store.epilogue, index, value);
  }
  store.y.store<N>(index, value);
  return value;
}

template <class T, class A, class B, int VECTOR>
__global__ void __launch_bounds__(T::threads, T::minBlocks) gemmSimt(const __grid_constant__ GemmParameters<A, B> p) {
  arch::beginLaunch();
  static_assert(T::threadRows % 4 == 0 && T::threadColumns % 4 == 0 && T::pitchA % 4 == 0 && T::pitchB % 4 == 0,
                "fragments are read as 16 bytes");
  static_assert(T::sharedBytes <= 48 << 10, "fits without opting in");
  const int thread = arch::threadIndex();
  const int64_t row0 = int64_t{arch::blockX()} * T::rows;
  const int column0 = arch::blockY() * T::columns;
  const int group = arch::blockZ() / p.splits, split = arch::blockZ() % p.splits;
  const int begin = split * p.depthPerSplit,
            end = begin + p.depthPerSplit < p.depth ? begin + p.depthPerSplit : p.depth;
  arch::SharedMemory memory;
  const arch::Shared<float> a = memory.array<float>(2 * T::aFloats);  // [stage][k][row]
  const arch::Shared<float> b = memory.array<float>(2 * T::bFloats);  // [stage][k][column]
  OperandTile<T, A, T::rows, T::pitchA, VECTOR> left;
  OperandTile<T, B, T::columns, T::pitchB, VECTOR> right;
  left.open(p.a, row0, p.rows, group);
  right.open(p.b, column0, p.columns, group);

  const int tx = thread % T::threadsX, ty = thread / T::threadsX;
  Floats<4> acc[T::threadRows][T::threadColumns / 4];
  ARCH_UNROLL
  for (int i = 0; i < T::threadRows; ++i) {
    ARCH_UNROLL
    for (int j = 0; j < T::threadColumns / 4; ++j) acc[i][j] = filled<4>(0.f);
  }

  left.fetch(p.a, begin, end);
  right.fetch(p.b, begin, end);
  left.keep(a, 0);
  right.keep(b, 0);
  const int steps = (end - begin + T::depth - 1) / T::depth;
  ARCH_NO_UNROLL
  for (int step = 0; step < steps; ++step) {
    const int stage = step & 1;
    arch::syncThreads();  // this stage is complete for all; nobody reads the other one any more
    if (step + 1 < steps) {
      left.fetch(p.a, begin + (step + 1) * T::depth, end);
      right.fetch(p.b, begin + (step + 1) * T::depth, end);
    }
    ARCH_UNROLL
    for (int k = 0; k < T::depth; ++k) {
      Floats<4> rows[T::threadRows / 4], columns[T::threadColumns / 4];
      ARCH_UNROLL
      for (int i = 0; i < T::threadRows / 4; ++i)
        rows[i] = a.load<4>(stage * T::aFloats + k * T::pitchA + ty * T::threadRows + i * 4);
      ARCH_UNROLL
      for (int j = 0; j < T::threadColumns / 4; ++j)
        columns[j] = b.load<4>(stage * T::bFloats + k * T::pitchB + (j * T::threadsX + tx) * 4);
      ARCH_UNROLL
      for (int i = 0; i < T::threadRows; ++i) {
        ARCH_UNROLL
        for (int j = 0; j < T::threadColumns / 4; ++j)
          multiplyAdd(acc[i][j], filled<4>(rows[i / 4][i % 4]), columns[j]);
      }
    }
    if (step + 1 < steps) {
      left.keep(a, (stage ^ 1) * T::aFloats);
      right.keep(b, (stage ^ 1) * T::bFloats);
    }
  }

  ARCH_UNROLL
  for (int j = 0; j < T::threadColumns / 4; ++j) {
    ARCH_UNROLL
    for (int v = 0; v < 4; v += VECTOR) {
      const int column = column0 + (j * T::threadsX + tx) * 4 + v;
      if (column >= p.columns) continue;
      ARCH_UNROLL
      for (int i = 0; i < T::threadRows; ++i) {
        const int64_t row = row0 + ty * T::threadRows + i;
        if (row >= p.rows) continue;
        Floats<VECTOR> sum;
        ARCH_UNROLL
        for (int e = 0; e < VECTOR; ++e) sum[e] = acc[i][j][v + e];
        storeProduct<VECTOR>(p.store, row, group * p.columns + column, split, sum);
      }
    }
  }
}

// Host side.
template <class T, int VECTOR, class A, class B>
void launchSimt(DeviceInterface& device, const char* name, const GemmParameters<A, B>& p, int groups) {
  const Extent grid{static_cast<uint32_t>((p.rows + T::rows - 1) / T::rows),
                    static_cast<uint32_t>((p.columns + T::columns - 1) / T::columns),
                    static_cast<uint32_t>(groups * p.splits)};
  arch::launch(device, name, gemmSimt<T, A, B, VECTOR>, grid, T::threads, T::sharedBytes, p);
}

// A matrix whose rows are lines: element (line, k) at line * stride + k.
inline MatrixOperand<true> rowsOf(const AnyInput& x, int stride, Activation activation = Activation::none) {
  return {x, activation, stride, 1, 0, 0, 0, 0, 0};
}
// A matrix whose columns are lines: element (line, k) at k * stride + line.
inline MatrixOperand<false> columnsOf(const AnyInput& x, int stride, Activation activation = Activation::none) {
  return {x, activation, 1, stride, 0, 0, 0, 0, 0};
}

// A filter[depth, columns], in panels of [depth, panel] where `panel` is set; its columns are lines.
inline MatrixOperand<false> filterOf(const AnyInput& filter, int depth, int columns, int panel) {
  MatrixOperand<false> operand = columnsOf(filter, panel ? panel : columns);
  operand.panel = panel;
  operand.panelStride = panel * depth;
  return operand;
}
// Columns that exist in memory: a packed filter is padded with zeros.
inline int64_t storedColumns(const MatrixProblem& problem) {
  const int64_t panel = problem.panel ? problem.panel : 1;
  return (problem.columns + panel - 1) / panel * panel;
}

// The sum over splits of partial[split][elements], in order; splits.cu.
void launchSumSplits(DeviceInterface& device, const char* name, const float* partial, float* y, int64_t elements,
                     int splits);

}  // namespace sepconv::cuda
