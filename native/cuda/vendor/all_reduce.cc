// allReduceStart and allReduceWait: sums over the ranks of a job by NCCL, on a stream of their own beside the kernels
// in between.
#include "../kernel.h"
#include "../problem.h"
#include "nccl.h"
#include "vendor.h"

namespace sepconv::cuda {
namespace {

class AllReduce : public Kernel {
 public:
  explicit AllReduce(const CallDescription& call) : call_(subject(call)) {
    if (call.outputs.empty()) refuse(call, "expected at least one tensor");
    for (size_t i = 0; i < call.outputs.size(); ++i) {
      if (!call.has(i)) refuse(call, "input " + std::to_string(i) + " is missing");
      const TensorType& type = call.inputs[i].value();
      if (type.dtype != DType::float32) refuse(call, "sums over ranks are of float32");
      requireOutputLike(call, i, type);
      counts_.push_back(static_cast<size_t>(type.elements()));
    }
    ranks_ = call.attributes.integer("ranks");
    if (ranks_ < 1) refuse(call, "ranks must be at least 1");
  }

 protected:
  // The ranks to sum over; among one there is nothing to sum, which is then done all the same, to measure what it
  // costs.
  NcclRanks* among() const {
    NcclRanks* all = ncclRanks();
    if (!all || all->size() != ranks_)
      throw Error("ERR_RANK", call_ + ": the program sums over " + std::to_string(ranks_) +
                                  " ranks, and this device is " +
                                  (all ? "one of " + std::to_string(all->size()) : "not connected with any") +
                                  "; call connect(device) of what openCommunicator() gives first");
    return all;
  }

  const std::string call_;
  int64_t ranks_ = 1;
  std::vector<size_t> counts_;
};

class AllReduceStart final : public AllReduce {
 public:
  using AllReduce::AllReduce;
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    NcclRanks* all = among();
    std::vector<NcclRanks::Piece> pieces;
    for (size_t i = 0; i < counts_.size(); ++i) pieces.push_back({arguments.input(i), arguments.output(i), counts_[i]});
    device.launchBeside([&](void* stream) { all->sum(pieces, stream); });
  }
};

class AllReduceWait final : public AllReduce {
 public:
  using AllReduce::AllReduce;
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    for (size_t i = 0; i < counts_.size(); ++i)
      if (arguments.inputs[i] != arguments.outputs[i])
        throw Error("ERR_FORMAT", call_ + ": its outputs are not its inputs");
    among();
    device.join();
  }
};

template <class K>
std::unique_ptr<Kernel> make(const CallDescription& call, const DeviceProperties&) {
  return std::make_unique<K>(call);
}

}  // namespace

void registerAllReduce(Registry& registry) {
  registry["allReduceStart"] = make<AllReduceStart>;
  registry["allReduceWait"] = make<AllReduceWait>;
}

}  // namespace sepconv::cuda
