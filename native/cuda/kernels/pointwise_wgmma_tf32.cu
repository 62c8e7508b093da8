// Instantiates the wgmma kernels of pointwiseConv2d and its data gradient in tf32, for which the hardware turns no
// operand. The forward product takes the filter [cin, cout] as the left operand, through registers, and computes the
// transpose of y.
#include "gemm_wgmma.cuh"
#include "tensor_cores.cuh"

namespace sepconv::cuda {
namespace {

using arch::Major;

template <class A, class B>
WgmmaParameters parametersOf(const GemmParameters<A, B>& gemm, const Output& statistics) {
  WgmmaParameters p{};
  p.store = gemm.store;
  p.statistics = statistics;
  p.rows = gemm.rows;
  p.columns = gemm.columns;
  p.depth = gemm.depth;
  p.depthPerSplit = gemm.depthPerSplit;
  p.splits = gemm.splits;
  return p;
}

}  // namespace

void launchWarpgroupsTf32(DeviceInterface& device, const char* name, const MatrixConfig& config,
                          const PointwiseProduct& p, const Output& statistics) {
  using P = WgmmaProduct<WgmmaTf32, Major::lines, Major::depth, true, true>;
  const WgmmaParameters q = parametersOf(p, statistics);
  if (config.tile == MatrixTile::tile184x192) launchWgmma<Wgmma192x184, P>(device, name, p.b.x, p.a.x, q);
  if (config.tile == MatrixTile::tile256x128) launchWgmma<Wgmma128x256, P>(device, name, p.b.x, p.a.x, q);
}

void launchWarpgroupsTf32(DeviceInterface& device, const char* name, const MatrixConfig& config,
                          const PointwiseInputGradient& p) {
  using P = WgmmaProduct<WgmmaTf32, Major::depth, Major::depth>;
  const WgmmaParameters q = parametersOf(p, {});
  if (config.tile == MatrixTile::tile192x184) launchWgmma<Wgmma192x184, P>(device, name, p.a.x, p.b.x, q);
  if (config.tile == MatrixTile::tile128x256) launchWgmma<Wgmma128x256, P>(device, name, p.a.x, p.b.x, q);
  if (config.tile == MatrixTile::tile256x128) launchWgmma<Wgmma256x128, P>(device, name, p.a.x, p.b.x, q);
}

}  // namespace sepconv::cuda
