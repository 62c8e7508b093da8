// The CPU executor: programs whose calls are kernel objects made once, run in order on an own thread pool with all
// memory in one shared arena. A run resolves every operand to an address (one load per operand: some 2 us for a
// training step of Xception) and then does nothing but call kernels.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <thread>
#if defined(__linux__)
#include <sched.h>
#endif

#include "../kernels/arena.h"
#include "allocator.h"
#include "float_mode.h"
#include "kernel.h"
#include "kernels/bf16.h"
#include "simd/table.h"

namespace sepconv::cpu {

namespace {

int availableThreads() {
#if defined(__linux__)
  cpu_set_t set;
  if (!sched_getaffinity(0, sizeof set, &set)) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Bytes of the last-level cache that this processor shares with its neighbours; 16 MiB where the system does not say.
// (sysconf counts all of a socket's caches on some machines.)
size_t lastLevelCache() {
  std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
  size_t size = 0;
  char unit = 0;
  if (!(file >> size >> unit)) return size_t{16} << 20;
  return unit == 'K' ? size << 10 : unit == 'M' ? size << 20 : size;
}

// Puts an executor's instruction set in force on the calling thread.
class SimdScope {
 public:
  explicit SimdScope(const SimdTable& table) : before_(&simd()) { selectSimd(&table); }
  ~SimdScope() { selectSimd(before_); }
  SimdScope(const SimdScope&) = delete;
  SimdScope& operator=(const SimdScope&) = delete;

 private:
  const SimdTable* const before_;
};

std::string nameOf(const CallDescription& call) {
  return call.scope.empty() ? "'" + call.kernel + "'" : "'" + call.kernel + "' of " + call.scope;
}

// Errors of a kernel name the call that they belong to.
template <class Body>
auto inCall(const CallDescription& call, const Body& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw Error(error.code, nameOf(call) + ": " + error.what());
  } catch (const std::bad_alloc&) {
    throw Error("ERR_MEMORY", nameOf(call) + ": out of memory");
  } catch (const std::exception& error) {
    throw Error("ERR_INTERNAL", nameOf(call) + ": " + error.what());
  }
}

std::unique_ptr<Kernel> makeKernel(const CallDescription& call) {
  return inCall(call, [&] {
    auto found = kernels().find(call.kernel);
    if (found == kernels().end()) throw Error("ERR_FORMAT", "the cpu executor has no such kernel");
    const auto isBf16 = [](const TensorType& type) { return type.dtype == DType::bfloat16; };
    const bool half = std::any_of(call.inputs.begin(), call.inputs.end(),
                                  [&](const auto& input) { return input && isBf16(*input); }) ||
                      std::any_of(call.outputs.begin(), call.outputs.end(), isBf16);
    return half ? bf16::makeKernel(call, kernels()) : found->second(call);
  });
}

// Returns the whole pages within a block to the system; they read as zeros from now on.
void giveBackPages(char* data, size_t bytes) {
#if defined(MADV_DONTNEED)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
#endif
}

class CpuExecutor final : public Executor {
 public:
  CpuExecutor(const SimdTable& table, int threads, bool oversubscribe)
      : table_(table),
        allocator_(std::make_shared<CachingAllocator>(std::min(physicalMemory() / 8, size_t{1} << 30))),
        oversubscribe_(oversubscribe),
        threads_(threads),
        pool_(poolOf(threads)) {}

  ExecutorInfo info() const override {
    ExecutorInfo info = executorInfo();
    info.properties["isa"] = std::string(table_.name);
    info.properties["panel"] = static_cast<double>(table_.gemm.panel);
    info.properties["threads"] = static_cast<double>(threads_);
    return info;
  }

  bool hostMemory() const override { return true; }
  std::shared_ptr<Allocation> allocate(size_t bytes) override { return allocator_->allocate(bytes); }
  void copyIn(Allocation& memory, size_t offset, const void* host, size_t bytes) override {
    std::copy_n(static_cast<const char*>(host), bytes, memory.data() + offset);
  }
  void copyOut(const Allocation& memory, size_t offset, void* host, size_t bytes) override {
    std::copy_n(memory.data() + offset, bytes, static_cast<char*>(host));
  }

  size_t workspaceBytes(const CallDescription& call) override {
    const SimdScope scope(table_);
    return makeKernel(call)->workspaceBytes();
  }

  std::unique_ptr<LoadedProgram> load(ProgramDescription description) override;

  MemoryReport memory() const override {
    MemoryReport report;
    report.allocated = allocator_->allocated();
    report.peak = allocator_->peak();
    report.arena = arena_.bytes();
    return report;
  }

  void setThreads(int threads) override {
    pool_ = poolOf(threads);
    threads_ = threads;
  }

  const SimdTable& table() const { return table_; }
  ThreadPool& pool() { return *pool_; }

  SharedArena<CachingAllocator>& arena() { return arena_; }

 private:
  // More threads than processors would wait for each other's turns: with four on two, Xception takes three times as
  // long. Results do not depend on their number, so what was asked for is reported and what can run is started.
  std::unique_ptr<ThreadPool> poolOf(int threads) const {
    return std::make_unique<ThreadPool>(oversubscribe_ ? threads : std::min(threads, availableThreads()));
  }

  const SimdTable& table_;
  const std::shared_ptr<CachingAllocator> allocator_;
  const bool oversubscribe_;
  int threads_;
  std::unique_ptr<ThreadPool> pool_;
  SharedArena<CachingAllocator> arena_{allocator_};
};

class CpuProgram final : public LoadedProgram {
 public:
  CpuProgram(CpuExecutor& executor, ProgramDescription description)
      : LoadedProgram(std::move(description)), executor_(executor) {
    checkProgram(description_);
    const SimdScope scope(executor.table());
    for (const ProgramCall& call : description_.calls) {
      kernels_.push_back(makeKernel(call));
      if (kernels_.back()->workspaceBytes() > call.workspaceBytes)
        throw Error("ERR_FORMAT", nameOf(call) + " needs " + std::to_string(kernels_.back()->workspaceBytes()) +
                                      " bytes of workspace, the program gives it " +
                                      std::to_string(call.workspaceBytes) +
                                      ": it was planned for another instruction set or version");
      for (int32_t buffer : call.inputBuffers) operands_.push_back(stored(buffer));
      for (int32_t buffer : call.outputBuffers) operands_.push_back(stored(buffer));
    }
    operandPointers_.resize(operands_.size());
    findLastReads();
    addresses_.resize(description_.buffers.size());
    for (size_t i = 0; i < description_.buffers.size(); ++i) {
      BufferDescription& buffer = description_.buffers[i];
      if (buffer.place != Place::constant || buffer.view >= 0) continue;
      constants_.push_back(executor.allocate(buffer.bytes));
      std::copy(buffer.data.begin(), buffer.data.end(), constants_.back()->data());
      addresses_[i] = constants_.back()->data();
      std::vector<uint8_t>().swap(buffer.data);
    }
    executor.arena().reserve(description_.arenaBytes);
  }

  ~CpuProgram() override { executor_.arena().giveBack(description_.arenaBytes); }

  bool execute(const Run& run) override {
    return runCalls(run, [](size_t) {});
  }

  std::vector<double> profile(const Run& run) override {
    using Clock = std::chrono::steady_clock;
    std::vector<double> nanoseconds(kernels_.size());
    Clock::time_point last;
    size_t previous = 0;
    const auto note = [&](size_t next) {
      const Clock::time_point now = Clock::now();
      if (next) nanoseconds[previous] = std::chrono::duration<double, std::nano>(now - last).count();
      previous = next;
      last = now;
    };
    runCalls(run, note);
    return nanoseconds;
  }

 private:
  // `before` is told of every call before it starts, and of the end.
  template <class Before>
  bool runCalls(const Run& run, const Before& before) {
    const std::shared_ptr<Allocation> arena = description_.arenaBytes ? executor_.arena().block() : nullptr;
    resolve(run, arena ? arena->data() : nullptr);
    const SimdScope scope(executor_.table());
    const FlushDenormals flush;
    size_t operand = 0;
    for (size_t i = 0; i < kernels_.size(); ++i) {
      const ProgramCall& call = description_.calls[i];
      if (i <= description_.updateStart && run.aborted.load(std::memory_order_relaxed)) return false;
      before(i);
      void** inputs = operandPointers_.data() + operand;
      void** outputs = inputs + call.inputBuffers.size();
      operand += call.inputBuffers.size() + call.outputBuffers.size();
      const Arguments arguments{inputs, call.inputBuffers.size(), outputs,
                                arena ? arena->data() + call.workspaceOffset : nullptr, executor_.pool()};
      inCall(call, [&] { kernels_[i]->run(arguments); });
      for (const int32_t state : lastReads_[i])
        if (const Binding& binding = (*run.states)[static_cast<size_t>(state)]; binding.consumed)
          giveBackPages(binding.address(), description_.buffers[static_cast<size_t>(state)].bytes);
    }
    before(kernels_.size());
    return true;
  }

  void findLastReads() {
    lastReads_.resize(kernels_.size());
    std::set<int32_t> seen;
    for (size_t i = kernels_.size(); i-- > 0;)
      for (const int32_t input : description_.calls[i].inputBuffers) {
        const int32_t buffer = stored(input);
        if (buffer >= 0 && description_.buffers[static_cast<size_t>(buffer)].place == Place::state &&
            seen.insert(buffer).second)
          lastReads_[i].push_back(buffer);
      }
  }

  // The buffer that holds the bytes of a buffer.
  int32_t stored(int32_t buffer) const {
    if (buffer < 0) return -1;
    const int32_t view = description_.buffers[static_cast<size_t>(buffer)].view;
    return view < 0 ? buffer : view;
  }

  void resolve(const Run& run, char* arena) {
    for (size_t i = 0; i < addresses_.size(); ++i) {
      const BufferDescription& buffer = description_.buffers[i];
      if (buffer.place == Place::arena)
        addresses_[i] = arena + buffer.offset;
      else if (buffer.view < 0 && (buffer.place == Place::state || buffer.place == Place::prepared))
        addresses_[i] = (*run.states)[i].address();
    }
    for (size_t i = 0; i < run.inputs.size(); ++i)
      addresses_[static_cast<size_t>(description_.inputs[i])] = run.inputs[i].address();
    for (size_t i = 0; i < run.outputs.size(); ++i)
      addresses_[static_cast<size_t>(description_.outputs[i])] = run.outputs[i].address();
    for (size_t i = 0; i < operands_.size(); ++i)
      operandPointers_[i] = operands_[i] < 0 ? nullptr : addresses_[static_cast<size_t>(operands_[i])];
  }

  CpuExecutor& executor_;
  std::vector<std::unique_ptr<Kernel>> kernels_;
  std::vector<int32_t> operands_;  // of all calls in order: inputs, then outputs, as buffer indices
  std::vector<void*> operandPointers_;
  std::vector<char*> addresses_;                 // by buffer
  std::vector<std::vector<int32_t>> lastReads_;  // by call: the states that no later call reads
  std::vector<std::shared_ptr<Allocation>> constants_;
};

std::unique_ptr<LoadedProgram> CpuExecutor::load(ProgramDescription description) {
  return std::make_unique<CpuProgram>(*this, std::move(description));
}

}  // namespace

ExecutorInfo executorInfo() {
  ExecutorInfo info;
  info.name = "cpu";
  info.available = true;
  int count = 0;
  const char* const* names = availableSimd(&count);
  info.properties["isa"] = std::string(simd().name);
  info.properties["isas"] = std::vector<std::string>(names, names + count);
  info.properties["threads"] = static_cast<double>(availableThreads());
  info.properties["panel"] = static_cast<double>(simd().gemm.panel);
  info.properties["cacheBytes"] = static_cast<double>(lastLevelCache());
  info.properties["dtypes"] = std::vector<std::string>{"float32", "bfloat16"};
  return info;
}

std::unique_ptr<Executor> openExecutor(const ExecutorOptions& options) {
  const SimdTable* table = options.isa.empty() ? &simd() : findSimd(options.isa.c_str());
  if (!table) {
    int count = 0;
    const char* const* names = availableSimd(&count);
    std::string known;
    for (int i = 0; i < count; ++i) known += (i ? ", " : "") + std::string(names[i]);
    throw Error("ERR_DEVICE", "isa '" + options.isa + "' is not available on this processor: there is " + known);
  }
  return std::make_unique<CpuExecutor>(*table, options.threads > 0 ? options.threads : availableThreads(),
                                       options.oversubscribe);
}

}  // namespace sepconv::cpu
