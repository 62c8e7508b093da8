// allFinite, globalNorm, sgdUpdate, averageUpdate: one launch for many tensors. A launch carries a table of tensors in
// its parameters (constant memory); each block finds its tensor there and works on one piece of it, so that a network's
// hundred small vectors cost no launch each. More tensors than the table holds take several launches. The two
// reductions leave one number per block, which one more block adds in order.
#include "groups.cuh"

namespace sepconv::cuda {
namespace {

struct ReadEntry {
  Input x;
  int first;  // block of its first piece
};
constexpr int readEntries = 128;
struct ScanParameters {
  ReadEntry entries[readEntries];
  Output partial;  // two per block
  int count, firstBlock;
  bool norm;
};

// The sum of squares (norm), or the number of elements that are not finite.
__global__ void __launch_bounds__(gridThreads) scanPieces(const __grid_constant__ ScanParameters p) {
  arch::beginLaunch();
  const ReadEntry& entry = p.entries[findEntry(p.entries, p.count, arch::blockX())];
  const int64_t begin = int64_t{arch::blockX() - entry.first} * pieceElements;
  Accumulator sum{0.f, 0.f};
  ARCH_NO_UNROLL
  for (int i = 0; i < pieceElements / gridThreads; ++i) {
    const int64_t at = begin + int64_t{i} * gridThreads + arch::threadIndex();
    if (at >= entry.x.count) break;
    const float x = entry.x.load(at)[0];
    sum.add(p.norm ? x * x : x - x == 0.f ? 0.f : 1.f);
  }
  const Accumulator total = sumOfBlock(sum);
  if (arch::threadIndex()) return;
  const int64_t to = int64_t{p.firstBlock + arch::blockX()} * 2;
  p.partial.store<1>(to, {total.sum});
  p.partial.store<1>(to + 1, {total.lost});
}

struct FinishParameters {
  Input partial;
  Output result;
  bool norm;
};

__global__ void __launch_bounds__(gridThreads) finishScan(const __grid_constant__ FinishParameters p) {
  arch::beginLaunch();
  Accumulator sum{0.f, 0.f};
  ARCH_NO_UNROLL
  for (int64_t i = arch::threadIndex(); i < p.partial.count / 2; i += gridThreads)
    sum.add(Accumulator{p.partial.load(2 * i)[0], p.partial.load(2 * i + 1)[0]});
  const Accumulator total = sumOfBlock(sum);
  if (arch::threadIndex()) return;
  p.result.store<1>(0, {p.norm ? sqrtf(total.value()) : total.value() == 0.f ? 1.f : 0.f});
}

class Scan final : public Kernel {
 public:
  explicit Scan(const CallDescription& call) : norm_(call.kernel == "globalNorm") {
    for (size_t i = 0; i < call.inputs.size(); ++i) counts_.push_back(requireInput(call, i, "x", 0).elements());
    if (counts_.empty()) refuse(call, "at least one tensor is needed");
    for (int64_t count : counts_) blocks_ += blocksOf(count);
    requireOutput(call, 0, std::vector<int64_t>{});
  }
  size_t workspaceBytes() const override { return static_cast<size_t>(blocks_) * 2 * sizeof(float); }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    auto* partial = static_cast<float*>(arguments.workspace);
    ScanParameters p{};
    p.partial = view(partial, int64_t{2} * blocks_);
    p.norm = norm_;
    int blocks = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      p.entries[p.count++] = {view(arguments.input(i), counts_[i]), blocks};
      blocks += blocksOf(counts_[i]);
      if (p.count < readEntries && i + 1 < counts_.size()) continue;
      arch::launch(device, name(), scanPieces, {static_cast<uint32_t>(blocks), 1, 1}, gridThreads,
                   2 * gridThreads * sizeof(float), p);
      p.firstBlock += blocks;
      p.count = blocks = 0;
    }
    arch::launch(device, name(), finishScan, {1, 1, 1}, gridThreads, 2 * gridThreads * sizeof(float),
                 FinishParameters{view(static_cast<const float*>(partial), int64_t{2} * blocks_),
                                  view(arguments.output(), 1), norm_});
  }

 private:
  const char* name() const { return norm_ ? "globalNorm" : "allFinite"; }
  const bool norm_;
  std::vector<int64_t> counts_;
  int blocks_ = 0;
};

struct SgdEntry {
  Output parameter, velocity;  // read and written in place, or
  const float *fromParameter, *fromVelocity, *gradient;
  Average average;
  float decay;
  int first;
};
constexpr int sgdEntries = 48;
struct SgdParameters {
  SgdEntry entries[sgdEntries];
  Input rate, flag, scale, averageDecay;
  float momentum;
  int count;
  bool nesterov;
};
static_assert(sizeof(SgdParameters) <= 4096, "parameters travel in constant memory");

__global__ void __launch_bounds__(gridThreads) sgdPieces(const __grid_constant__ SgdParameters p) {
  arch::beginLaunch();
  const SgdEntry& entry = p.entries[findEntry(p.entries, p.count, arch::blockX())];
  const int64_t n = entry.parameter.count, begin = int64_t{arch::blockX() - entry.first} * pieceElements;
  const AnyInput parameters{entry.fromParameter, n, DType::float32}, velocities{entry.fromVelocity, n, DType::float32};
  const Input gradients{entry.gradient, n};
  const bool moves = p.flag.load(0)[0] != 0.f;
  const float rate = p.rate.load(0)[0], scale = p.scale.load(0)[0];
  ARCH_NO_UNROLL
  for (int i = 0; i < pieceElements / gridThreads; ++i) {
    const int64_t at = begin + int64_t{i} * gridThreads + arch::threadIndex();
    if (at >= n) return;
    const float parameter = parameters.load(at)[0], before = velocities.load(at)[0];
    const float gradient = arch::fma(gradients.load(at)[0], scale, entry.decay * parameter);
    const float velocity = arch::fma(p.momentum, before, gradient);
    const float step = p.nesterov ? arch::fma(p.momentum, velocity, gradient) : velocity;
    entry.velocity.store<1>(at, {moves ? velocity : before});
    const float moved = moves ? parameter - rate * step : parameter;
    entry.parameter.store<1>(at, {moved});
    moveAverage(entry.average, p.averageDecay, n, at, moved, moves);
  }
}

class SgdUpdate final : public Kernel {
 public:
  explicit SgdUpdate(const CallDescription& call)
      : counts_(checkUpdate(call, 3, 3, 0, averages_)),
        decays_(perGroup(call, "weightDecay", counts_.size())),
        momentum_(static_cast<float>(call.attributes.number("momentum"))),
        nesterov_(call.attributes.flag("nesterov")) {}
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    SgdParameters p{};
    p.rate = view(arguments.input(0), 1);
    p.flag = view(arguments.input(1), 1);
    p.scale = view(arguments.input(2), 1);
    p.averageDecay = averages_.decayOf(arguments);
    p.momentum = momentum_;
    p.nesterov = nesterov_;
    int blocks = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      p.entries[p.count++] = {view(arguments.output(2 * i), counts_[i]),
                              view(arguments.output(2 * i + 1), counts_[i]),
                              arguments.input(3 + 3 * i),
                              arguments.input(4 + 3 * i),
                              arguments.input(5 + 3 * i),
                              averages_.of(arguments, i),
                              decays_[i],
                              blocks};
      blocks += blocksOf(counts_[i]);
      if (p.count < sgdEntries && i + 1 < counts_.size()) continue;
      arch::launch(device, "sgdUpdate", sgdPieces, {static_cast<uint32_t>(blocks), 1, 1}, gridThreads, 0, p);
      p.count = blocks = 0;
    }
  }

 private:
  Averages averages_;  // before counts_, whose check fills it
  const std::vector<int64_t> counts_;
  const std::vector<float> decays_;
  const float momentum_;
  const bool nesterov_;
};

struct AverageEntry {
  Output average;
  const float *from, *value;
  float factor;
  int first;
};
constexpr int averageEntries = 96;
struct AverageParameters {
  AverageEntry entries[averageEntries];
  Input decay, flag;
  int count;
};
static_assert(sizeof(AverageParameters) <= 4096, "parameters travel in constant memory");

__global__ void __launch_bounds__(gridThreads) averagePieces(const __grid_constant__ AverageParameters p) {
  arch::beginLaunch();
  const AverageEntry& entry = p.entries[findEntry(p.entries, p.count, arch::blockX())];
  const int64_t n = entry.average.count, begin = int64_t{arch::blockX() - entry.first} * pieceElements;
  const AnyInput averages{entry.from, n, DType::float32};
  const Input values{entry.value, n};
  const bool moves = p.flag.load(0)[0] != 0.f;
  const float decay = p.decay.load(0)[0];
  ARCH_NO_UNROLL
  for (int i = 0; i < pieceElements / gridThreads; ++i) {
    const int64_t at = begin + int64_t{i} * gridThreads + arch::threadIndex();
    if (at >= n) return;
    const float before = averages.load(at)[0];
    const float after = arch::fma(decay, before, (1.f - decay) * values.load(at)[0] * entry.factor);
    entry.average.store<1>(at, {moves ? after : before});
  }
}

class AverageUpdate final : public Kernel {
 public:
  explicit AverageUpdate(const CallDescription& call)
      : counts_(checkGroups(call, 2, 2, 1)), factors_(perGroup(call, "factor", counts_.size())) {}
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    AverageParameters p{};
    p.decay = view(arguments.input(0), 1);
    p.flag = view(arguments.input(1), 1);
    int blocks = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      p.entries[p.count++] = {view(arguments.output(i), counts_[i]), arguments.input(2 + 2 * i),
                              arguments.input(3 + 2 * i), factors_[i], blocks};
      blocks += blocksOf(counts_[i]);
      if (p.count < averageEntries && i + 1 < counts_.size()) continue;
      arch::launch(device, "averageUpdate", averagePieces, {static_cast<uint32_t>(blocks), 1, 1}, gridThreads, 0, p);
      p.count = blocks = 0;
    }
  }

 private:
  const std::vector<int64_t> counts_;
  const std::vector<float> factors_;
};

}  // namespace

void registerUpdateKernels(Registry& registry) {
  registry["allFinite"] = registry["globalNorm"] = make<Scan>;
  registry["sgdUpdate"] = make<SgdUpdate>;
  registry["averageUpdate"] = make<AverageUpdate>;
}

}  // namespace sepconv::cuda
