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

inline std::vector<float> perGroup(const CallDescription& call, const char* name, size_t groups) {
  const std::vector<double> values = call.attributes.numbers(name);
  if (values.size() != groups) refuse(call, std::string(name) + " must have one entry per group");
  return {values.begin(), values.end()};
}

}  // namespace sepconv::cuda
