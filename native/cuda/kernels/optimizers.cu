// rmspropUpdate and adamUpdate (with LAMB's trust ratio): one launch over all parameters, as in update.cu. Adam takes
// more: moments and the squares of each block, the ratio of every tensor that is trusted, the parameters, and at last
// the step counter, which the others still read.
#include <cmath>

#include "groups.cuh"

namespace sepconv::cuda {
namespace {

struct State {
  const float* from;
  float* to;  // the same memory, or another
};
struct TableEntry {
  State parameter, moment, second;  // rmsprop: mean square, velocity; adam: mean, mean square
  const float* gradient;
  Average average;
  int64_t count;
  float decay;
  int first, trusted;  // first: block of its first piece
};
constexpr int optimizerEntries = 36;

struct OptimizerParameters {
  TableEntry entries[optimizerEntries];
  Input rate, flag, scale, step;  // step: adam's counter
  Input averageDecay;
  Output partial;                  // adam: [block][parameter's squares, lost, direction's squares, lost]
  Output ratios;                   // adam: [entry]
  float decay, momentum, epsilon;  // adam: beta1, beta2
  float logDecay, logMomentum;     // adam: their logarithms
  int count, form, firstBlock, firstEntry;
};
static_assert(sizeof(OptimizerParameters) <= 4096, "parameters travel in constant memory");
enum Form { tensorflow, pytorch };

__device__ __forceinline__ float read(const float* data, int64_t count, int64_t at) {
  return AnyInput{data, count, DType::float32}.load(at)[0];
}
__device__ __forceinline__ void write(float* data, int64_t count, int64_t at, float value) {
  Output{data, count}.store<1>(at, {value});
}

// Calls body(entry, place) for every element of this block's piece.
template <class Body>
__device__ __forceinline__ void overPiece(const OptimizerParameters& p, const Body& body) {
  const TableEntry& entry = p.entries[findEntry(p.entries, p.count, arch::blockX())];
  const int64_t begin = int64_t{arch::blockX() - entry.first} * pieceElements;
  ARCH_NO_UNROLL
  for (int i = 0; i < pieceElements / gridThreads; ++i) {
    const int64_t at = begin + int64_t{i} * gridThreads + arch::threadIndex();
    if (at < entry.count) body(entry, at);
  }
}

__global__ void __launch_bounds__(gridThreads) rmspropPieces(const __grid_constant__ OptimizerParameters p) {
  arch::beginLaunch();
  const bool moves = p.flag.load(0)[0] != 0.f;
  const float rate = p.rate.load(0)[0], scale = p.scale.load(0)[0];
  overPiece(p, [&](const TableEntry& e, int64_t at) {
    const float parameter = read(e.parameter.from, e.count, at), before = read(e.moment.from, e.count, at);
    const float velocityBefore = read(e.second.from, e.count, at);
    const float gradient = arch::fma(read(e.gradient, e.count, at), scale, e.decay * parameter);
    const float square = arch::fma(p.decay, before, (1.f - p.decay) * gradient * gradient);
    const float step =
        p.form == pytorch ? gradient / (sqrtf(square) + p.epsilon) : rate * gradient / sqrtf(square + p.epsilon);
    const float velocity = arch::fma(p.momentum, velocityBefore, step);
    write(e.moment.to, e.count, at, moves ? square : before);
    write(e.second.to, e.count, at, moves ? velocity : velocityBefore);
    const float moved = moves ? parameter - (p.form == pytorch ? rate * velocity : velocity) : parameter;
    write(e.parameter.to, e.count, at, moved);
    moveAverage(e.average, p.averageDecay, e.count, at, moved, moves);
  });
}

// One over 1 - beta^(steps so far + 1), without cancellation.
__device__ __forceinline__ float unbiased(const OptimizerParameters& p, float logBeta) {
  return -1.f / expm1f((p.step.load(0)[0] + 1.f) * logBeta);
}
__device__ __forceinline__ float direction(const OptimizerParameters& p, const TableEntry& e, float mean, float square,
                                           float parameter) {
  return mean * unbiased(p, p.logDecay) / (sqrtf(square * unbiased(p, p.logMomentum)) + p.epsilon) +
         e.decay * parameter;
}

__global__ void __launch_bounds__(gridThreads) adamMoments(const __grid_constant__ OptimizerParameters p) {
  arch::beginLaunch();
  const bool moves = p.flag.load(0)[0] != 0.f;
  const float scale = p.scale.load(0)[0];
  Accumulator parameters{0.f, 0.f}, directions{0.f, 0.f};
  overPiece(p, [&](const TableEntry& e, int64_t at) {
    const float parameter = read(e.parameter.from, e.count, at), gradient = read(e.gradient, e.count, at) * scale;
    const float meanBefore = read(e.moment.from, e.count, at), squareBefore = read(e.second.from, e.count, at);
    const float mean = arch::fma(p.decay, meanBefore, (1.f - p.decay) * gradient);
    const float square = arch::fma(p.momentum, squareBefore, (1.f - p.momentum) * gradient * gradient);
    const float d = direction(p, e, mean, square, parameter);
    parameters.add(parameter * parameter);
    directions.add(d * d);
    write(e.moment.to, e.count, at, moves ? mean : meanBefore);
    write(e.second.to, e.count, at, moves ? square : squareBefore);
  });
  const Accumulator first = sumOfBlock(parameters);
  arch::syncThreads();
  const Accumulator second = sumOfBlock(directions);
  if (arch::threadIndex()) return;
  const int64_t to = int64_t{p.firstBlock + arch::blockX()} * 4;
  p.partial.store<4>(to, {first.sum, first.lost, second.sum, second.lost});
}

// A block per entry: |p| / |d| where the entry is trusted, else 1.
__global__ void __launch_bounds__(gridThreads) adamRatios(const __grid_constant__ OptimizerParameters p) {
  arch::beginLaunch();
  const TableEntry& entry = p.entries[arch::blockX()];
  const int blocks = static_cast<int>((entry.count + pieceElements - 1) / pieceElements);
  const AnyInput partial{p.partial.data, p.partial.count, DType::float32};
  Accumulator parameters{0.f, 0.f}, directions{0.f, 0.f};
  ARCH_NO_UNROLL
  for (int block = arch::threadIndex(); block < blocks; block += gridThreads) {
    const Floats<4> sums = partial.load<4>(int64_t{p.firstBlock + entry.first + block} * 4);
    parameters.add(Accumulator{sums[0], sums[1]});
    directions.add(Accumulator{sums[2], sums[3]});
  }
  const Accumulator first = sumOfBlock(parameters);
  arch::syncThreads();
  const Accumulator second = sumOfBlock(directions);
  if (arch::threadIndex()) return;
  const bool trusted = entry.trusted && first.value() > 0.f && second.value() > 0.f;
  p.ratios.store<1>(p.firstEntry + arch::blockX(), {trusted ? sqrtf(first.value() / second.value()) : 1.f});
}

__global__ void __launch_bounds__(gridThreads) adamPieces(const __grid_constant__ OptimizerParameters p) {
  arch::beginLaunch();
  const bool moves = p.flag.load(0)[0] != 0.f;
  const int own = p.firstEntry + findEntry(p.entries, p.count, arch::blockX());
  const float step = p.rate.load(0)[0] * AnyInput{p.ratios.data, p.ratios.count, DType::float32}.load(own)[0];
  overPiece(p, [&](const TableEntry& e, int64_t at) {
    const float parameter = read(e.parameter.from, e.count, at);
    const float d = direction(p, e, read(e.moment.to, e.count, at), read(e.second.to, e.count, at), parameter);
    const float moved = moves ? parameter - step * d : parameter;
    write(e.parameter.to, e.count, at, moved);
    moveAverage(e.average, p.averageDecay, e.count, at, moved, moves);
  });
}

struct CounterParameters {
  AnyInput from, flag;
  Output to;
};
__global__ void __launch_bounds__(gridThreads) adamCounter(const __grid_constant__ CounterParameters p) {
  arch::beginLaunch();
  if (taskIndex() == 0) p.to.store<1>(0, {p.from.load(0)[0] + (p.flag.load(0)[0] != 0.f ? 1.f : 0.f)});
}

class OptimizerUpdate final : public Kernel {
 public:
  explicit OptimizerUpdate(const CallDescription& call)
      : adam_(call.kernel == "adamUpdate"),
        counts_(checkUpdate(call, adam_ ? 4 : 3, 4, adam_ ? 1 : 0, averages_)),
        decays_(perGroup(call, "weightDecay", counts_.size())) {
    if (adam_) {
      trust_ = perGroup(call, "trust", counts_.size());
      requireOutput(call, 0, call.input(3).shape);
      const double beta1 = call.attributes.number("beta1"), beta2 = call.attributes.number("beta2");
      if (!(beta1 > 0 && beta1 < 1 && beta2 > 0 && beta2 < 1)) refuse(call, "beta1 and beta2 must lie between 0 and 1");
      p_.decay = static_cast<float>(beta1);
      p_.momentum = static_cast<float>(beta2);
      p_.logDecay = static_cast<float>(std::log(beta1));
      p_.logMomentum = static_cast<float>(std::log(beta2));
    } else {
      p_.decay = static_cast<float>(call.attributes.number("decay"));
      p_.momentum = static_cast<float>(call.attributes.number("momentum"));
      const std::string form = call.attributes.text("form");
      if (form != "tensorflow" && form != "keras" && form != "pytorch") refuse(call, "there is no form '" + form + "'");
      p_.form = form == "pytorch" ? pytorch : tensorflow;
    }
    p_.epsilon = static_cast<float>(call.attributes.number("epsilon"));
    for (int64_t count : counts_) blocks_ += blocksOf(count);
  }
  size_t workspaceBytes() const override {
    return adam_ ? (static_cast<size_t>(blocks_) * 4 + counts_.size()) * sizeof(float) : 0;
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const size_t scalars = adam_ ? 4 : 3, outputs = adam_ ? 1 : 0;
    OptimizerParameters p = p_;
    p.rate = view(arguments.input(0), 1);
    p.flag = view(arguments.input(1), 1);
    p.scale = view(arguments.input(2), 1);
    p.averageDecay = averages_.decayOf(arguments);
    auto* workspace = static_cast<float*>(arguments.workspace);
    if (adam_) {
      p.step = view(arguments.input(3), 1);
      p.partial = view(workspace, int64_t{4} * blocks_);
      p.ratios = view(workspace + int64_t{4} * blocks_, static_cast<int64_t>(counts_.size()));
    }
    int blocks = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      TableEntry& entry = p.entries[p.count++];
      const auto state = [&](size_t j) {
        return State{arguments.input(scalars + 4 * i + j), arguments.output(outputs + 3 * i + j)};
      };
      entry.parameter = state(0);
      entry.moment = state(1);
      entry.second = state(2);
      entry.gradient = arguments.input(scalars + 4 * i + 3);
      entry.average = averages_.of(arguments, i);
      entry.count = counts_[i];
      entry.decay = decays_[i];
      entry.trusted = adam_ && trust_[i] != 0.f;
      entry.first = blocks;
      blocks += blocksOf(counts_[i]);
      if (p.count < optimizerEntries && i + 1 < counts_.size()) continue;
      const Extent pieces{static_cast<uint32_t>(blocks), 1, 1};
      constexpr size_t shared = 4 * gridThreads * sizeof(float);
      if (adam_) {
        arch::launch(device, "adamUpdate (moments)", adamMoments, pieces, gridThreads, shared, p);
        arch::launch(device, "adamUpdate (ratios)", adamRatios, {static_cast<uint32_t>(p.count), 1, 1}, gridThreads,
                     shared, p);
        arch::launch(device, "adamUpdate", adamPieces, pieces, gridThreads, 0, p);
      } else {
        arch::launch(device, "rmspropUpdate", rmspropPieces, pieces, gridThreads, 0, p);
      }
      p.firstBlock += blocks;
      p.firstEntry += p.count;
      p.count = blocks = 0;
    }
    if (adam_)
      launchTasks(device, "adamUpdate (counter)", adamCounter, 1,
                  CounterParameters{view(arguments.inputs[3], 1, DType::float32),
                                    view(arguments.inputs[1], 1, DType::float32), view(arguments.output(0), 1)});
  }

 private:
  const bool adam_;
  Averages averages_;  // before counts_, whose check fills it
  const std::vector<int64_t> counts_;
  const std::vector<float> decays_;
  std::vector<float> trust_;
  OptimizerParameters p_{};
  int blocks_ = 0;
};

}  // namespace

void registerOptimizerKernels(Registry& registry) {
  registry["rmspropUpdate"] = registry["adamUpdate"] = make<OptimizerUpdate>;
}

}  // namespace sepconv::cuda
