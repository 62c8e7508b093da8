// Instantiates the wgmma kernels of pointwiseConv2d and its gradients in bfloat16. The filter is [cin, cout]: its
// columns, the right lines of the forward product, run through memory, its rows are those of the data gradient. Both
// operands of the filter gradient run along lines, which the hardware turns.
#include "gemm_wgmma.cuh"
#include "tensor_cores.cuh"

namespace sepconv::cuda {
namespace {

using arch::Major;

template <class P, class A, class B>
void start(DeviceInterface& device, const char* name, const MatrixConfig& config, const GemmParameters<A, B>& gemm,
           bool relu, const Output& statistics) {
  WgmmaParameters p{};
  p.store = gemm.store;
  p.statistics = statistics;
  p.rows = gemm.rows;
  p.columns = gemm.columns;
  p.depth = gemm.depth;
  p.depthPerSplit = gemm.depthPerSplit;
  p.splits = gemm.splits;
  p.relu = relu;
  const auto launch = [&](auto tile) { launchWgmma<decltype(tile), P>(device, name, gemm.a.x, gemm.b.x, p); };
  if (config.tile == MatrixTile::tile192x184) launch(Wgmma192x184{});
  if (config.tile == MatrixTile::tile128x256) launch(Wgmma128x256{});
  constexpr bool gradient = P::left == Major::lines;
  if constexpr (!gradient) {
    if (config.tile == MatrixTile::tile192x96) launch(Wgmma192x96{});
  }
  if constexpr (!gradient && !P::registers) {
    if (config.tile == MatrixTile::tile256x128) launch(Wgmma256x128{});
  }
}

}  // namespace

void launchWarpgroups(DeviceInterface& device, const char* name, const MatrixConfig& config, const PointwiseProduct& p,
                      Activation before, const Output& statistics) {
  if (config.precision == Precision::tf32) return launchWarpgroupsTf32(device, name, config, p, statistics);
  if (before == Activation::relu)
    start<WgmmaProduct<WgmmaBf16, Major::depth, Major::lines, true>>(device, name, config, p, true, statistics);
  else
    start<WgmmaProduct<WgmmaBf16, Major::depth, Major::lines>>(device, name, config, p, false, statistics);
}

void launchWarpgroups(DeviceInterface& device, const char* name, const MatrixConfig& config,
                      const PointwiseInputGradient& p) {
  if (config.precision == Precision::tf32) return launchWarpgroupsTf32(device, name, config, p);
  start<WgmmaProduct<WgmmaBf16, Major::depth, Major::depth>>(device, name, config, p, false, {});
}

void launchWarpgroups(DeviceInterface& device, const char* name, const MatrixConfig& config,
                      const PointwiseFilterGradient& p, Activation before) {
  if (before == Activation::relu)
    start<WgmmaProduct<WgmmaBf16, Major::lines, Major::lines, true>>(device, name, config, p, true, {});
  else
    start<WgmmaProduct<WgmmaBf16, Major::lines, Major::lines>>(device, name, config, p, false, {});
}

}  // namespace sepconv::cuda
