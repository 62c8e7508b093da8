// packFilter(filter[k, n]) -> packed[ceil(n / panel), k, panel], zero beyond n; and copy(x) -> y of any dtype, 16 bytes
// per access and the remainder bytewise. One element or access per thread.
#include "grid.cuh"
#include "tensor.cuh"

namespace sepconv::cuda {
namespace {

struct PackParameters {
  AnyInput filter;
  AnyOutput packed;
  int depth, columns, panel;
};

__global__ void __launch_bounds__(gridThreads) packPanels(const __grid_constant__ PackParameters p) {
  arch::beginLaunch();
  const int64_t i = taskIndex();
  if (i >= p.packed.count) return;
  const int j = static_cast<int>(i % p.panel);
  const int64_t row = i / p.panel;
  const int k = static_cast<int>(row % p.depth);
  const int64_t column = row / p.depth * p.panel + j;
  p.packed.store<1>(i, column < p.columns ? p.filter.load(int64_t{k} * p.columns + column) : filled<1>(0.f));
}

class PackFilter final : public Kernel {
 public:
  explicit PackFilter(const CallDescription& call) {
    const TensorType& type = requireFloating(call, 0, "filter", 2);
    const auto& filter = type.shape;
    dtype_ = type.dtype;
    const int64_t panel = call.attributes.integer("panel");
    if (panel < 1 || panel > 1 << 20) refuse(call, "panel must be 1 to 1048576, got " + std::to_string(panel));
    depth_ = static_cast<int>(filter[0]);
    columns_ = static_cast<int>(filter[1]);
    panel_ = static_cast<int>(panel);
    requireOutput(call, 0, {(filter[1] + panel - 1) / panel, filter[0], panel}, dtype_);
    packed_ = call.outputs[0].elements();
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const PackParameters p{view(arguments.inputs[0], int64_t{depth_} * columns_, dtype_),
                           view(arguments.outputs[0], packed_, dtype_), depth_, columns_, panel_};
    launchTasks(device, "packFilter", packPanels, packed_, p);
  }

 private:
  DType dtype_;
  int depth_, columns_, panel_;
  int64_t packed_;
};

struct CopyParameters {
  arch::Global<const uint32_t> x;
  arch::Global<uint32_t> y;
  arch::Global<const uint8_t> xBytes;
  arch::Global<uint8_t> yBytes;
};

__global__ void __launch_bounds__(gridThreads) copyBytes(const __grid_constant__ CopyParameters p) {
  arch::beginLaunch();
  const int64_t i = taskIndex(), wide = p.xBytes.count / 16;
  if (i < wide) {
    p.y.store<4>(i * 4, p.x.load<4>(i * 4));
  } else {
    const int64_t byte = wide * 16 + (i - wide);
    if (byte < p.xBytes.count) p.yBytes.store<1>(byte, p.xBytes.load(byte));
  }
}

class Copy final : public Kernel {
 public:
  explicit Copy(const CallDescription& call) {
    if (!call.has(0)) refuse(call, "input 'x' is missing");
    const TensorType& x = requireInput(call, 0, "x", 0, call.input(0).dtype);
    requireOutput(call, 0, x.shape, x.dtype);
    bytes_ = static_cast<int64_t>(x.bytes());
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    CopyParameters p{};
    p.x = {arguments.input<uint32_t>(0), bytes_ / 4};
    p.y = {arguments.output<uint32_t>(), bytes_ / 4};
    p.xBytes = {arguments.input<uint8_t>(0), bytes_};
    p.yBytes = {arguments.output<uint8_t>(), bytes_};
    launchTasks(device, "copy", copyBytes, bytes_ / 16 + bytes_ % 16, p);
  }

 private:
  int64_t bytes_;
};

}  // namespace

void registerShapeKernels(Registry& registry) {
  registry["packFilter"] = make<PackFilter>;
  registry["copy"] = make<Copy>;
}

}  // namespace sepconv::cuda
