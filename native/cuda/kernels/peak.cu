// multiplyAddPeak(x[1]) -> y[blocks * 256]: how fast a device multiplies and adds at most, for the roofline of
// benchmarks. Attribute precision: float32 on the SIMT units, tf32 or bfloat16 by mma.sync. Every thread (every warp)
// runs eight independent chains in registers, `steps` long; one store at the end keeps them.
#include "../arch/mma.h"
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

class MultiplyAddPeak final : public Kernel {
 public:
  explicit MultiplyAddPeak(const CallDescription& call) {
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
      kernel_ = matrixPeak<false>;
    else if (precision == "bfloat16")
      kernel_ = matrixPeak<true>;
    else if (precision != "float32")
      refuse(call, "precision must be float32, tf32 or bfloat16, got '" + precision + "'");
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const PeakParameters p{view(arguments.input(0), 1), view(arguments.output(), threads_), steps_};
    launchTasks(device, "multiplyAddPeak", kernel_, threads_, p);
  }

 private:
  int64_t threads_;
  int steps_;
  void (*kernel_)(PeakParameters) = multiplyAddPeak;
};

}  // namespace

void registerPeakKernel(Registry& registry) { registry["multiplyAddPeak"] = make<MultiplyAddPeak>; }

}  // namespace sepconv::cuda
