// DeviceInterface on the host: memory from the heap, filled with NaN, launches run at once by block.cc. The memory is
// limited to 64 MiB, so that running out of it can be tested.
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "../cuda/discovery.h"
#include "../cuda/executor.h"
#include "beside.h"
#include "block.h"
#include "emulator.h"

namespace sepconv::emulator {
namespace {

constexpr size_t memoryBytes = size_t{64} << 20;

// A launch, work for the stream beside, or neither: a join.
struct KeptLaunch {
  std::optional<cuda::Launch> launch;
  std::vector<unsigned char> parameters;
  std::vector<Work> beside;
};

class EmulatedRecording final : public cuda::Recording {
 public:
  std::vector<KeptLaunch> launches;
};

class EmulatedDevice final : public cuda::DeviceInterface {
 public:
  EmulatedDevice(const Mode& mode, bool hopper) : mode_(mode), beside_(mode.lateCopies) {
    properties_.name = hopper ? "hopper" : "emulator";
    properties_.major = hopper ? 9 : 8;
    properties_.programmatic = hopper;
    if (hopper) properties_.sharedBytes = size_t{227} << 10;
    // Memory that another process holds.
    if (const char* held = std::getenv("SEPCONV_EMULATOR_HELD")) used_ = std::strtoull(held, nullptr, 10);
    // Few, so that shapes small enough to emulate reach the tiles of large problems too.
    properties_.multiprocessors = 2;
  }

  const cuda::DeviceProperties& properties() const override { return properties_; }
  void makeCurrent() override { enter(); }

  Memory memory() override {
    enter();
    std::lock_guard<std::mutex> lock(mutex_);
    return {memoryBytes - used_, memoryBytes};
  }

  void* allocate(size_t bytes) override {
    enter();
    std::lock_guard<std::mutex> lock(mutex_);
    // Not rounded up: an overrun must leave the block.
    void* pointer = nullptr;
    if (bytes > memoryBytes - used_ || posix_memalign(&pointer, 256, bytes))
      throw Error("ERR_MEMORY", "emulator: out of memory: needed " + std::to_string(bytes) + " bytes");
    std::memset(pointer, 0xff, bytes);
    used_ += bytes;
    sizes_[pointer] = bytes;
    return pointer;
  }

  void release(void* pointer) override {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = sizes_.find(pointer);
    used_ -= found->second;
    sizes_.erase(found);
    std::free(pointer);
  }

  void copyIn(void* device, const void* host, size_t bytes) override {
    enter();
    std::memcpy(device, host, bytes);
    std::lock_guard<std::mutex> lock(mutex_);
    ++copies_;
    copied_.notify_all();
  }
  void copyOut(void* host, const void* device, size_t bytes) override {
    enter();
    std::memcpy(host, device, bytes);
  }

  void launch(const cuda::Launch& launch) override {
    enter();
    if (!recording_) return run(launch);
    const auto* bytes = static_cast<const unsigned char*>(launch.parameters);
    recording_->launches.push_back({launch, std::vector<unsigned char>(bytes, bytes + launch.parameterBytes), {}});
  }

  void launchBeside(const std::function<void(void*)>& body) override {
    enter();
    if (!recording_) return body(beside_.enqueueing());
    recording_->launches.emplace_back();
    body(beside_.collecting(recording_->launches.back().beside));
  }

  void join() override {
    enter();
    if (recording_)
      recording_->launches.emplace_back();
    else
      beside_.join(look_);
  }

  void watch(std::function<void()> look) override { look_ = std::move(look); }

  void synchronize() override {
    enter();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      copiesBefore_ = copies_;
    }
    if (lost_)
      failure_.report(properties_.name, "run: cudaErrorIllegalAddress (an illegal memory access was encountered)");
  }

  std::unique_ptr<cuda::Recording> record(const std::function<void()>& body) override {
    auto recording = std::make_unique<EmulatedRecording>();
    recording_ = recording.get();
    try {
      body();
      join();
    } catch (...) {
      recording_ = nullptr;
      throw;
    }
    recording_ = nullptr;
    return recording;
  }

  void replay(cuda::Recording& recording) override {
    enter();
    for (KeptLaunch& kept : static_cast<EmulatedRecording&>(recording).launches) {
      if (kept.launch) {
        cuda::Launch launch = *kept.launch;
        launch.parameters = kept.parameters.data();
        run(launch);
      } else if (kept.beside.empty()) {
        beside_.join(look_);
      } else {
        for (const Work& work : kept.beside) beside_.push(work);
      }
    }
  }

  void encodeTensorMap(void* map, const cuda::TensorMapRequest& request) override {
    emulator::encodeTensorMap(map, request);
  }

  double time(const std::function<void()>& body) override {
    enter();
    const auto start = std::chrono::steady_clock::now();
    body();
    synchronize();
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  void enter() { failure_.refuse(properties_.name); }

  // The device goes away in the middle of a launch: on hardware too, only the next call that waits learns of it.
  void run(const cuda::Launch& launch) {
    if (std::strcmp(launch.name, "emulatorDeviceLost") == 0) lost_ = true;
    if (std::strcmp(launch.name, "emulatorAwaitsCopy") == 0) return awaitCopy();
    if (!lost_) runGrid(launch, mode_, ++seed_);
  }

  // A run that lasts until something has been copied to the device since the run before it; lost where nothing is.
  void awaitCopy() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!copied_.wait_for(lock, std::chrono::seconds(10), [&] { return copies_ > copiesBefore_; })) lost_ = true;
  }

  const Mode& mode_;
  BesideStream beside_;
  std::function<void()> look_;
  uint64_t copies_ = 0, copiesBefore_ = 0;
  std::condition_variable copied_;
  bool lost_ = false;
  cuda::DeviceProperties properties_;
  EmulatedRecording* recording_ = nullptr;
  cuda::Failure failure_;
  uint32_t seed_ = 0;
  std::mutex mutex_;
  size_t used_ = 0;
  std::unordered_map<void*, size_t> sizes_;
};

ExecutorInfo describe(const Mode& mode, bool hopper = false) {
  ExecutorInfo info;
  info.name = std::string(hopper ? "hopper:" : "emulator:") + mode.name;
  info.available = true;
  info.properties["panel"] = 0.0;
  info.properties["multiprocessors"] = 2.0;
  info.properties["l2Bytes"] = 16384.0;  // small, so that benchmarks of small shapes rotate their operands
  info.properties["kernels"] = cuda::kernelNames();
  info.properties["dtypes"] = std::vector<std::string>{"float32", "bfloat16"};
  return info;
}

const cuda::Registry& registry() {
  static const cuda::Registry all = [] {
    cuda::Registry kernels = cuda::kernels();
    registerTestKernels(kernels);
    registerHopperCheck(kernels);
    return kernels;
  }();
  return all;
}

}  // namespace

std::vector<ExecutorInfo> executors() {
  std::vector<ExecutorInfo> all;
  for (const Mode& mode : modes) all.push_back(describe(mode));
  return all;
}

std::unique_ptr<Executor> open(const std::string& name) {
  for (const bool hopper : {false, true})
    if (name == (hopper ? "hopper:" : "emulator:") + std::string(counting.name))
      return cuda::makeExecutor(std::make_unique<EmulatedDevice>(counting, hopper), describe(counting, hopper),
                                registry());
  std::string known;
  for (const Mode& mode : modes) {
    ExecutorInfo info = describe(mode);
    if (ExecutorInfo other = describe(mode, true); name == other.name)
      return cuda::makeExecutor(std::make_unique<EmulatedDevice>(mode, true), std::move(other), registry());
    if (name == info.name || (name == "emulator" && &mode == modes)) {
      info.name = name;
      return cuda::makeExecutor(std::make_unique<EmulatedDevice>(mode, false), std::move(info), registry());
    }
    known += (known.empty() ? "" : ", ") + info.name;
  }
  throw Error("ERR_DEVICE", "there is no '" + name + "': expected emulator or one of " + known);
}

}  // namespace sepconv::emulator
