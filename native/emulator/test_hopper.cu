// hopperCheck(x[128, depth], w[96, depth]) -> y[128, 96] = -x . w^T, bfloat16 to float32: the synchronisation of the
// wgmma kernels in small, and what they do not use yet. A cluster of two blocks of 64 rows; a producer warp fills a
// ring of two stages by TMA, each block half of w for both; a consumer warpgroup changes the sign of x in shared
// memory, by its threads, multiplies from there or through registers, and stores through one staging tile by TMA. The
// attribute `bug` plants one defect; a mode of the emulator must find each of them, and none must find anything in
// 'none' and 'registers'. depth is a multiple of 64.
#include <array>

#include "../cuda/arch/cluster.h"
#include "../cuda/arch/launch.h"
#include "../cuda/arch/roles.h"
#include "../cuda/arch/sync.h"
#include "../cuda/arch/tma.h"
#include "../cuda/arch/wgmma.h"
#include "../cuda/problem.h"
#include "emulator.h"

namespace sepconv::emulator {
namespace {

enum class Bug : uint8_t {
  none,
  registers,              // none: A through registers
  missingFullWait,        // stage read before its loads have landed
  fewerBytes,             // barrier completes with the first load of two
  moreBytes,              // bytes expected that never land
  earlyRelease,           // stage given back while products still read it
  ownReleaseOnly,         // the other block's half of w overwrites a stage that is being read
  missingProxyFence,      // products read what threads have written, unfenced
  missingStoreFence,      // so does a TMA store
  missingStoreWait,       // staging tile overwritten while a store reads it
  missingProductWait,     // accumulators read while products run
  missingProductFence,    // no wgmma.fence
  changedFragment,        // registers of A overwritten while products run
  unpublishedBarrier,     // mbarriers initialised without their fence
  missingClusterBarrier,  // a block ends while the other still writes to it
  missingDependencyWait,  // no griddepcontrol.wait
  keptRegisters,          // the producer gives none back
  brokenStage             // tile not at a multiple of 1024 bytes
};
constexpr std::array<const char*, 18> bugNames = {"none",
                                                  "registers",
                                                  "missingFullWait",
                                                  "fewerBytes",
                                                  "moreBytes",
                                                  "earlyRelease",
                                                  "ownReleaseOnly",
                                                  "missingProxyFence",
                                                  "missingStoreFence",
                                                  "missingStoreWait",
                                                  "missingProductWait",
                                                  "missingProductFence",
                                                  "changedFragment",
                                                  "unpublishedBarrier",
                                                  "missingClusterBarrier",
                                                  "missingDependencyWait",
                                                  "keptRegisters",
                                                  "brokenStage"};

struct Format {
  static constexpr bool tf32 = false;
};
constexpr int rows = 64, columns = 96, row = 64, stages = 2, consumers = 128;
constexpr int leftTile = rows * row, rightTile = columns * row, stageBytes = (leftTile + rightTile) * 2;

struct HopperParameters {
  arch::TensorMap x, w, y;
  int depth;
};

template <Bug BUG>
__global__ void __launch_bounds__(256) multiplyNegated(const __grid_constant__ HopperParameters p) {
  const int thread = arch::threadIndex(), rank = arch::clusterRank();
  arch::SharedMemory memory;
  const auto left = memory.array<arch::Bfloat16, 1024>(stages * leftTile + 64);
  const auto right = memory.array<arch::Bfloat16, 1024>(stages * rightTile);
  const auto staging = memory.array<float, 1024>(rows * 32);
  const auto full = memory.array<uint64_t>(stages), empty = memory.array<uint64_t>(stages);
  if (thread == 0) {
    for (int stage = 0; stage < stages; ++stage) {
      arch::initialiseBarrier(full, stage, 1);
      arch::initialiseBarrier(empty, stage, BUG == Bug::ownReleaseOnly ? 1 : 2);
    }
    if (BUG != Bug::unpublishedBarrier) arch::fenceBarrierInitialisation();
  }
  arch::clusterArrive();
  arch::clusterWait();
  if (BUG != Bug::missingDependencyWait) arch::beginLaunch();
  const int steps = p.depth / row;
  if (thread >= consumers) {
    if (BUG != Bug::keptRegisters) arch::giveBackRegisters<40>();
    if (thread / 32 == consumers / 32 && arch::electOne()) {
      for (int step = 0; step < steps; ++step) {
        const int stage = step % stages, half = rank * columns / 2;
        arch::waitFor(empty, stage, (step / stages & 1) ^ 1);
        const int less = BUG == Bug::fewerBytes ? leftTile * 2 : 0, more = BUG == Bug::moreBytes ? 16 : 0;
        arch::arriveExpecting(full, stage, stageBytes - less + more);
        arch::loadBoxMulticast(p.w, right, stage * rightTile + half * row, full, stage, step * row, half, 3);
        arch::loadBox(p.x, left, stage * leftTile + (BUG == Bug::brokenStage ? 64 : 0), full, stage, step * row,
                      rank * rows);
      }
    }
    arch::syncWarp();
  } else {
    arch::takeRegisters<256>();
    float acc[columns / 2];
    for (float& value : acc) value = 0.f;
    const int lane = thread % 32, line = thread / 32 * 16 + lane / 8 % 2 * 8 + lane % 8;
    for (int step = 0; step < steps; ++step) {
      const int stage = step % stages;
      if (BUG != Bug::missingFullWait) arch::waitFor(full, stage, step / stages & 1);
      for (int i = thread * 8; i < leftTile; i += consumers * 8) {
        auto values = left.load<8>(stage * leftTile + i);
        for (int e = 0; e < 8; ++e) values[e].bits ^= 0x8000;
        left.store<8>(stage * leftTile + i, values);
      }
      if (BUG != Bug::missingProxyFence) arch::fenceAsyncProxy();
      arch::syncNamed(1, consumers);
      const uint64_t a = arch::describeOperand(left, stage * leftTile * 2, 0),
                     b = arch::describeOperand(right, stage * rightTile * 2, 0);
      uint32_t fragments[4][4];
      if (BUG != Bug::missingProductFence) arch::fenceProducts();
      for (int k = 0; k < 4; ++k) {
        if (BUG == Bug::registers || BUG == Bug::changedFragment) {
          const int chunk = k * 2 + lane / 16;
          uint32_t(&fragment)[4] = fragments[BUG == Bug::changedFragment ? 0 : k];
          arch::loadMatrices<false>(fragment, left, stage * leftTile + line * row + (chunk ^ (line % 8)) * 8);
          arch::multiplyGroup<Format, arch::Major::depth>(acc, fragment, b + static_cast<uint64_t>(k) * 2);
        } else {
          arch::multiplyGroup<Format, arch::Major::depth, arch::Major::depth>(acc, a + static_cast<uint64_t>(k) * 2,
                                                                              b + static_cast<uint64_t>(k) * 2);
        }
      }
      arch::commitProducts();
      if (BUG != Bug::earlyRelease && (BUG != Bug::missingProductWait || step + 1 < steps)) arch::waitProducts<0>();
      arch::syncNamed(1, consumers);
      if (thread < 2 && (BUG != Bug::ownReleaseOnly || thread == rank)) arch::arriveAt(empty, stage, thread);
      if (BUG == Bug::earlyRelease) arch::waitProducts<0>();
    }
    for (int chunk = 0; chunk < columns; chunk += 32) {
      for (int j = 0; j < 32; j += 8)
        for (int i = 0; i < 4; ++i) {
          const int r = thread / 32 * 16 + lane / 4 + i / 2 * 8, c = j + lane % 4 * 2 + i % 2;
          staging.store<1>(r * 32 + ((c / 4) ^ (r % 8)) * 4 + c % 4, {acc[(chunk + j) / 2 + i]});
        }
      if (BUG != Bug::missingStoreFence) arch::fenceAsyncProxy();
      arch::syncNamed(1, consumers);
      if (thread == 0) {
        arch::storeBox(p.y, staging, 0, chunk, rank * rows);
        arch::commitStores();
        if (BUG != Bug::missingStoreWait || chunk + 32 >= columns) arch::waitStores<0>();
      }
      arch::syncNamed(1, consumers);
    }
    if (BUG == Bug::missingProductWait) arch::waitProducts<0>();
  }
  if (BUG == Bug::missingClusterBarrier) return;
  arch::clusterArrive();
  arch::clusterWait();
}

template <size_t... I>
constexpr std::array<void (*)(HopperParameters), sizeof...(I)> variants(std::index_sequence<I...>) {
  return {multiplyNegated<static_cast<Bug>(I)>...};
}

class HopperCheck final : public cuda::Kernel {
 public:
  explicit HopperCheck(const CallDescription& call) {
    depth_ = static_cast<int>(cuda::requireInput(call, 0, "x", 2, DType::bfloat16).dim(1));
    cuda::requireOutput(call, 0, {2 * rows, columns});
    const std::string bug = call.attributes.text("bug", "none");
    while (variant_ < bugNames.size() && bug != bugNames[variant_]) ++variant_;
    if (variant_ == bugNames.size()) cuda::refuse(call, "unknown bug '" + bug + "'");
  }
  void launch(cuda::DeviceInterface& device, const cuda::Arguments& arguments) const override {
    HopperParameters p{};
    const auto operand = [&](size_t index, uint64_t lines, uint32_t box) {
      const auto depth = static_cast<uint64_t>(depth_);
      return arch::tensorMap(device, {const_cast<void*>(arguments.inputs[index]), DType::bfloat16, false, lines, depth,
                                      depth * 2, box, row});
    };
    p.x = operand(0, 2 * rows, rows);
    p.w = operand(1, columns, columns / 2);
    p.y = arch::tensorMap(device,
                          {arguments.outputs[0], DType::float32, false, 2 * rows, columns, columns * 4, rows, 32});
    p.depth = depth_;
    cuda::LaunchOptions options;
    options.cluster = 2;
    options.asynchronous = true;
    arch::launch(device, "hopperCheck", variants(std::make_index_sequence<bugNames.size()>())[variant_], {2, 1, 1}, 256,
                 stages * stageBytes + 1024 + rows * 32 * sizeof(float) + 2 * stages * sizeof(uint64_t), p, options);
  }

 private:
  int depth_;
  size_t variant_ = 0;
};

}  // namespace

void registerHopperCheck(cuda::Registry& registry) {
  registry["hopperCheck"] = [](const CallDescription& call,
                               const cuda::DeviceProperties&) -> std::unique_ptr<cuda::Kernel> {
    return std::make_unique<HopperCheck>(call);
  };
}

}  // namespace sepconv::emulator
