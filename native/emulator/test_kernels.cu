// emulatorCheck(x[n]) -> y[n]: every tile of 128 elements reversed, through shared memory, two tiles in flight, the
// next one copied while this one is read: the synchronisation of the real kernels in small. The attribute `bug` plants
// one defect; a mode of the emulator must find each of them, and none must find anything in 'none'. n is a multiple of
// 512.
#include <array>

#include "../cuda/arch/async_copy.h"
#include "../cuda/arch/launch.h"
#include "../cuda/arch/sync.h"
#include "../cuda/problem.h"
#include "emulator.h"

namespace sepconv::emulator {
namespace {

enum class Bug : uint8_t {
  none,
  missingBarrier,    // tile read before the other warps have copied their part
  missingWait,       // one copy group too many left outstanding
  overwrittenEarly,  // next copy starts while other warps still read the stage
  divergentBarrier,  // half of the block skips a barrier
  divergentShuffle,  // half of a warp skips a shuffle
  unwrittenShared,   // reads shared memory that nobody wrote
  beyondGlobal,      // one element too far
  beyondShared,
  misaligned,          // 16 bytes at a multiple of 4
  dependsOnBlockOrder  // reads what the block before it has written
};
constexpr std::array<const char*, 11> bugNames = {"none",
                                                  "missingBarrier",
                                                  "missingWait",
                                                  "overwrittenEarly",
                                                  "divergentBarrier",
                                                  "divergentShuffle",
                                                  "unwrittenShared",
                                                  "beyondGlobal",
                                                  "beyondShared",
                                                  "misaligned",
                                                  "dependsOnBlockOrder"};

constexpr int tile = 128, tilesPerBlock = 4;

struct CheckParameters {
  arch::Global<const float> x;
  arch::Global<float> y;
};

template <Bug BUG>
__global__ void __launch_bounds__(tile) reverseTiles(const __grid_constant__ CheckParameters p) {
  arch::beginLaunch();
  const int thread = arch::threadIndex();
  const int64_t start = int64_t{arch::blockX()} * tile * tilesPerBlock;
  arch::SharedMemory memory;
  const auto stages = memory.array<float>(2 * tile);
  const auto copy = [&](int step) {
    arch::copyAsync<1>(stages, step % 2 * tile + thread, p.x, start + step * tile + thread, true);
    arch::commitCopies();
  };
  copy(0);
  for (int step = 0; step < tilesPerBlock; ++step) {
    if (step + 1 < tilesPerBlock)
      copy(step + 1);
    else
      arch::commitCopies();
    arch::waitCopies<BUG == Bug::missingWait ? 2 : 1>();
    if (BUG != Bug::missingBarrier && (BUG != Bug::divergentBarrier || thread < 64)) arch::syncThreads();
    const int mirrored = tile - 1 - thread;
    float value = stages.load(step % 2 * tile + (BUG == Bug::unwrittenShared && !step ? tile : 0) + mirrored +
                              (BUG == Bug::beyondShared ? tile : 0))[0];
    // Two exchanges give every lane its own value back.
    if (BUG != Bug::divergentShuffle || thread % 32 < 16) value = arch::shuffleXor(arch::shuffleXor(value, 5), 5);
    const int64_t to = start + step * tile + thread;
    if (BUG == Bug::dependsOnBlockOrder && arch::blockX()) value += 0.f * p.y.load(to - tile * tilesPerBlock)[0];
    if (BUG == Bug::misaligned)
      p.y.store<4>(to, {value, value, value, value});
    else
      p.y.store<1>(to + (BUG == Bug::beyondGlobal ? 1 : 0), {value});
    if (BUG != Bug::overwrittenEarly) arch::syncThreads();
  }
}

template <size_t... I>
constexpr std::array<void (*)(CheckParameters), sizeof...(I)> variants(std::index_sequence<I...>) {
  return {reverseTiles<static_cast<Bug>(I)>...};
}

class EmulatorCheck final : public cuda::Kernel {
 public:
  explicit EmulatorCheck(const CallDescription& call) {
    elements_ = cuda::requireInput(call, 0, "x", 1).elements();
    cuda::requireOutput(call, 0, {elements_});
    if (elements_ % (tile * tilesPerBlock)) cuda::refuse(call, "x must have a multiple of 512 elements");
    const std::string bug = call.attributes.text("bug", "none");
    while (variant_ < bugNames.size() && bug != bugNames[variant_]) ++variant_;
    if (variant_ == bugNames.size()) cuda::refuse(call, "unknown bug '" + bug + "'");
  }
  void launch(cuda::DeviceInterface& device, const cuda::Arguments& arguments) const override {
    const CheckParameters p{{arguments.input(0), elements_}, {arguments.output(), elements_}};
    arch::launch(device, "emulatorCheck", variants(std::make_index_sequence<bugNames.size()>())[variant_],
                 {static_cast<uint32_t>(elements_ / (tile * tilesPerBlock)), 1, 1}, tile, 2 * tile * sizeof(float), p);
  }

 private:
  int64_t elements_;
  size_t variant_ = 0;
};

}  // namespace

// Its launch fails as one on a broken device does.
// A launch whose name tells the emulated device what to do.
class DeviceEvent final : public cuda::Kernel {
 public:
  explicit DeviceEvent(const char* name) : name_(name) {}
  void launch(cuda::DeviceInterface& device, const cuda::Arguments&) const override {
    arch::launch(device, name_, reverseTiles<Bug::none>, {1, 1, 1}, tile, 0, CheckParameters{});
  }

 private:
  const char* const name_;
};

void registerTestKernels(cuda::Registry& registry) {
  registry["emulatorDeviceLost"] = [](const CallDescription&,
                                      const cuda::DeviceProperties&) -> std::unique_ptr<cuda::Kernel> {
    return std::make_unique<DeviceEvent>("emulatorDeviceLost");
  };
  registry["emulatorAwaitsCopy"] = [](const CallDescription&,
                                      const cuda::DeviceProperties&) -> std::unique_ptr<cuda::Kernel> {
    return std::make_unique<DeviceEvent>("emulatorAwaitsCopy");
  };
  registry["emulatorCheck"] = [](const CallDescription& call,
                                 const cuda::DeviceProperties&) -> std::unique_ptr<cuda::Kernel> {
    return std::make_unique<EmulatorCheck>(call);
  };
}

}  // namespace sepconv::emulator
