// mean[c] and biased variance[c] over the rows of x[rows, c], float32, in two launches: every block follows 32 channels
// down one chunk of rows by Welford's recurrence (eight interleaved runs, merged in shared memory), then one warp per
// channel merges the chunks. Chunks depend on the shape alone and are merged in a fixed tree: deterministic, and free
// of cancellation.
#include "../arch/sync.h"
#include "grid.cuh"
#include "moments.cuh"
#include "statistics.cuh"

namespace sepconv::cuda {
namespace {

constexpr int runsPerBlock = 8, statisticsThreads = 32 * runsPerBlock;

struct PartialParameters {
  AnyInput x;
  Output partial;  // [chunk][mean, squares][c]
  int64_t rows;
  int channels, chunkRows;
};

__global__ void __launch_bounds__(statisticsThreads) partialMoments(const __grid_constant__ PartialParameters p) {
  arch::beginLaunch();
  const int lane = arch::threadIndex() % 32, run = arch::threadIndex() / 32;
  const int channel = arch::blockY() * 32 + lane;
  const int64_t first = int64_t{arch::blockX()} * p.chunkRows;
  const int64_t end = first + p.chunkRows < p.rows ? first + p.chunkRows : p.rows;
  arch::SharedMemory memory;
  const auto shared = memory.array<float>(3 * statisticsThreads);
  Moments m{0.f, 0.f, 0.f};
  if (channel < p.channels) {
    ARCH_NO_UNROLL
    for (int64_t row = first + run; row < end; row += runsPerBlock) {
      add(m, p.x.load(row * p.channels + channel)[0]);
    }
  }
  const int at = arch::threadIndex() * 3;
  shared.store<1>(at, {m.count});
  shared.store<1>(at + 1, {m.mean});
  shared.store<1>(at + 2, {m.squares});
  arch::syncThreads();
  if (run || channel >= p.channels) return;
  ARCH_NO_UNROLL
  for (int other = 1; other < runsPerBlock; ++other) {
    const int from = (other * 32 + lane) * 3;
    m = merge(m, {shared.load(from)[0], shared.load(from + 1)[0], shared.load(from + 2)[0]});
  }
  const int64_t to = int64_t{arch::blockX()} * 2 * p.channels + channel;
  p.partial.store<1>(to, {m.mean});
  p.partial.store<1>(to + p.channels, {m.squares});
}

struct MergeParameters {
  Input partial;
  Output mean, variance;
  int64_t rows;
  int channels, chunkRows, chunks;
};

__global__ void __launch_bounds__(statisticsThreads) mergeMoments(const __grid_constant__ MergeParameters p) {
  arch::beginLaunch();
  const int lane = arch::threadIndex() % 32;
  const int channel = arch::blockX() * runsPerBlock + arch::threadIndex() / 32;
  Moments m{0.f, 0.f, 0.f};
  if (channel < p.channels) {
    ARCH_NO_UNROLL
    for (int chunk = lane; chunk < p.chunks; chunk += 32) {
      const int64_t left = p.rows - int64_t{chunk} * p.chunkRows;
      const int64_t from = int64_t{chunk} * 2 * p.channels + channel;
      m = merge(m, {static_cast<float>(left < p.chunkRows ? left : p.chunkRows), p.partial.load(from)[0],
                    p.partial.load(from + p.channels)[0]});
    }
  }
  // All lanes of the warp are on one channel, so all take part.
  ARCH_UNROLL
  for (int mask = 16; mask; mask /= 2) m = mergeAcross(m, mask);
  if (lane || channel >= p.channels) return;
  p.mean.store<1>(channel, {m.mean});
  p.variance.store<1>(channel, {m.squares / static_cast<float>(p.rows)});
}

class BatchNormStatistics final : public Kernel {
 public:
  explicit BatchNormStatistics(const CallDescription& call) {
    const TensorType& x = requireFloating(call, 0, "x", 0);
    dtype_ = x.dtype;
    if (x.rank() < 2) refuse(call, "x must have rank 2 or more");
    rows_ = x.rows();
    channels_ = static_cast<int>(x.dim(-1));
    if (channels_ > 32 * 65535) refuse(call, "more than 2097120 channels");
    requireOutput(call, 0, {channels_});
    requireOutput(call, 1, {channels_});
  }
  size_t workspaceBytes() const override { return statisticsWorkspaceBytes(rows_, channels_); }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    launchStatistics(device, view(arguments.inputs[0], rows_ * channels_, dtype_), rows_, channels_,
                     arguments.workspace, arguments.output(0), arguments.output(1));
  }

 private:
  DType dtype_;
  int64_t rows_;
  int channels_;
};

}  // namespace

// 256 rows are 32 steps per run; beyond 1024 chunks they grow instead.
int64_t statisticsChunkRows(int64_t rows) {
  const int64_t least = 256, most = 1024;
  return (rows + most - 1) / most > least ? (rows + most - 1) / most : least;
}

size_t statisticsWorkspaceBytes(int64_t rows, int channels) {
  const int64_t perChunk = statisticsChunkRows(rows);
  return static_cast<size_t>((rows + perChunk - 1) / perChunk * 2 * channels) * sizeof(float);
}

void launchStatistics(DeviceInterface& device, const AnyInput& y, int64_t rows, int channels, void* workspace,
                      float* mean, float* variance) {
  const int perChunk = static_cast<int>(statisticsChunkRows(rows)),
            chunks = static_cast<int>((rows + perChunk - 1) / perChunk);
  auto* partial = static_cast<float*>(workspace);
  const int64_t partials = int64_t{chunks} * 2 * channels;
  const PartialParameters first{y, view(partial, partials), rows, channels, perChunk};
  arch::launch(device, "batchNormStatistics (chunks)", partialMoments,
               {static_cast<uint32_t>(chunks), static_cast<uint32_t>((channels + 31) / 32), 1}, statisticsThreads,
               3 * statisticsThreads * sizeof(float), first);
  launchMergeMoments(device, partial, rows, channels, perChunk, mean, variance);
}

void launchMergeMoments(DeviceInterface& device, const float* partial, int64_t rows, int channels, int chunkRows,
                        float* mean, float* variance) {
  const int chunks = static_cast<int>((rows + chunkRows - 1) / chunkRows);
  const MergeParameters second{view(partial, int64_t{chunks} * 2 * channels),
                               view(mean, channels),
                               view(variance, channels),
                               rows,
                               channels,
                               chunkRows,
                               chunks};
  arch::launch(device, "batchNormStatistics (merge)", mergeMoments,
               {static_cast<uint32_t>((channels + runsPerBlock - 1) / runsPerBlock), 1, 1}, statisticsThreads, 0,
               second);
}

void registerStatisticsKernels(Registry& registry) { registry["batchNormStatistics"] = make<BatchNormStatistics>; }

}  // namespace sepconv::cuda
