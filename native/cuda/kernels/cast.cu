// cast(x) -> y of another dtype after x * scale + offset, an element per thread: to integers nearest (ties to even),
// saturating, NaN becomes 0; whole int32 pass as they are where there is nothing to scale.
#include "grid.cuh"
#include "tensor.cuh"

namespace sepconv::cuda {
namespace {

struct CastParameters {
  const void* x;
  void* y;
  int64_t count;
  DType from, to;
  bool plain;  // scale 1, offset 0: whole int32 values survive
  float scale, offset;
};

__global__ void __launch_bounds__(gridThreads) castKernel(const __grid_constant__ CastParameters p) {
  arch::beginLaunch();
  const int64_t i = taskIndex();
  if (i >= p.count) return;
  int32_t whole = 0;
  float value;
  const bool integer = p.from == DType::int32 || p.from == DType::uint8;
  if (p.from == DType::int32) whole = arch::Global<const int32_t>{static_cast<const int32_t*>(p.x), p.count}.load(i)[0];
  if (p.from == DType::uint8) whole = arch::Global<const uint8_t>{static_cast<const uint8_t*>(p.x), p.count}.load(i)[0];
  value = integer ? static_cast<float>(whole) : AnyInput{p.x, p.count, p.from}.load(i)[0];
  if (!p.plain) value = fmaf(value, p.scale, p.offset);
  if (p.to == DType::float32 || p.to == DType::bfloat16) return AnyOutput{p.y, p.count, p.to}.store<1>(i, {value});
  int32_t rounded = integer && p.plain ? whole : arch::roundToInt(value);
  if (p.to == DType::int32) return arch::Global<int32_t>{static_cast<int32_t*>(p.y), p.count}.store<1>(i, {rounded});
  rounded = rounded < 0 ? 0 : rounded > 255 ? 255 : rounded;
  arch::Global<uint8_t>{static_cast<uint8_t*>(p.y), p.count}.store<1>(i, {static_cast<uint8_t>(rounded)});
}

class Cast final : public Kernel {
 public:
  explicit Cast(const CallDescription& call) {
    if (!call.has(0)) refuse(call, "input 'x' is missing");
    const TensorType& x = requireInput(call, 0, "x", 0, call.input(0).dtype);
    if (call.outputs.empty()) refuse(call, "output 0 is missing");
    requireOutput(call, 0, x.shape, call.outputs[0].dtype);
    p_.count = x.elements();
    p_.from = x.dtype;
    p_.to = call.outputs[0].dtype;
    p_.scale = static_cast<float>(call.attributes.number("scale", 1.0));
    p_.offset = static_cast<float>(call.attributes.number("offset", 0.0));
    p_.plain = p_.scale == 1.f && p_.offset == 0.f;
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    CastParameters p = p_;
    p.x = arguments.inputs[0];
    p.y = arguments.outputs[0];
    launchTasks(device, "cast", castKernel, p.count, p);
  }

 private:
  CastParameters p_{};
};

}  // namespace

void registerCastKernel(Registry& registry) { registry["cast"] = make<Cast>; }

}  // namespace sepconv::cuda
