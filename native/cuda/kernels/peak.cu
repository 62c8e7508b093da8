// multiplyAddPeak(x[1]) -> y[blocks * 256]: how fast a device multiplies and adds at most, for the roofline of
// benchmarks. Attribute precision: float32 on the SIMT units, tf32 or bfloat16 by mma.sync, on compute capability 9.0
// by wgmma. Every thread (every warp) runs eight independent chains in registers, `steps` long, or what is as much
// work; one store at the end keeps them.
#include "../arch/mma.h"
#include "gemm_wgmma.cuh"
#include "grid.cuh"
#include "tensor.cuh"

namespace sepconv::cuda {
namespace {

constexpr int chains = 8;

struct PeakParameters {
  Input x;
  Output y;
  int steps;
};

__global__ void __launch_bounds__(gridThreads) multiplyAddPeak(const __grid_constant__ PeakParameters p) {
  arch::beginLaunch();
  const float x = p.x.load(0)[0];
  float acc[chains];
  ARCH_UNROLL
  for (int i = 0; i < chains; ++i) acc[i] = x + static_cast<float>(arch::threadIndex() + i);
  ARCH_NO_UNROLL
  for (int step = 0; step < p.steps; step += 8) {
    ARCH_UNROLL
    for (int i = 0; i < chains * 8; ++i) acc[i % chains] = arch::fma(acc[i % chains], x, x);
  }
  float sum = 0.f;
  ARCH_UNROLL
  for (int i = 0; i < chains; ++i) sum += acc[i];
  const int64_t to = taskIndex();
  if (to < p.y.count) p.y.store<1>(to, {sum});
}

// A step: one product of 16 x 8 x 16 (tf32: 8) per warp and chain.
template <bool BFLOAT16>
__global__ void __launch_bounds__(gridThreads) matrixPeak(const __grid_constant__ PeakParameters p) {
  arch::beginLaunch();
  const uint32_t x = arch::floatBits(p.x.load(0)[0]);
  const uint32_t a[4] = {x, x, x, x};
  float acc[chains][4];
  ARCH_UNROLL
  for (int i = 0; i < chains * 4; ++i) acc[i / 4][i % 4] = static_cast<float>(arch::threadIndex() + i);
  ARCH_NO_UNROLL
  for (int step = 0; step < p.steps; ++step) {
    ARCH_UNROLL
    for (int i = 0; i < chains; ++i) {
      if constexpr (BFLOAT16)
        arch::multiplyBf16(acc[i], a, x, x);
      else
        arch::multiplyTf32(acc[i], a, x, x);
    }
  }
  float sum = 0.f;
  ARCH_UNROLL
  for (int i = 0; i < chains * 4; ++i) sum += acc[i / 4][i % 4];
  const int64_t to = taskIndex();
  if (to < p.y.count) p.y.store<1>(to, {sum});
}

// As many multiply-adds as `steps` of matrixPeak: a wgmma is four of them. Operands are one tile in shared memory.
template <class Format>
__global__ void __launch_bounds__(gridThreads, 1) warpgroupPeak(const __grid_constant__ PeakParameters p) {
#if ARCH_HOPPER
  arch::beginLaunch();
  using Element = typename Format::Element;
  constexpr int row = Format::rowElements;
  arch::SharedMemory memory;
  const auto left = memory.array<Element, 1024>(64 * row), right = memory.array<Element, 1024>(256 * row);
  const float x = p.x.load(0)[0];
  const auto fill = [&](const arch::Shared<Element>& tile, int count) {
    ARCH_NO_UNROLL
    for (int i = arch::threadIndex(); i < count; i += gridThreads) {
      if constexpr (Format::tf32)
        tile.template store<1>(i, {x});
      else
        tile.template store<1>(i, {arch::toBfloat16(x)});
    }
  };
  fill(left, 64 * row);
  fill(right, 256 * row);
  arch::fenceAsyncProxy();
  arch::syncThreads();
  float acc[128];
  ARCH_UNROLL
  for (int i = 0; i < 128; ++i) acc[i] = static_cast<float>(arch::threadIndex() + i);
  const uint64_t a = arch::describeOperand(left, 0, 16), b = arch::describeOperand(right, 0, 16);
  arch::keepInRegisters(acc);
  ARCH_NO_UNROLL
  for (int step = 0; step < p.steps; step += 8) {
    arch::fenceProducts();
    ARCH_UNROLL
    for (uint64_t k = 0; k < 4; k += 2)
      arch::multiplyGroup<Format, arch::Major::depth, arch::Major::depth>(acc, a + k, b + k);
    arch::commitProducts();
    arch::waitProducts<1>();
  }
  arch::waitProducts<0>();
  arch::keepInRegisters(acc);
  float sum = 0.f;
  ARCH_UNROLL
  for (int i = 0; i < 128; ++i) sum += acc[i];
  const int64_t to = taskIndex();
  if (to < p.y.count) p.y.store<1>(to, {sum});
#endif
}

class MultiplyAddPeak final : public Kernel {
 public:
  MultiplyAddPeak(const CallDescription& call, const DeviceProperties& device) : warpgroups_(device.major == 9) {
    requireInput(call, 0, "x", 1);
    requireShape(call, 0, "x", {1});
    if (call.outputs.empty() || call.outputs[0].rank() != 1) refuse(call, "output 0 must have rank 1");
    requireOutput(call, 0, call.outputs[0].shape);
    threads_ = call.outputs[0].elements();
    const int64_t steps = call.attributes.integer("steps");
    if (steps < 8 || steps > 1 << 24 || steps % 8) refuse(call, "steps must be a multiple of 8 up to 16777216");
    steps_ = static_cast<int>(steps);
    const std::string precision = call.attributes.text("precision", "float32");
    if (precision == "tf32")
      kernel_ = warpgroups_ ? warpgroupPeak<WgmmaTf32> : matrixPeak<false>;
    else if (precision == "bfloat16")
      kernel_ = warpgroups_ ? warpgroupPeak<WgmmaBf16> : matrixPeak<true>;
    else if (precision != "float32")
      refuse(call, "precision must be float32, tf32 or bfloat16, got '" + precision + "'");
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const PeakParameters p{view(arguments.input(0), 1), view(arguments.output(), threads_), steps_};
    if (!warpgroups_ || kernel_ == multiplyAddPeak) return launchTasks(device, "multiplyAddPeak", kernel_, threads_, p);
    LaunchOptions options;
    options.asynchronous = true;
    const auto blocks = static_cast<uint32_t>((threads_ + gridThreads - 1) / gridThreads);
    arch::launch(device, "multiplyAddPeak", kernel_, {blocks, 1, 1}, gridThreads, (64 + 256) * 128, p, options);
  }

 private:
  const bool warpgroups_;
  int64_t threads_;
  int steps_;
  void (*kernel_)(PeakParameters) = multiplyAddPeak;
};

}  // namespace

void registerPeakKernel(Registry& registry) { registry["multiplyAddPeak"] = choose<MultiplyAddPeak>; }

}  // namespace sepconv::cuda
