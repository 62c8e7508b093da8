// y[rows, columns] = epilogue(A[rows, depth] . filter[depth, columns]), float32 on the SIMT units.
// A block makes a tile of ROWS x COLUMNS in steps of DEPTH, a thread THREAD_ROWS x THREAD_COLUMNS of it in registers.
// Operand tiles are double-buffered in shared memory: the filter's by asynchronous copies, A's through registers
// (transposed, so that a thread reads its rows as 16 bytes), since A may have to be computed: where it comes from is
// the Source's business (PointwiseSource: a matrix; SeparableSource: the depthwise result of the pixel, which so never
// exists in device memory). The filter is [depth, columns] or packed in panels. Sums run over depth in order:
// deterministic. One barrier per step.
#pragma once
#include "../arch/async_copy.h"
#include "../arch/sync.h"
#include "fused.cuh"

namespace sepconv::cuda {

template <int ROWS, int COLUMNS, int DEPTH, int THREAD_ROWS, int THREAD_COLUMNS, int BLOCKS_PER_MULTIPROCESSOR>
struct Tile {
  static constexpr int rows = ROWS, columns = COLUMNS, depth = DEPTH, threadRows = THREAD_ROWS,
                       threadColumns = THREAD_COLUMNS;
  static constexpr int threadsX = COLUMNS / THREAD_COLUMNS, threads = threadsX * (ROWS / THREAD_ROWS);
  static constexpr int minBlocks = BLOCKS_PER_MULTIPROCESSOR;
  // Rows of the transposed tile of A are four floats longer than needed: the transposing stores of a warp then meet in
  // two banks at most, and the rows stay 16-byte aligned.
  static constexpr int pitch = ROWS + 4;
  static constexpr int aFloats = DEPTH * pitch, bFloats = DEPTH * COLUMNS;
  static constexpr size_t sharedBytes = 2 * (aFloats + bFloats) * sizeof(float);
};
using Tile32x64 = Tile<32, 64, 16, 4, 4, 4>;
using Tile64x64 = Tile<64, 64, 16, 4, 4, 3>;
using Tile64x128 = Tile<64, 128, 16, 4, 8, 2>;
using Tile128x128 =
    Tile<128, 128, 8, 8, 8, 2>;  // 64 accumulators; two blocks leave 128 registers per thread, which depth 16 exceeds

// filter[k][n] lies at start + k * rowStride for the n that `start` was made for.
struct FilterView {
  Input data;
  int depth, columns, panel;

  __device__ __forceinline__ int rowStride() const { return panel ? panel : columns; }
  __device__ __forceinline__ int64_t start(int n) const {
    return panel ? int64_t{n / panel} * depth * panel + n % panel : n;
  }
  // Columns that exist in memory: a packed filter is padded with zeros.
  __device__ __forceinline__ int storedColumns() const {
    return panel ? (columns + panel - 1) / panel * panel : columns;
  }
};

template <class Source>
struct MatrixParameters {
  Source source;
  FilterView filter;
  Output y;
  Epilogue epilogue;
  int64_t rows;
};

// Host side: the filter of a problem.
inline FilterView filterView(const float* data, const MatrixProblem& problem) {
  const int64_t columns =
      problem.panel ? (int64_t{problem.columns} + problem.panel - 1) / problem.panel * problem.panel : problem.columns;
  return {view(data, columns * problem.depth), problem.depth, problem.columns, problem.panel};
}

// A Source has `Row open(row, inside)` and `Floats<N> load<N>(Row, k)`: A[row][k...k+N), k + N <= depth.
template <class T, class Source, int VECTOR>
__global__ void __launch_bounds__(T::threads, T::minBlocks)
    matrixKernel(const __grid_constant__ MatrixParameters<Source> p) {
  constexpr int aGroups = T::depth / VECTOR, aRowStep = T::threads / aGroups, aLoads = T::rows / aRowStep;
  constexpr int bGroups = T::columns / VECTOR, bDepthStep = T::threads / bGroups, bLoads = T::depth / bDepthStep;
  static_assert(VECTOR == 1 || VECTOR == 4, "4 or 16 bytes");
  static_assert(T::threads % aGroups == 0 && T::rows % aRowStep == 0, "threads cover the tile of A evenly");
  static_assert(T::threads % bGroups == 0 && T::depth % bDepthStep == 0, "threads cover the tile of the filter evenly");
  static_assert(T::threadRows % 4 == 0 && T::threadColumns % 4 == 0 && T::pitch % 4 == 0,
                "fragments are read as 16 bytes");
  static_assert(T::sharedBytes <= 48 << 10, "fits without opting in");

  const int thread = arch::threadIndex();
  const int64_t row0 = int64_t{arch::blockX()} * T::rows;
  const int column0 = arch::blockY() * T::columns;
  arch::SharedMemory memory;
  const arch::Shared<float> a = memory.array<float>(2 * T::aFloats);  // [stage][k][row]
  const arch::Shared<float> b = memory.array<float>(2 * T::bFloats);  // [stage][k][column]

  // What this thread fetches: column group aK of rows aRow + i * aRowStep, and column bColumn of filter rows bK + i *
  // bDepthStep.
  const int aK = thread % aGroups * VECTOR, aRow = thread / aGroups;
  const int bColumn = thread % bGroups * VECTOR, bK = thread / bGroups;
  typename Source::Row rows[aLoads];
  ARCH_UNROLL
  for (int i = 0; i < aLoads; ++i) {
    const int64_t row = row0 + aRow + i * aRowStep;
    rows[i] = p.source.open(row, row < p.rows);
  }
  const bool bInside = column0 + bColumn < p.filter.storedColumns();
  const int64_t bStart = p.filter.start(column0 + bColumn);

  Floats<VECTOR> fetched[aLoads];
  const auto fetch = [&](int k0, int stage) {
    ARCH_UNROLL
    for (int i = 0; i < bLoads; ++i) {
      const int k = bK + i * bDepthStep;
      arch::copyAsync<VECTOR>(b, stage * T::bFloats + k * T::columns + bColumn, p.filter.data,
                              bStart + int64_t{k0 + k} * p.filter.rowStride(), bInside && k0 + k < p.filter.depth);
    }
    arch::commitCopies();
    const bool inDepth = k0 + aK < p.filter.depth;
    ARCH_UNROLL
    for (int i = 0; i < aLoads; ++i)
      fetched[i] = inDepth && rows[i].inside() ? p.source.template load<VECTOR>(rows[i], k0 + aK) : filled<VECTOR>(0.f);
  };
  const auto keep = [&](int stage) {
    ARCH_UNROLL
    for (int i = 0; i < aLoads; ++i) {
      ARCH_UNROLL
      for (int v = 0; v < VECTOR; ++v)
        a.store<1>(stage * T::aFloats + (aK + v) * T::pitch + aRow + i * aRowStep, {fetched[i][v]});
    }
  };

  const int tx = thread % T::threadsX, ty = thread / T::threadsX;
  Floats<4> acc[T::threadRows][T::threadColumns / 4];
  ARCH_UNROLL
  for (int i = 0; i < T::threadRows; ++i) {
    ARCH_UNROLL
    for (int j = 0; j < T::threadColumns / 4; ++j) acc[i][j] = filled<4>(0.f);
  }

  fetch(0, 0);
  keep(0);
  const int steps = (p.filter.depth + T::depth - 1) / T::depth;
  ARCH_NO_UNROLL
  for (int step = 0; step < steps; ++step) {
    const int stage = step & 1;
    arch::waitCopies<0>();
    arch::syncThreads();  // this stage is complete for all; nobody reads the other one any more
    if (step + 1 < steps) fetch((step + 1) * T::depth, stage ^ 1);
    ARCH_UNROLL
    for (int k = 0; k < T::depth; ++k) {
      Floats<4> left[T::threadRows / 4], right[T::threadColumns / 4];
      ARCH_UNROLL
      for (int i = 0; i < T::threadRows / 4; ++i)
        left[i] = a.load<4>(stage * T::aFloats + k * T::pitch + ty * T::threadRows + i * 4);
      ARCH_UNROLL
      for (int j = 0; j < T::threadColumns / 4; ++j)
        right[j] = b.load<4>(stage * T::bFloats + k * T::columns + (j * T::threadsX + tx) * 4);
      ARCH_UNROLL
      for (int i = 0; i < T::threadRows; ++i) {
        ARCH_UNROLL
        for (int j = 0; j < T::threadColumns / 4; ++j) multiplyAdd(acc[i][j], filled<4>(left[i / 4][i % 4]), right[j]);
      }
    }
    if (step + 1 < steps) keep(stage ^ 1);
  }

  ARCH_UNROLL
  for (int j = 0; j < T::threadColumns / 4; ++j) {
    ARCH_UNROLL
    for (int v = 0; v < 4; v += VECTOR) {
      const int column = column0 + (j * T::threadsX + tx) * 4 + v;
      if (column >= p.filter.columns) continue;
      const ChannelEpilogue<VECTOR> epilogue(p.epilogue, column);
      ARCH_UNROLL
      for (int i = 0; i < T::threadRows; ++i) {
        const int64_t row = row0 + ty * T::threadRows + i;
        Floats<VECTOR> sum;
        ARCH_UNROLL
        for (int e = 0; e < VECTOR; ++e) sum[e] = acc[i][j][v + e];
        if (row < p.rows) epilogue.store(p.epilogue, p.y, row * p.filter.columns + column, sum);
      }
    }
  }
}

// Host side: blocks that cover y.
template <class T>
Extent matrixGrid(const MatrixProblem& problem) {
  return {static_cast<uint32_t>((problem.rows + T::rows - 1) / T::rows),
          static_cast<uint32_t>((problem.columns + T::columns - 1) / T::columns), 1};
}

}  // namespace sepconv::cuda
