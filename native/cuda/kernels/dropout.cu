// dropout(x[n, ...], counter) -> y: a thread makes the four words of Philox for four elements of a sample. The mask is
// a function of (seed, stream, global sample index, place in the sample): the bits of the reference, whatever the
// batch.
#include "grid.cuh"
#include "philox.cuh"
#include "tensor.cuh"

namespace sepconv::cuda {
namespace {

struct DropoutParameters {
  AnyInput x;
  arch::Global<const int32_t> counter;  // low and high word of the first sample's index
  AnyOutput y;
  uint32_t threshold, seed, stream;
  float scale;
  int size;    // elements per sample
  int groups;  // of four per sample
};

__global__ void __launch_bounds__(gridThreads) dropoutKernel(const __grid_constant__ DropoutParameters p) {
  arch::beginLaunch();
  const int64_t task = taskIndex();
  const int64_t sample = static_cast<int>(task) / p.groups;
  const int group = static_cast<int>(task) % p.groups;
  if (sample * p.size + int64_t{group} * 4 >= p.y.count) return;
  const uint64_t first = static_cast<uint32_t>(p.counter.load(0)[0]) |
                         static_cast<uint64_t>(static_cast<uint32_t>(p.counter.load(1)[0])) << 32;
  const uint64_t index = first + static_cast<uint64_t>(sample);
  const arch::Vec<uint32_t, 4> words =
      philox({static_cast<uint32_t>(group), 0, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32)},
             p.seed, p.stream);
  const int64_t at = sample * p.size + int64_t{group} * 4;
  if (p.size % 4 == 0) {
    Floats<4> x = p.x.load<4>(at);
    ARCH_UNROLL
    for (int e = 0; e < 4; ++e) x[e] = words[e] >= p.threshold ? x[e] * p.scale : 0.f;
    return p.y.store<4>(at, x);
  }
  ARCH_UNROLL
  for (int e = 0; e < 4; ++e)
    if (group * 4 + e < p.size) p.y.store<1>(at + e, {words[e] >= p.threshold ? p.x.load(at + e)[0] * p.scale : 0.f});
}

class Dropout final : public Kernel {
 public:
  explicit Dropout(const CallDescription& call) : type_(requireFloating(call, 0, "x", 0)) {
    if (type_.rank() < 1) refuse(call, "x must have a batch axis");
    if (requireInput(call, 1, "counter", 1, DType::int32).elements() != 2) refuse(call, "counter must have two words");
    requireOutputLike(call, 0, type_);
    const double rate = call.attributes.number("rate");
    if (!(rate >= 0 && rate < 1)) refuse(call, "rate must be in [0, 1), got " + std::to_string(rate));
    threshold_ = static_cast<uint32_t>(rate * 4294967296.0);
    scale_ = static_cast<float>(1 / (1 - rate));
    seed_ = static_cast<uint32_t>(call.attributes.integer("seed"));
    stream_ = static_cast<uint32_t>(call.attributes.integer("stream"));
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const int64_t n = type_.elements();
    const int size = static_cast<int>(n / type_.dim(0)), groups = (size + 3) / 4;
    const DropoutParameters p{view(arguments.inputs[0], n, type_.dtype),
                              {arguments.input<int32_t>(1), 2},
                              view(arguments.outputs[0], n, type_.dtype),
                              threshold_,
                              seed_,
                              stream_,
                              scale_,
                              size,
                              groups};
    launchTasks(device, "dropout", dropoutKernel, type_.dim(0) * groups, p);
  }

 private:
  const TensorType type_;
  uint32_t threshold_, seed_, stream_;
  float scale_;
};

}  // namespace

void registerDropoutKernel(Registry& registry) { registry["dropout"] = make<Dropout>; }

}  // namespace sepconv::cuda
