// allReduceStart and allReduceWait: sums over the ranks of a job, made by the communicator's progress thread while the
// kernels in between compute. The planner lays the outputs of a start side by side, so that one message carries them
// all.
#include <algorithm>
#include <cstring>

#include "../../kernels/collectives.h"
#include "checks.h"

namespace sepconv::cpu {
namespace {

constexpr size_t kAlignment = 64;  // of a buffer in the arena: src/graph/plan.ts

// Offsets of the outputs from the first one, and the bytes from its first to the last one's end.
struct Bucket {
  std::vector<size_t> offsets, bytes;
  size_t total = 0;

  explicit Bucket(const CallDescription& call) {
    if (call.outputs.empty()) fail(call, "ERR_SHAPE", "expected at least one tensor");
    expectOperands(call, call.outputs.size(), call.outputs.size());
    size_t next = 0;
    for (size_t i = 0; i < call.outputs.size(); ++i) {
      expectDType(call, "input", call.input(i), DType::float32);
      expectType(call, "output", call.outputs[i], call.input(i));
      offsets.push_back(next);
      bytes.push_back(call.outputs[i].bytes());
      total = next + bytes.back();
      next += (bytes.back() + kAlignment - 1) / kAlignment * kAlignment;
    }
    const int64_t ranks = call.attributes.integer("ranks");
    if (ranks < 1) fail(call, "ERR_ARGUMENT", "ranks must be at least 1");
    ranks_ = ranks;
  }

  // The ranks to sum over, or nullptr where this process is the only one.
  Collectives* among(const char* kernel) const {
    Collectives* all = collectives();
    if ((all ? all->size() : 1) != ranks_)
      throw Error("ERR_MPI", std::string(kernel) + ": the program was made for " + std::to_string(ranks_) +
                                 " ranks, there are " + std::to_string(all ? all->size() : 1));
    return ranks_ > 1 ? all : nullptr;
  }

  void checkPlaces(const Arguments& arguments, const char* kernel) const {
    const char* first = arguments.output<char>();
    for (size_t i = 1; i < offsets.size(); ++i)
      if (arguments.output<char>(i) != first + offsets[i])
        throw Error("ERR_FORMAT", std::string(kernel) + ": its tensors do not lie side by side");
  }

 private:
  int64_t ranks_;
};

class AllReduceStart : public Kernel {
 public:
  explicit AllReduceStart(const CallDescription& call) : bucket_(call) {}
  void run(const Arguments& arguments) const override {
    bucket_.checkPlaces(arguments, "allReduceStart");
    char* first = arguments.output<char>();
    for (size_t i = 0; i < bucket_.offsets.size(); ++i) {
      const char* from = arguments.input<char>(i);
      char* to = first + bucket_.offsets[i];
      if (from != to) std::memcpy(to, from, bucket_.bytes[i]);
      // The gap before the next tensor travels along: what it holds shall not depend on what the arena held before.
      const size_t end = bucket_.offsets[i] + bucket_.bytes[i];
      if (i + 1 < bucket_.offsets.size()) std::memset(first + end, 0, bucket_.offsets[i + 1] - end);
    }
    if (Collectives* all = bucket_.among("allReduceStart"))
      all->start(reinterpret_cast<float*>(first), static_cast<int64_t>(bucket_.total / sizeof(float)));
  }

 private:
  Bucket bucket_;
};

class AllReduceWait : public Kernel {
 public:
  explicit AllReduceWait(const CallDescription& call) : bucket_(call) {}
  void run(const Arguments& arguments) const override {
    for (size_t i = 0; i < bucket_.offsets.size(); ++i)
      if (arguments.input<char>(i) != arguments.output<char>(i))
        throw Error("ERR_FORMAT", "allReduceWait: its outputs are not its inputs");
    if (Collectives* all = bucket_.among("allReduceWait")) all->wait(arguments.output<float>());
  }

 private:
  Bucket bucket_;
};

template <class K>
std::unique_ptr<Kernel> make(const CallDescription& call) {
  return std::make_unique<K>(call);
}

}  // namespace

void registerAllReduceKernels(Registry& registry) {
  registry["allReduceStart"] = make<AllReduceStart>;
  registry["allReduceWait"] = make<AllReduceWait>;
}

}  // namespace sepconv::cpu
