// multiplyAddPeak(x[1]) -> y[blocks * 256]: how fast the SIMT units multiply and add at most, for the roofline of
// benchmarks. Every thread runs eight independent chains of fused multiply-adds in registers, `steps` long; one store
// at the end keeps them.
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
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const PeakParameters p{view(arguments.input(0), 1), view(arguments.output(), threads_), steps_};
    launchTasks(device, "multiplyAddPeak", multiplyAddPeak, threads_, p);
  }

 private:
  int64_t threads_;
  int steps_;
};

}  // namespace

void registerPeakKernel(Registry& registry) { registry["multiplyAddPeak"] = make<MultiplyAddPeak>; }

}  // namespace sepconv::cuda
