// archCheckHopper(x[20480]) -> y[16384]: the wrappers of arch/ for compute capability 9.0 that the attribute `group`
// names, as archCheck does for the others. Each is right where y is what test/cuda/archHopper.ts says.
#include <array>

#include "../arch/cluster.h"
#include "../arch/roles.h"
#include "../arch/tma.h"
#include "../arch/wgmma.h"
#include "gemm_wgmma.cuh"
#include "grid.cuh"

namespace sepconv::cuda {
namespace {

using arch::Major;

constexpr int inputElements = 20480, outputElements = 16384;
constexpr int boxRows = 32, boxColumns = 32;

struct HopperCheckParameters {
  Input x;
  Output y;
  arch::TensorMap matrix;   // x as [48, 40]
  arch::TensorMap rounded;  // the same, rounded to tf32
  arch::TensorMap half;     // the same in boxes of half the rows
  arch::TensorMap target;   // the first elements of y as [64, 64]
};

#if ARCH_HOPPER

constexpr int leftLines = 64, box = boxRows * boxColumns;

// Where an element of a box of 32 floats per row lies.
__device__ __forceinline__ int inBox(int row, int column) {
  return row * boxColumns + ((column / 4) ^ (row % 8)) * 4 + column % 4;
}

__device__ __forceinline__ void publish(const arch::Barriers& barriers, int count, int arrivals) {
  if (arch::threadIndex() == 0) {
    ARCH_NO_UNROLL
    for (int i = 0; i < count; ++i) arch::initialiseBarrier(barriers, i, arrivals);
    arch::fenceBarrierInitialisation();
  }
  arch::clusterArrive();
  arch::clusterWait();
}

// y[0...8): lanes elected per warp. y[64...320): stmatrix. y[512...640): a named barrier of half the block.
__device__ __forceinline__ void checkRoles(const HopperCheckParameters& p) {
  const int thread = arch::threadIndex(), lane = thread % 32;
  arch::SharedMemory memory;
  const auto flags = memory.array<float>(256);
  const auto matrices = memory.array<arch::Bfloat16>(256);
  if (thread < 128)
    arch::takeRegisters<256>();
  else
    arch::giveBackRegisters<40>();
  flags.store<1>(thread, {arch::electOne() ? 1.f : 0.f});
  arch::syncWarp();
  if (lane == 0) {
    float sum = 0.f;
    ARCH_NO_UNROLL
    for (int i = 0; i < 32; ++i) sum += flags.load(thread + i)[0];
    p.y.store<1>(thread / 32, {sum});
  }
  arch::syncThreads();
  if (thread >= 128) return;
  if (thread < 32) {
    uint32_t fragment[4];
    ARCH_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto bits = [&](int e) { return uint32_t{arch::toBfloat16(p.x.load(i * 64 + lane * 2 + e)[0]).bits}; };
      fragment[i] = bits(0) | bits(1) << 16;
    }
    arch::storeMatrices(fragment, matrices, lane * 8);
    arch::syncWarp();
    ARCH_NO_UNROLL
    for (int i = lane; i < 256; i += 32) p.y.store<1>(64 + i, {arch::toFloat(matrices.load(i)[0])});
  }
  flags.store<1>(thread, {p.x.load(thread)[0]});
  arch::syncNamed(3, 128);
  p.y.store<1>(512 + thread, {flags.load((thread + 1) % 128)[0]});
}

// y[4096 + 1024 i...): boxes inside, beyond the end, before the start and rounded. y[0...4096) as [64, 64]: the first
// one negated and stored across the corner.
__device__ __forceinline__ void checkTma(const HopperCheckParameters& p) {
  constexpr int boxes = 4;
  const int thread = arch::threadIndex();
  arch::SharedMemory memory;
  const auto tile = memory.array<float, 1024>(boxes * box);
  const auto barriers = memory.array<uint64_t>(1);
  publish(barriers, 1, 1);
  if (thread == 0) {
    arch::arriveExpecting(barriers, 0, boxes * box * 4);
    arch::loadBox(p.matrix, tile, 0, barriers, 0, 4, 8);
    arch::loadBox(p.matrix, tile, box, barriers, 0, 16, 24);
    arch::loadBox(p.matrix, tile, 2 * box, barriers, 0, -8, -4);
    arch::loadBox(p.rounded, tile, 3 * box, barriers, 0, 0, 0);
  }
  arch::waitFor(barriers, 0, 0);
  ARCH_NO_UNROLL
  for (int i = thread; i < boxes * box; i += 256)
    p.y.store<1>(4096 + i, {tile.load(i / box * box + inBox(i % box / boxColumns, i % boxColumns))[0]});
  arch::syncThreads();
  ARCH_NO_UNROLL
  for (int i = thread; i < box; i += 256) tile.store<1>(i, {-tile.load(i)[0]});
  arch::fenceAsyncProxy();
  arch::syncThreads();
  if (thread == 0) {
    arch::storeBox(p.target, tile, 0, 40, 50);
    arch::commitStores();
    arch::waitStores<0>();
  }
}

// y[2048 r...): block r of two: both halves of a box, each loaded by one block for both; the other's shared memory read
// and written; the other's mbarrier.
__device__ __forceinline__ void checkCluster(const HopperCheckParameters& p) {
  const int thread = arch::threadIndex(), rank = arch::clusterRank(), out = rank * 2048;
  arch::SharedMemory memory;
  const auto tile = memory.array<float, 1024>(box);
  const auto own = memory.array<float>(256);
  const auto barriers = memory.array<uint64_t>(2);
  publish(barriers, 2, 1);
  if (thread == 0) {
    arch::arriveExpecting(barriers, 0, box * 4);
    arch::loadBoxMulticast(p.half, tile, rank * box / 2, barriers, 0, 0, rank * boxRows / 2, 3);
  }
  arch::waitFor(barriers, 0, 0);
  ARCH_NO_UNROLL
  for (int i = thread; i < box; i += 256) p.y.store<1>(out + i, {tile.load(inBox(i / boxColumns, i % boxColumns))[0]});
  own.store<1>(thread, {static_cast<float>(rank * 1000 + thread)});
  arch::clusterArrive();
  arch::clusterWait();
  const arch::Peer peer(own, rank ^ 1);
  p.y.store<1>(out + 1024 + thread, {peer.load(thread)});
  arch::clusterArrive();
  arch::clusterWait();
  peer.store(thread, static_cast<float>(thread * 2 + rank));
  if (thread == 0) arch::arriveAt(barriers, 1, rank ^ 1);
  arch::waitFor(barriers, 1, 0);
  arch::clusterArrive();
  arch::clusterWait();
  p.y.store<1>(out + 1280 + thread, {own.load(thread)[0]});
}

// y[64, N] = start + A . B with A = x[0...) as [64 lines, depth], B = x[4096...) as [N lines, depth], a row of depth
// being 128 bytes.
template <class Format, Major A, Major B, bool REGISTERS, int N>
__device__ __forceinline__ void checkProduct(const HopperCheckParameters& p) {
  using Element = typename Format::Element;
  constexpr int row = Format::rowElements, chunk = 16 / static_cast<int>(sizeof(Element)), lines = (N + 63) / 64 * 64;
  const int thread = arch::threadIndex();
  arch::SharedMemory memory;
  const auto left = memory.array<Element, 1024>(leftLines * row), right = memory.array<Element, 1024>(lines * row);
  const auto place = [](Major major, int line, int k) {
    return major == Major::depth
               ? line * row + ((k / chunk) ^ (line % 8)) * chunk + k % chunk
               : line / row * row * row + k * row + ((line % row / chunk) ^ (k % 8)) * chunk + line % chunk;
  };
  const auto fill = [&](const arch::Shared<Element>& tile, Major major, int count, int from) {
    ARCH_NO_UNROLL
    for (int i = thread; i < count * row; i += 256) {
      const float value = p.x.load(from + i)[0];
      if constexpr (Format::tf32)
        tile.template store<1>(place(major, i / row, i % row), {arch::bitsFloat(arch::toTf32(value))});
      else
        tile.template store<1>(place(major, i / row, i % row), {arch::toBfloat16(value)});
    }
  };
  fill(left, A, leftLines, 0);
  fill(right, B, N, 4096);
  arch::fenceAsyncProxy();
  arch::syncThreads();
  if (thread >= 128) return;
  const int warp = thread / 32, lane = thread % 32;
  float acc[N / 2];
  ARCH_UNROLL
  for (int i = 0; i < N / 2; ++i) acc[i] = static_cast<float>(i % 2 + (i / 2 % 2) * 2);
  constexpr int leftStep = A == Major::depth ? 32 : 2048, rightStep = B == Major::depth ? 32 : 2048, linesBytes = 8192;
  uint32_t fragments[4][4];
  if constexpr (REGISTERS) {
    ARCH_UNROLL
    for (int k = 0; k < 4; ++k)
      loadLeft<WgmmaProduct<Format, A, B, true>>(fragments[k], left, 0, warp * 16, k * Format::instructionDepth, false);
  }
  arch::keepInRegisters(acc);
  arch::fenceProducts();
  ARCH_UNROLL
  for (int k = 0; k < 4; ++k) {
    const uint64_t b = arch::describeOperand(right, k * rightStep, linesBytes);
    if constexpr (REGISTERS)
      arch::multiplyGroup<Format, B>(acc, fragments[k], b);
    else
      arch::multiplyGroup<Format, A, B>(acc, arch::describeOperand(left, k * leftStep, linesBytes), b);
  }
  arch::commitProducts();
  arch::waitProducts<0>();
  arch::keepInRegisters(acc);
  ARCH_UNROLL
  for (int i = 0; i < N / 2; ++i) {
    const int r = warp * 16 + lane / 4 + i / 2 % 2 * 8, c = i / 4 * 8 + lane % 4 * 2 + i % 2;
    p.y.store<1>(r * N + c, {acc[i]});
  }
}

#endif

enum class Group : uint8_t { roles, tma, cluster };
template <Group GROUP>
__global__ void __launch_bounds__(256, 1) checkGroup(const __grid_constant__ HopperCheckParameters p) {
#if ARCH_HOPPER
  arch::beginLaunch();
  if constexpr (GROUP == Group::roles) checkRoles(p);
  if constexpr (GROUP == Group::tma) checkTma(p);
  if constexpr (GROUP == Group::cluster) checkCluster(p);
#endif
}
template <class Format, Major A, Major B, bool REGISTERS, int N>
__global__ void __launch_bounds__(256, 1) checkWgmma(const __grid_constant__ HopperCheckParameters p) {
#if ARCH_HOPPER
  arch::beginLaunch();
  checkProduct<Format, A, B, REGISTERS, N>(p);
#endif
}

struct Check {
  const char* name;
  void (*kernel)(HopperCheckParameters);
};
constexpr auto depth = Major::depth, lines = Major::lines;
constexpr Check checks[] = {
    {"roles", checkGroup<Group::roles>},
    {"tma", checkGroup<Group::tma>},
    {"cluster", checkGroup<Group::cluster>},
    {"bfloat16 96", checkWgmma<WgmmaBf16, depth, depth, false, 96>},
    {"bfloat16 128", checkWgmma<WgmmaBf16, depth, lines, false, 128>},
    {"bfloat16 184", checkWgmma<WgmmaBf16, depth, lines, false, 184>},
    {"bfloat16 256", checkWgmma<WgmmaBf16, lines, lines, false, 256>},
    {"bfloat16 184, A in registers", checkWgmma<WgmmaBf16, depth, lines, true, 184>},
    {"bfloat16 96, A in registers", checkWgmma<WgmmaBf16, lines, depth, true, 96>},
    {"tf32 184", checkWgmma<WgmmaTf32, depth, depth, false, 184>},
    {"tf32 256, A in registers", checkWgmma<WgmmaTf32, lines, depth, true, 256>},
};

class ArchCheckHopper final : public Kernel {
 public:
  ArchCheckHopper(const CallDescription& call, const DeviceProperties& device) {
    requireInput(call, 0, "x", 1);
    requireShape(call, 0, "x", {inputElements});
    requireOutput(call, 0, {outputElements});
    if (device.major != 9) refuse(call, "archCheckHopper needs compute capability 9.0");
    const std::string name = call.attributes.text("group");
    for (const Check& check : checks)
      if (name == check.name) kernel_ = check.kernel;
    if (!kernel_) refuse(call, "there is no group '" + name + "'");
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    HopperCheckParameters p{};
    p.x = view(arguments.input(0), inputElements);
    p.y = view(arguments.output(), outputElements);
    void* x = const_cast<void*>(arguments.inputs[0]);
    const auto map = [&](bool rounds, uint32_t rows) {
      return arch::tensorMap(device, {x, DType::float32, rounds, 48, 40, 160, rows, boxColumns});
    };
    p.matrix = map(false, boxRows);
    p.rounded = map(true, boxRows);
    p.half = map(false, boxRows / 2);
    p.target = arch::tensorMap(device, {arguments.outputs[0], DType::float32, false, 64, 64, 256, boxRows, boxColumns});
    LaunchOptions options;
    options.cluster = 2;
    options.asynchronous = true;
    // The second block of the groups that are not about clusters does the same again.
    arch::launch(device, "archCheckHopper", kernel_, {2, 1, 1}, 256, 48 << 10, p, options);
  }

 private:
  void (*kernel_)(HopperCheckParameters) = nullptr;
};

}  // namespace

void registerArchCheckHopper(Registry& registry) { registry["archCheckHopper"] = choose<ArchCheckHopper>; }

}  // namespace sepconv::cuda
