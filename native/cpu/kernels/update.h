// What kernels over many tensors of any sizes share. The tensors are cut into pieces of at most 16384 elements, and
// small pieces are packed into one task until it holds about as many; both follow from the shapes alone.
#pragma once
#include <cstring>

#include "../simd/table.h"
#include "checks.h"

namespace sepconv::cpu {

constexpr int64_t kPiece = 16384;

struct Piece {
  size_t tensor;  // index of the group
  int64_t begin, count;
};

class Pieces {
 public:
  void add(size_t tensor, int64_t elements) {
    for (int64_t begin = 0; begin < elements; begin += kPiece) {
      const int64_t count = std::min(kPiece, elements - begin);
      if (tasks_.empty() || filled_ + count > kPiece) {
        tasks_.push_back(pieces_.size());
        filled_ = 0;
      }
      filled_ += count;
      pieces_.push_back({tensor, begin, count});
    }
  }
  size_t count() const { return pieces_.size(); }

  // body(piece, index of the piece), one after the other
  template <class Body>
  void each(const Body& body) const {
    for (size_t i = 0; i < pieces_.size(); ++i) body(pieces_[i], i);
  }

  // body(piece, index of the piece)
  template <class Body>
  void run(ThreadPool& pool, const Body& body) const {
    pool.run(static_cast<int64_t>(tasks_.size()), [&](int64_t task, int) {
      const size_t first = tasks_[static_cast<size_t>(task)];
      const size_t end =
          static_cast<size_t>(task) + 1 < tasks_.size() ? tasks_[static_cast<size_t>(task) + 1] : pieces_.size();
      for (size_t i = first; i < end; ++i) body(pieces_[i], i);
    });
  }

 private:
  std::vector<Piece> pieces_;
  std::vector<size_t> tasks_;  // first piece of each task
  int64_t filled_ = 0;
};

// `leading` scalar inputs, then groups of `group` inputs of one shape each.
inline Pieces checkGroups(const CallDescription& call, size_t leading, size_t group) {
  for (size_t i = 0; i < call.inputs.size(); ++i) {
    const std::string role = "input " + std::to_string(i);
    if (!call.has(i)) fail(call, "ERR_SHAPE", role + " is missing");
    expectDType(call, role.c_str(), call.input(i), DType::float32);
    if (i < leading && call.input(i).elements() != 1)
      fail(call, "ERR_SHAPE", role + ": expected one value, got " + formatType(call.input(i)));
  }
  if (call.inputs.size() < leading || (call.inputs.size() - leading) % group)
    fail(call, "ERR_SHAPE",
         "expected " + std::to_string(leading) + " values and groups of " + std::to_string(group) + ", got " +
             std::to_string(call.inputs.size()) + " inputs");
  Pieces pieces;
  for (size_t i = leading; i < call.inputs.size(); i += group) {
    for (size_t j = 1; j < group; ++j)
      expectShape(call, ("input " + std::to_string(i + j)).c_str(), call.input(i + j), call.input(i).shape);
    pieces.add((i - leading) / group, call.input(i).elements());
  }
  return pieces;
}

// Output `first + i` updates input `leading + i / outputsPerGroup * group + i % outputsPerGroup`.
inline void checkUpdatedOutputs(const CallDescription& call, size_t leading, size_t group, size_t outputsPerGroup,
                                size_t first = 0) {
  const size_t groups = (call.inputs.size() - leading) / group;
  if (call.outputs.size() != first + groups * outputsPerGroup)
    fail(call, "ERR_SHAPE",
         "expected " + std::to_string(first + groups * outputsPerGroup) + " outputs, got " +
             std::to_string(call.outputs.size()));
  for (size_t i = 0; i < groups * outputsPerGroup; ++i)
    expectType(call, ("output " + std::to_string(first + i)).c_str(), call.outputs[first + i],
               call.input(leading + i / outputsPerGroup * group + i % outputsPerGroup));
}

inline std::vector<float> perGroup(const CallDescription& call, const char* name, size_t groups) {
  const std::vector<double> values = call.attributes.numbers(name);
  if (values.size() != groups)
    fail(call, "ERR_ARGUMENT",
         std::string(name) + ": expected " + std::to_string(groups) + " entries, got " + std::to_string(values.size()));
  return std::vector<float>(values.begin(), values.end());
}

inline void copyUnlessSame(const float* from, float* to, int64_t n) {
  if (from != to) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}

}  // namespace sepconv::cpu
