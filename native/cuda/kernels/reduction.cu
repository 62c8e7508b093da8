// reduce(x) -> y: sum, mean, max or min over any axes. x is seen as rows of kept and reduced axes; neighbouring axes of
// one kind are one. Two launches: each block reduces one chunk of the reduced elements of 32 outputs (lanes over
// outputs where the last axis is kept, over reduced elements where it goes), then the chunks of each output are merged
// in order. Chunks follow from the shape, so the bits do too. Sums are compensated.
#include "../arch/sync.h"
#include "accumulator.cuh"
#include "grid.cuh"
#include "tensor.cuh"

namespace sepconv::cuda {
namespace {

enum class Reduction : uint8_t { sum, mean, max, min };
constexpr int maxAxes = 6, reduceRuns = 8, reduceThreads = 32 * reduceRuns;

// Places of the elements of some axes, last axis first.
struct Places {
  int axes;
  int sizes[maxAxes], strides[maxAxes];
  __device__ __forceinline__ int64_t at(int64_t index) const {
    int rest = static_cast<int>(index);
    int64_t place = 0;
    ARCH_NO_UNROLL
    for (int axis = 0; axis < axes; ++axis) {
      place += int64_t{rest % sizes[axis]} * strides[axis];
      rest /= sizes[axis];
    }
    return place;
  }
};

struct Partial {
  Reduction function;
  Accumulator sum;
  float extreme;
  __device__ __forceinline__ explicit Partial(Reduction f)
      : function(f), sum{0.f, 0.f}, extreme(f == Reduction::max ? -INFINITY : INFINITY) {}
  __device__ __forceinline__ void add(float value) {
    if (function <= Reduction::mean) sum.add(value);
    if (function == Reduction::max && (value > extreme || value != value)) extreme = value;
    if (function == Reduction::min && (value < extreme || value != value)) extreme = value;
  }
  __device__ __forceinline__ void add(float first, float second) {
    if (function > Reduction::mean) return add(first);
    sum.add(Accumulator{first, second});
  }
  __device__ __forceinline__ float first() const { return function <= Reduction::mean ? sum.sum : extreme; }
  __device__ __forceinline__ float second() const { return sum.lost; }
  __device__ __forceinline__ float result(float divisor) const {
    if (function == Reduction::sum) return sum.value();
    return function == Reduction::mean ? sum.value() / divisor : extreme;
  }
};

struct ReduceParameters {
  AnyInput x;
  Output partial;  // [chunk][sum, lost][output]
  Places kept, reduced;
  int64_t outputs, count;  // count: reduced elements per output
  int64_t chunk;
  Reduction function;
};

// The last axis is kept: neighbouring lanes are neighbouring outputs.
__global__ void __launch_bounds__(reduceThreads) reduceColumns(const __grid_constant__ ReduceParameters p) {
  arch::beginLaunch();
  const int lane = arch::threadIndex() % 32, run = arch::threadIndex() / 32;
  const int64_t output = int64_t{arch::blockX()} * 32 + lane;
  const int64_t begin = int64_t{arch::blockY()} * p.chunk, end = begin + p.chunk < p.count ? begin + p.chunk : p.count;
  arch::SharedMemory memory;
  const auto shared = memory.array<float>(2 * reduceThreads);
  Partial total(p.function);
  if (output < p.outputs) {
    const int64_t base = p.kept.at(output);
    ARCH_NO_UNROLL
    for (int64_t i = begin + run; i < end; i += reduceRuns) total.add(p.x.load(base + p.reduced.at(i))[0]);
  }
  shared.store<1>(arch::threadIndex(), {total.first()});
  shared.store<1>(arch::threadIndex() + reduceThreads, {total.second()});
  arch::syncThreads();
  if (run || output >= p.outputs) return;
  ARCH_NO_UNROLL
  for (int other = 1; other < reduceRuns; ++other)
    total.add(shared.load(other * 32 + lane)[0], shared.load(other * 32 + lane + reduceThreads)[0]);
  const int64_t to = int64_t{arch::blockY()} * 2 * p.outputs + output;
  p.partial.store<1>(to, {total.first()});
  p.partial.store<1>(to + p.outputs, {total.second()});
}

// The last axis goes: neighbouring lanes are neighbouring elements of one output.
__global__ void __launch_bounds__(reduceThreads) reduceRows(const __grid_constant__ ReduceParameters p) {
  arch::beginLaunch();
  const int lane = arch::threadIndex() % 32;
  const int64_t output = int64_t{arch::blockX()} * reduceRuns + arch::threadIndex() / 32;
  const int64_t begin = int64_t{arch::blockY()} * p.chunk, end = begin + p.chunk < p.count ? begin + p.chunk : p.count;
  Partial total(p.function);
  if (output < p.outputs) {
    const int64_t base = p.kept.at(output);
    ARCH_NO_UNROLL
    for (int64_t i = begin + lane; i < end; i += 32) total.add(p.x.load(base + p.reduced.at(i))[0]);
  }
  ARCH_UNROLL
  for (int mask = 16; mask; mask /= 2) {
    const float first = arch::shuffleXor(total.first(), mask), second = arch::shuffleXor(total.second(), mask);
    total.add(first, second);
  }
  if (lane || output >= p.outputs) return;
  const int64_t to = int64_t{arch::blockY()} * 2 * p.outputs + output;
  p.partial.store<1>(to, {total.first()});
  p.partial.store<1>(to + p.outputs, {total.second()});
}

struct ReduceMergeParameters {
  Input partial;
  AnyOutput y;
  int64_t outputs, count;
  int chunks;
  Reduction function;
};

__global__ void __launch_bounds__(gridThreads) mergeChunks(const __grid_constant__ ReduceMergeParameters p) {
  arch::beginLaunch();
  const int64_t output = taskIndex();
  if (output >= p.outputs) return;
  Partial total(p.function);
  ARCH_NO_UNROLL
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    const int64_t from = int64_t{chunk} * 2 * p.outputs + output;
    total.add(p.partial.load(from)[0], p.partial.load(from + p.outputs)[0]);
  }
  p.y.store<1>(output, {total.result(static_cast<float>(p.count))});
}

class Reduce final : public Kernel {
 public:
  explicit Reduce(const CallDescription& call) : x_(requireFloating(call, 0, "x", 0)) {
    const std::string name = call.attributes.text("function");
    constexpr const char* names[] = {"sum", "mean", "max", "min"};
    int function = 0;
    while (function < 4 && name != names[function]) ++function;
    if (function == 4) refuse(call, "there is no function '" + name + "'");
    p_.function = static_cast<Reduction>(function);
    std::vector<bool> goes(x_.shape.size());
    for (int64_t axis : call.attributes.integers("axes")) {
      if (axis < 0 || axis >= x_.rank()) refuse(call, "axis " + std::to_string(axis) + " does not exist");
      goes[static_cast<size_t>(axis)] = true;
    }
    std::vector<int64_t> shape;
    int64_t stride = 1;
    p_.outputs = p_.count = 1;
    int last = -1;  // kind of the axis behind
    for (size_t axis = x_.shape.size(); axis-- > 0;) {
      const int64_t size = x_.shape[axis];
      if (!goes[axis] || call.attributes.flag("keepDims")) shape.insert(shape.begin(), goes[axis] ? 1 : size);
      (goes[axis] ? p_.count : p_.outputs) *= size;
      if (size == 1) continue;
      Places& places = goes[axis] ? p_.reduced : p_.kept;
      if (last == static_cast<int>(goes[axis])) {
        places.sizes[places.axes - 1] *= static_cast<int>(size);
      } else {
        if (places.axes == maxAxes) refuse(call, "more than 6 groups of axes");
        places.sizes[places.axes] = static_cast<int>(size);
        places.strides[places.axes++] = static_cast<int>(stride);
        if (last < 0) rows_ = goes[axis];
        last = goes[axis];
      }
      stride *= size;
    }
    requireOutput(call, 0, shape, x_.dtype);
    // Enough chunks for a large device where there are few outputs, and none so small that merging them costs more.
    const int64_t perBlock = rows_ ? reduceRuns : 32;
    const int64_t blocks = (p_.outputs + perBlock - 1) / perBlock;
    chunks_ = std::max<int64_t>(1, std::min<int64_t>(1024 / std::min<int64_t>(blocks, 1024), p_.count / 512));
    p_.chunk = (p_.count + chunks_ - 1) / chunks_;
    chunks_ = (p_.count + p_.chunk - 1) / p_.chunk;
  }
  size_t workspaceBytes() const override { return static_cast<size_t>(chunks_ * 2 * p_.outputs) * sizeof(float); }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    auto* partial = static_cast<float*>(arguments.workspace);
    const int64_t partials = chunks_ * 2 * p_.outputs, perBlock = rows_ ? reduceRuns : 32;
    ReduceParameters p = p_;
    p.x = view(arguments.inputs[0], x_.elements(), x_.dtype);
    p.partial = view(partial, partials);
    arch::launch(device, "reduce (chunks)", rows_ ? reduceRows : reduceColumns,
                 {static_cast<uint32_t>((p_.outputs + perBlock - 1) / perBlock), static_cast<uint32_t>(chunks_), 1},
                 reduceThreads, rows_ ? 0 : 2 * reduceThreads * sizeof(float), p);
    launchTasks(device, "reduce (merge)", mergeChunks, p_.outputs,
                ReduceMergeParameters{view(static_cast<const float*>(partial), partials),
                                      view(arguments.outputs[0], p_.outputs, x_.dtype), p_.outputs, p_.count,
                                      static_cast<int>(chunks_), p_.function});
  }

 private:
  const TensorType x_;
  ReduceParameters p_{};
  bool rows_ = false;
  int64_t chunks_;
};

}  // namespace

void registerReductionKernels(Registry& registry) { registry["reduce"] = make<Reduce>; }

}  // namespace sepconv::cuda
