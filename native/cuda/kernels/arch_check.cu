// archCheck(x[512]) -> y[512]: one warp puts x through the wrappers of arch/ that the attribute `group` names. Each
// wrapper is right where y is what test/cuda/arch.ts says, on the emulator and, by npm run gpu:check, on hardware:
// until then both may share one misreading of the instruction set.
#include <array>

#include "../arch/async_copy.h"
#include "../arch/mma.h"
#include "../arch/sync.h"
#include "grid.cuh"
#include "tensor.cuh"

namespace sepconv::cuda {
namespace {

enum class Group : uint8_t { scalar, copies, warp, bfloat16, transposed, tf32 };
constexpr std::array<const char*, 6> groupNames = {"scalar", "copies", "warp", "bfloat16", "transposed", "tf32"};
constexpr int checkElements = 512;

struct ArchParameters {
  Input x;
  Output y;
  Group group;
};

// y[i * 8...): bits and numbers made of x[i], as floats that hold them exactly.
__device__ __forceinline__ void checkScalars(const ArchParameters& p, int lane) {
  const float x = p.x.load(lane)[0];
  const uint32_t bits = arch::floatBits(x),
                 pair = uint32_t{arch::toBfloat16(x).bits} | uint32_t{0xbf80} << 16;  // x, -1
  const auto high = [](uint32_t word) { return static_cast<float>(word >> 16); };
  const int32_t rounded = arch::roundToInt(x);
  const float values[8] = {arch::toFloat(arch::toBfloat16(x)),
                           arch::bitsFloat(arch::toTf32(x)),
                           arch::reluKeepingNaN(x),
                           static_cast<float>(rounded >> 16),
                           static_cast<float>(rounded & 0xffff),
                           high(arch::multiplyHigh(bits, 0xd2511f53)),
                           arch::toFloat(arch::Bfloat16{static_cast<uint16_t>(arch::reluPair(pair))}),
                           high(arch::reluPair(pair))};
  ARCH_UNROLL
  for (int i = 0; i < 8; ++i) p.y.store<1>(lane * 8 + i, {values[i]});
}

// Copies of 16 and of 4 bytes in two groups; what is not valid becomes zero.
__device__ __forceinline__ void checkCopies(const ArchParameters& p, int lane) {
  arch::SharedMemory memory;
  const auto tile = memory.array<float>(256);
  arch::copyAsync<4>(tile, lane * 4, p.x, lane * 4, lane % 3 != 0);
  arch::commitCopies();
  arch::copyAsync<1>(tile, 128 + lane, p.x, 128 + lane, lane % 5 != 0);
  arch::commitCopies();
  arch::waitCopies<1>();
  arch::syncThreads();
  const Floats<4> first = tile.load<4>((31 - lane) * 4);
  arch::waitCopies<0>();
  arch::syncThreads();
  p.y.store<4>(lane * 4, first);
  p.y.store<1>(128 + lane, {tile.load(128 + 31 - lane)[0]});
}

__device__ __forceinline__ void checkWarp(const ArchParameters& p, int lane) {
  arch::SharedMemory memory;
  const auto shared = memory.array<float>(32);
  const float x = p.x.load(lane)[0];
  shared.store<1>(lane, {x});
  arch::syncWarp();
  p.y.store<1>(lane, {shared.load((lane + 1) % 32)[0]});
  ARCH_UNROLL
  for (int i = 0; i < 5; ++i) p.y.store<1>(32 + i * 32 + lane, {arch::shuffleXor(x, 1 << i)});
}

// D[16, 8] = A[16, 16] . B[16, 8] with A = x[0...256), B = x[256...384); TRANSPOSED: A is stored as [depth][row], B as
// [column][depth].
template <bool TRANSPOSED>
__device__ __forceinline__ void checkBfloat16(const ArchParameters& p, int lane) {
  arch::SharedMemory memory;
  const auto a = memory.array<arch::Bfloat16>(256), b = memory.array<arch::Bfloat16>(256);
  ARCH_UNROLL
  for (int i = lane; i < 256; i += 32) {
    const int row = i / 16, k = i % 16;
    a.store<1>(TRANSPOSED ? k * 16 + row : i, {arch::toBfloat16(p.x.load(i)[0])});
    // B is 16 columns wide in memory, the right half zero: the instruction loads two products' worth.
    const int depth = i / 16, column = i % 16;
    const float value = column < 8 ? p.x.load(256 + depth * 8 + column)[0] : 0.f;
    b.store<1>(TRANSPOSED ? column * 16 + depth : i, {arch::toBfloat16(value)});
  }
  arch::syncThreads();
  uint32_t rows[4], columns[4];
  const int eight = lane / 8 % 2 * 8, sixteen = lane / 16 * 8, within = lane % 8;
  if constexpr (TRANSPOSED) {
    arch::loadMatrices<true>(rows, a, (sixteen + within) * 16 + eight);
    arch::loadMatrices<false>(columns, b, (sixteen + within) * 16 + eight);
  } else {
    arch::loadMatrices<false>(rows, a, (eight + within) * 16 + sixteen);
    arch::loadMatrices<true>(columns, b, (eight + within) * 16 + sixteen);
  }
  float d[4] = {1.f, 2.f, 3.f, 4.f};
  arch::multiplyBf16(d, rows, columns[0], columns[1]);
  p.y.store<2>(lane / 4 * 8 + lane % 4 * 2, {d[0], d[1]});
  p.y.store<2>((lane / 4 + 8) * 8 + lane % 4 * 2, {d[2], d[3]});
}

// D[16, 8] = A[16, 8] . B[8, 8] with A = x[0...128), B = x[128...192).
__device__ __forceinline__ void checkTf32(const ArchParameters& p, int lane) {
  const int g = lane / 4, t = lane % 4;
  const auto element = [&](int index) { return arch::toTf32(p.x.load(index)[0]); };
  const uint32_t a[4] = {element(g * 8 + t), element((g + 8) * 8 + t), element(g * 8 + t + 4),
                         element((g + 8) * 8 + t + 4)};
  float d[4] = {1.f, 2.f, 3.f, 4.f};
  arch::multiplyTf32(d, a, element(128 + t * 8 + g), element(128 + (t + 4) * 8 + g));
  p.y.store<2>(g * 8 + t * 2, {d[0], d[1]});
  p.y.store<2>((g + 8) * 8 + t * 2, {d[2], d[3]});
}

__global__ void __launch_bounds__(32) archCheck(const __grid_constant__ ArchParameters p) {
  arch::beginLaunch();
  const int lane = arch::threadIndex();
  ARCH_NO_UNROLL
  for (int i = lane; i < checkElements; i += 32) p.y.store<1>(i, {0.f});
  arch::syncThreads();
  if (p.group == Group::scalar) checkScalars(p, lane);
  if (p.group == Group::copies) checkCopies(p, lane);
  if (p.group == Group::warp) checkWarp(p, lane);
  if (p.group == Group::bfloat16) checkBfloat16<false>(p, lane);
  if (p.group == Group::transposed) checkBfloat16<true>(p, lane);
  if (p.group == Group::tf32) checkTf32(p, lane);
}

class ArchCheck final : public Kernel {
 public:
  explicit ArchCheck(const CallDescription& call) {
    requireInput(call, 0, "x", 1);
    requireShape(call, 0, "x", {checkElements});
    requireOutput(call, 0, {checkElements});
    const std::string name = call.attributes.text("group");
    size_t i = 0;
    while (i < groupNames.size() && name != groupNames[i]) ++i;
    if (i == groupNames.size()) refuse(call, "there is no group '" + name + "'");
    group_ = static_cast<Group>(i);
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const ArchParameters p{view(arguments.input(0), checkElements), view(arguments.output(), checkElements), group_};
    arch::launch(device, "archCheck", archCheck, {1, 1, 1}, 32, 1024, p);
  }

 private:
  Group group_;
};

}  // namespace

void registerArchCheck(Registry& registry) { registry["archCheck"] = make<ArchCheck>; }

}  // namespace sepconv::cuda
