// y[i] = sum over s of partial[s][i], in order of s: the second launch of products that are split over depth.
#include "gemm.cuh"
#include "grid.cuh"

namespace sepconv::cuda {
namespace {

struct SplitParameters {
  AnyInput partial;
  Output y;
  int splits;
};

template <int VECTOR>
__global__ void __launch_bounds__(gridThreads) sumSplits(const __grid_constant__ SplitParameters p) {
  arch::beginLaunch();
  const int64_t i = taskIndex() * VECTOR;
  if (i >= p.y.count) return;
  Floats<VECTOR> sum = p.partial.load<VECTOR>(i);
  ARCH_NO_UNROLL
  for (int split = 1; split < p.splits; ++split) {
    const Floats<VECTOR> part = p.partial.load<VECTOR>(split * p.y.count + i);
    ARCH_UNROLL
    for (int e = 0; e < VECTOR; ++e) sum[e] += part[e];
  }
  p.y.store<VECTOR>(i, sum);
}

}  // namespace

void launchSumSplits(DeviceInterface& device, const char* name, const float* partial, float* y, int64_t elements,
                     int splits) {
  const SplitParameters p{view(partial, elements * splits, DType::float32), view(y, elements), splits};
  if (elements % 4 == 0)
    launchTasks(device, name, sumSplits<4>, elements / 4, p);
  else
    launchTasks(device, name, sumSplits<1>, elements, p);
}

}  // namespace sepconv::cuda
