// What launches over many tensors share: a table of tensors in the parameters, blocks that find theirs in it, sums of a
// block, and the check of groups of tensors.
#pragma once
#include "../arch/sync.h"
#include "accumulator.cuh"
#include "grid.cuh"
#include "tensor.cuh"

namespace sepconv::cuda {

constexpr int pieceElements = 16 * gridThreads;

inline int blocksOf(int64_t elements) { return static_cast<int>((elements + pieceElements - 1) / pieceElements); }

// The entry whose blocks include `block`; `first` rises and starts at 0.
template <class Entry>
__device__ __forceinline__ int findEntry(const Entry* entries, int count, int block) {
  int low = 0, high = count - 1;
  ARCH_NO_UNROLL
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (entries[middle].first <= block)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// Sum (and what it lost) of a block's accumulators, by thread 0.
__device__ __forceinline__ Accumulator sumOfBlock(const Accumulator& own) {
  arch::SharedMemory memory;
  const auto shared = memory.array<float>(2 * gridThreads);
  shared.store<1>(arch::threadIndex(), {own.sum});
  shared.store<1>(arch::threadIndex() + gridThreads, {own.lost});
  arch::syncThreads();
  Accumulator total{0.f, 0.f};
  if (arch::threadIndex() >= 32) return total;
  ARCH_NO_UNROLL
  for (int i = arch::threadIndex(); i < gridThreads; i += 32)
    total.add(Accumulator{shared.load(i)[0], shared.load(i + gridThreads)[0]});
  ARCH_UNROLL
  for (int mask = 16; mask; mask /= 2)
    total.add(Accumulator{arch::shuffleXor(total.sum, mask), arch::shuffleXor(total.lost, mask)});
  return total;
}

// The average that an update moves with its parameter (attribute `averaged`); absent: from is nullptr.
struct Average {
  const float* from;
  float* to;  // the same memory, or another
};
__device__ __forceinline__ void moveAverage(const Average& average, const Input& decay, int64_t count, int64_t at,
                                            float parameter, bool moves) {
  if (!average.from) return;
  const float before = AnyInput{average.from, count, DType::float32}.load(at)[0], kept = decay.load(0)[0];
  const float after = arch::fma(kept, before, (1.f - kept) * parameter);
  Output{average.to, count}.store<1>(at, {moves ? after : before});
}

// Where the averages of an update begin: behind scalars and `groups` groups its decay, then an average per group.
struct Averages {
  bool present;
  size_t decay, outputs;

  Average of(const Arguments& arguments, size_t group) const {
    if (!present) return {};
    return {arguments.input(decay + 1 + group), arguments.output(outputs + group)};
  }
  Input decayOf(const Arguments& arguments) const { return present ? view(arguments.input(decay), 1) : Input{}; }
};

// Scalars, then groups of `group` tensors of one shape; elements per group.
inline std::vector<int64_t> checkGroups(const CallDescription& call, size_t scalars, size_t group, size_t outputs,
                                        size_t firstOutput = 0) {
  for (size_t i = 0; i < scalars; ++i)
    if (requireInput(call, i, "a leading scalar", 0).elements() != 1)
      refuse(call, "the leading inputs must be scalars");
  if (call.inputs.size() < scalars || (call.inputs.size() - scalars) % group)
    refuse(call, "inputs must be " + std::to_string(scalars) + " scalars and groups of " + std::to_string(group));
  std::vector<int64_t> counts;
  for (size_t i = scalars; i < call.inputs.size(); i += group) {
    const TensorType& type = requireInput(call, i, "a tensor", 0);
    for (size_t j = 1; j < group; ++j) {
      requireInput(call, i + j, "a tensor", 0);
      requireLike(call, i + j, "a tensor of the group", type);
    }
    for (size_t j = 0; j < outputs; ++j) requireOutputLike(call, firstOutput + counts.size() * outputs + j, type);
    counts.push_back(type.elements());
  }
  return counts;
}

// The same for an update that may move averages (`averaged`): also where they begin.
inline std::vector<int64_t> checkUpdate(const CallDescription& call, size_t scalars, size_t group, size_t firstOutput,
                                        Averages& averages) {
  averages = {call.attributes.flag("averaged"), call.inputs.size(), call.outputs.size()};
  if (!averages.present) return checkGroups(call, scalars, group, group - 1, firstOutput);
  if (call.inputs.size() < scalars + 1 || (call.inputs.size() - scalars - 1) % (group + 1))
    refuse(call, "averaged groups must be complete");
  const size_t groups = (call.inputs.size() - scalars - 1) / (group + 1);
  averages.decay = scalars + groups * group;
  averages.outputs = firstOutput + groups * (group - 1);
  if (requireInput(call, averages.decay, "the average's decay", 0).elements() != 1)
    refuse(call, "the average's decay must be a scalar");
  CallDescription core = call;
  core.inputs.resize(averages.decay);
  const std::vector<int64_t> counts = checkGroups(core, scalars, group, group - 1, firstOutput);
  for (size_t i = 0; i < groups; ++i) {
    const TensorType& parameter = call.input(scalars + i * group);
    requireInput(call, averages.decay + 1 + i, "an average", 0);
    requireLike(call, averages.decay + 1 + i, "an average", parameter);
    requireOutputLike(call, averages.outputs + i, parameter);
  }
  return counts;
}

inline std::vector<float> perGroup(const CallDescription& call, const char* name, size_t groups) {
  const std::vector<double> values = call.attributes.numbers(name);
  if (values.size() != groups) refuse(call, std::string(name) + " must have one entry per group");
  return {values.begin(), values.end()};
}

}  // namespace sepconv::cuda
