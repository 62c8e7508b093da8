// Programs on a device: kernels are made when a program is loaded, all scratch lies in one arena that the executor's
// programs share, and a run launches everything and waits once. A program that runs a second time on the same addresses
// is recorded (as a CUDA graph) and from then on replayed, in two parts: an abort is obeyed before the first call that
// writes state.
#include "executor.h"

#include <algorithm>
#include <list>

#include "../kernels/arena.h"
#include "allocator.h"
#include "vendor/nccl.h"

namespace sepconv::cuda {
namespace {

// Widest access of a kernel.
constexpr size_t alignment = 16;
// Address sets that are remembered per program. A training step alternates between few: two sets of inputs and outputs.
constexpr size_t maxRecordings = 8;

std::string nameOf(const CallDescription& call) {
  return call.scope.empty() ? "'" + call.kernel + "'" : "'" + call.kernel + "' of " + call.scope;
}

class DeviceExecutor final : public Executor {
 public:
  DeviceExecutor(std::unique_ptr<DeviceInterface> device, ExecutorInfo info, const Registry& registry)
      : device_(std::move(device)),
        info_(std::move(info)),
        registry_(registry),
        allocator_(std::make_shared<DeviceAllocator>(device_)) {}
  ~DeviceExecutor() override {
    if (joined_) setNcclRanks(nullptr);
  }

  ExecutorInfo info() const override { return info_; }
  bool hostMemory() const override { return false; }
  std::shared_ptr<Allocation> allocate(size_t bytes) override { return allocator_->allocate(bytes); }
  void copyIn(Allocation& memory, size_t offset, const void* host, size_t bytes) override {
    device_->copyIn(memory.data() + offset, host, bytes);
  }
  void copyOut(const Allocation& memory, size_t offset, void* host, size_t bytes) override {
    device_->copyOut(host, memory.data() + offset, bytes);
  }
  size_t workspaceBytes(const CallDescription& call) override { return makeKernel(call)->workspaceBytes(); }
  std::vector<std::string> tiles(const CallDescription& call) override { return makeKernel(call)->tiles(); }
  std::unique_ptr<LoadedProgram> load(ProgramDescription description) override;
  void setThreads(int) override {}
  std::vector<uint8_t> ranksId() override {
    Nccl::Id id;
    if (const int error = nccl().ncclGetUniqueId(&id))
      throw Error("ERR_DEVICE", std::string("ncclGetUniqueId: ") + nccl().ncclGetErrorString(error));
    return {id.bytes, id.bytes + sizeof id.bytes};
  }
  void joinRanks(const std::vector<uint8_t>& bytes, int size, int rank) override {
    Nccl::Id id;
    if (bytes.size() != sizeof id.bytes)
      throw Error("ERR_ARGUMENT", "the id of NCCL's ranks has " + std::to_string(sizeof id.bytes) + " bytes, got " +
                                      std::to_string(bytes.size()));
    std::copy(bytes.begin(), bytes.end(), id.bytes);
    device_->makeCurrent();
    setNcclRanks(std::make_unique<NcclRanks>(id, size, rank));
    joined_ = true;
    device_->watch([] {
      if (NcclRanks* ranks = ncclRanks()) ranks->watch();
    });
  }

  MemoryReport memory() const override {
    MemoryReport report;
    report.allocated = allocator_->allocated();
    report.peak = allocator_->peak();
    report.arena = arena_.bytes();
    return report;
  }

  DeviceInterface& device() { return *device_; }

  std::unique_ptr<Kernel> makeKernel(const CallDescription& call) {
    const auto found = registry_.find(call.kernel);
    if (found == registry_.end())
      throw Error("ERR_DEVICE",
                  "executor '" + info_.name + "' has no kernel for " + nameOf(call) + "; use another device");
    requireOutputs(call);
    device_->makeCurrent();
    return found->second(call, device_->properties());
  }

  SharedArena<DeviceAllocator>& arena() { return arena_; }

 private:
  const std::shared_ptr<DeviceInterface> device_;
  const ExecutorInfo info_;
  const Registry& registry_;
  const std::shared_ptr<DeviceAllocator> allocator_;
  SharedArena<DeviceAllocator> arena_{allocator_};
  bool joined_ = false;  // the ranks that sum over their devices
};

class DeviceProgram final : public LoadedProgram {
 public:
  DeviceProgram(DeviceExecutor& executor, ProgramDescription description)
      : LoadedProgram(std::move(description)), executor_(executor) {
    checkProgram(description_);
    for (const ProgramCall& call : description_.calls) {
      kernels_.push_back(executor.makeKernel(call));
      if (kernels_.back()->workspaceBytes() > call.workspaceBytes)
        throw Error("ERR_FORMAT", nameOf(call) + " needs " + std::to_string(kernels_.back()->workspaceBytes()) +
                                      " bytes of workspace, the program gives it " +
                                      std::to_string(call.workspaceBytes) +
                                      ": it was planned for another executor or version");
    }
    constants_.resize(description_.buffers.size());
    for (size_t i = 0; i < description_.buffers.size(); ++i) {
      const BufferDescription& buffer = description_.buffers[i];
      if (buffer.place != Place::constant || buffer.view >= 0) continue;
      constants_[i] = executor.allocate(buffer.bytes);
      executor.device().copyIn(constants_[i]->data(), buffer.data.data(), buffer.bytes);
    }
    executor.arena().reserve(description_.arenaBytes);
  }

  ~DeviceProgram() override { executor_.arena().giveBack(description_.arenaBytes); }

  bool execute(const Run& run) override {
    const std::shared_ptr<Allocation> arena = arenaOfRun();
    const bool done = start(run, arena.get());
    executor_.device().synchronize();
    return done;
  }

  double elapsed(const Run& run) override {
    const std::shared_ptr<Allocation> arena = arenaOfRun();
    return executor_.device().time([&] { start(run, arena.get()); });
  }

  std::vector<double> profile(const Run& run) override {
    const std::shared_ptr<Allocation> arena = arenaOfRun();
    const std::vector<char*> addresses = resolve(run, arena.get());
    std::vector<double> nanoseconds;
    for (size_t i = 0; i < kernels_.size(); ++i)
      nanoseconds.push_back(executor_.device().time([&] { launchCalls(addresses, i, i + 1); }));
    return nanoseconds;
  }

 private:
  // Launches on one set of addresses. The first run on it is not recorded: it may be the only one.
  struct Recorded {
    std::vector<char*> addresses;  // by buffer; the arena's base last
    bool repeated = false;
    std::unique_ptr<Recording> parts[2];
  };

  // Enqueues everything, or what does not write state when it obeyed `run.aborted`.
  bool start(const Run& run, const Allocation* arena) {
    std::vector<char*> addresses = resolve(run, arena);
    const size_t total = kernels_.size(), update = std::min(description_.updateStart, total);
    if (run.aborted.load(std::memory_order_relaxed)) return false;
    Recorded* recorded = recordingFor(std::move(addresses));
    perform(*recorded, 0, 0, update);
    // What writes state starts only when the rest is enqueued and nobody has changed their mind.
    if (update < total) {
      if (run.aborted.load(std::memory_order_relaxed)) return false;
      perform(*recorded, 1, update, total);
    }
    return true;
  }

  std::shared_ptr<Allocation> arenaOfRun() { return description_.arenaBytes ? executor_.arena().block() : nullptr; }

  std::vector<char*> resolve(const Run& run, const Allocation* arena) const {
    const std::vector<BufferDescription>& buffers = description_.buffers;
    std::vector<char*> addresses(buffers.size() + 1);
    addresses.back() = arena ? arena->data() : nullptr;
    for (size_t i = 0; i < buffers.size(); ++i) {
      if (buffers[i].view >= 0) continue;
      if (buffers[i].place == Place::arena) addresses[i] = arena->data() + buffers[i].offset;
      if (buffers[i].place == Place::state || buffers[i].place == Place::prepared)
        addresses[i] = (*run.states)[i].address();
      if (buffers[i].place == Place::constant) addresses[i] = constants_[i]->data();
    }
    for (size_t i = 0; i < run.inputs.size(); ++i)
      addresses[static_cast<size_t>(description_.inputs[i])] = run.inputs[i].address();
    for (size_t i = 0; i < run.outputs.size(); ++i)
      addresses[static_cast<size_t>(description_.outputs[i])] = run.outputs[i].address();
    for (size_t i = 0; i < buffers.size(); ++i)
      if (buffers[i].view >= 0) addresses[i] = addresses[static_cast<size_t>(buffers[i].view)];
    for (size_t i = 0; i < buffers.size(); ++i)
      if (reinterpret_cast<uintptr_t>(addresses[i]) % alignment)
        throw Error("ERR_ARGUMENT", "buffer " + std::to_string(i) + " ('" + buffers[i].name +
                                        "') must be bound at a multiple of " + std::to_string(alignment) + " bytes");
    return addresses;
  }

  Recorded* recordingFor(std::vector<char*> addresses) {
    for (auto entry = recorded_.begin(); entry != recorded_.end(); ++entry)
      if (entry->addresses == addresses) {
        recorded_.splice(recorded_.begin(), recorded_, entry);
        entry->repeated = true;
        return &*entry;
      }
    if (recorded_.size() == maxRecordings) recorded_.pop_back();
    recorded_.emplace_front();
    recorded_.front().addresses = std::move(addresses);
    return &recorded_.front();
  }

  void perform(Recorded& recorded, int part, size_t first, size_t end) {
    if (first == end) return;
    if (!recorded.repeated) return launchCalls(recorded.addresses, first, end);
    if (!recorded.parts[part])
      recorded.parts[part] = executor_.device().record([&] { launchCalls(recorded.addresses, first, end); });
    executor_.device().replay(*recorded.parts[part]);
  }

  void launchCalls(const std::vector<char*>& addresses, size_t first, size_t end) const {
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
    for (size_t i = first; i < end; ++i) {
      const ProgramCall& call = description_.calls[i];
      inputs.clear();
      outputs.clear();
      for (int32_t buffer : call.inputBuffers)
        inputs.push_back(buffer < 0 ? nullptr : addresses[static_cast<size_t>(buffer)]);
      for (int32_t buffer : call.outputBuffers) outputs.push_back(addresses[static_cast<size_t>(buffer)]);
      // Kernels index up to their last optional input.
      inputs.resize(std::max(inputs.size(), maxInputs), nullptr);
      try {
        kernels_[i]->launch(
            executor_.device(),
            {inputs.data(), outputs.data(), call.workspaceBytes ? addresses.back() + call.workspaceOffset : nullptr});
      } catch (const Error& error) {
        throw Error(error.code, nameOf(call) + ": " + error.what());
      }
    }
  }

  static constexpr size_t maxInputs = 16;
  DeviceExecutor& executor_;
  std::vector<std::unique_ptr<Kernel>> kernels_;
  std::vector<std::shared_ptr<Allocation>> constants_;  // by buffer
  std::list<Recorded> recorded_;                        // latest first; used by the thread that runs
};

std::unique_ptr<LoadedProgram> DeviceExecutor::load(ProgramDescription description) {
  return std::make_unique<DeviceProgram>(*this, std::move(description));
}

}  // namespace

std::unique_ptr<Executor> makeExecutor(std::unique_ptr<DeviceInterface> device, ExecutorInfo info,
                                       const Registry& registry) {
  return std::make_unique<DeviceExecutor>(std::move(device), std::move(info), registry);
}

}  // namespace sepconv::cuda
