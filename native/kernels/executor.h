// The interface behind which every native device stands: memory, programs and runs of them. Implemented by native/cpu
// and native/cuda; native/addon puts a queue and JavaScript on top. Nothing here knows of Node.
//
// Threads: allocate, load, bind, prepare and memory() may be called while a run is under way on another thread;
// execute, profile, copyIn and copyOut are called by one thread at a time (the device queue, or the JavaScript thread
// once the queue is idle); where hostMemory() is false, copyIn into memory that no run sees may come from another one.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "kernel.h"

namespace sepconv {

using Property = std::variant<double, std::string, std::vector<std::string>>;

// A device, or the reason why there is none.
struct ExecutorInfo {
  std::string name;  // cpu, cuda:0, cuda:1, ...; plain cuda where none is available
  bool available = false;
  std::string code;    // where unavailable: no-driver, no-device, driver-too-old, no-kernel-image, not-built
  std::string reason;  // the same for people, with what to do
  // cpu: isa, isas, threads, panel, dtypes. cuda: driverVersion, runtimeVersion; of an available one also panel, dtypes
  // and what describes the device.
  std::map<std::string, Property> properties;
};

struct ExecutorOptions {
  int threads = 0;             // 0: as many as the process may use
  bool oversubscribe = false;  // starts as many threads as asked for, however few processors there are
  std::string isa;             // empty: the best one
};

// A block of device memory, 64-byte aligned. The last owner gives it back, on whatever thread that happens.
class Allocation {
 public:
  Allocation(void* data, size_t bytes) : data_(static_cast<char*>(data)), bytes_(bytes) {}
  virtual ~Allocation() = default;
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;
  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  char* const data_;
  const size_t bytes_;
};

// The memory behind one buffer of a program.
struct Binding {
  std::shared_ptr<Allocation> memory;
  size_t offset = 0;
  // Of a state that the program's runs read for the last time: its pages may go back to the system after the last call
  // that reads them, and what it holds is then undefined. Executors without host memory pay no attention.
  bool consumed = false;
  char* address() const { return memory->data() + offset; }
};

enum class Place : uint8_t { arena, input, output, state, prepared, constant };

struct BufferDescription {
  Place place = Place::arena;
  TensorType type;
  size_t bytes = 0;
  size_t offset = 0;          // arena: from the start of the arena
  std::string name;           // input, output, state, prepared
  std::vector<uint8_t> data;  // constant
  int32_t view =
      -1;  // of a view: the buffer whose memory this is in another shape; neither bound nor handed over itself
};

struct ProgramCall : CallDescription {
  std::vector<int32_t> inputBuffers;  // -1 for an absent optional input
  std::vector<int32_t> outputBuffers;
  size_t workspaceOffset = 0, workspaceBytes = 0;
};

// src/runtime/program.ts in C++.
struct ProgramDescription {
  std::vector<BufferDescription> buffers;
  std::vector<ProgramCall> calls;
  std::vector<int32_t> inputs, outputs;
  size_t arenaBytes = 0;
  size_t updateStart = 0;
};

// Throws ERR_FORMAT unless every index, size and offset of the program stays inside what it refers to, so that a
// damaged program file cannot reach foreign memory.
void checkProgram(const ProgramDescription& program);

// The arguments of one run: what it was given, and the state as it was bound when the run was asked for. Keeps all of
// it alive.
struct Run {
  std::vector<Binding> inputs, outputs;  // in the order of ProgramDescription::inputs, outputs
  std::shared_ptr<const std::vector<Binding>>
      states;                        // by buffer index; empty for places other than state and prepared
  std::atomic<bool> aborted{false};  // obeyed before the first call that writes state
};

class LoadedProgram {
 public:
  explicit LoadedProgram(ProgramDescription description);
  virtual ~LoadedProgram() = default;

  const ProgramDescription& description() const { return description_; }
  // Binds a state or prepared buffer (no view) for runs prepared from now on; throws ERR_ARGUMENT where it does not
  // fit.
  void bind(size_t buffer, Binding binding);
  // Checks the arguments of a run against the program; throws ERR_ARGUMENT.
  std::shared_ptr<Run> prepare(std::vector<Binding> inputs, std::vector<Binding> outputs) const;

  // Returns when the run is complete; false when it obeyed `run.aborted` instead.
  virtual bool execute(const Run& run) = 0;
  // One more run; nanoseconds per call.
  virtual std::vector<double> profile(const Run& run) = 0;
  // One more run as execute() does it; nanoseconds of the device's clock from its first to its last call.
  virtual double elapsed(const Run& run);

 protected:
  ProgramDescription description_;

 private:
  // Copied before a change while a run holds it.
  std::shared_ptr<std::vector<Binding>> states_;
  std::vector<int32_t> stateBuffers_;
};

struct MemoryReport {
  size_t allocated = 0;  // bytes asked for and not given back, the arena included
  size_t peak = 0;       // the highest value of `allocated` so far
  size_t arena = 0;      // the scratch that all loaded programs share
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual ExecutorInfo info() const = 0;
  // Whether the host can read and write memory through Allocation::data().
  virtual bool hostMemory() const = 0;
  // Uninitialised memory; throws ERR_MEMORY with what was asked for and what is free.
  virtual std::shared_ptr<Allocation> allocate(size_t bytes) = 0;
  virtual void copyIn(Allocation& memory, size_t offset, const void* host, size_t bytes) = 0;
  virtual void copyOut(const Allocation& memory, size_t offset, void* host, size_t bytes) = 0;
  // Scratch that a call needs in the arena.
  virtual size_t workspaceBytes(const CallDescription& call) = 0;
  // Values of the attribute `tile` among which a tuner may choose for this call; fewer than two: there is no choice.
  virtual std::vector<std::string> tiles(const CallDescription&) { return {}; }
  virtual std::unique_ptr<LoadedProgram> load(ProgramDescription program) = 0;
  virtual MemoryReport memory() const = 0;
  // Of devices whose sums over the ranks of a job take a library of their own (NCCL): what one rank makes and all
  // others join with. joinRanks waits for all of them. Throw ERR_DEVICE where there is none, ERR_RANK where a rank has
  // left.
  virtual std::vector<uint8_t> ranksId() { return {}; }
  virtual void joinRanks(const std::vector<uint8_t>&, int, int) {}
  // Number of host threads; no effect on devices that have none. Called while no run is under way.
  virtual void setThreads(int threads) = 0;
};

namespace cpu {
ExecutorInfo executorInfo();
std::unique_ptr<Executor> openExecutor(const ExecutorOptions& options);  // throws ERR_DEVICE for an unknown isa
}  // namespace cpu

// Every CUDA device, or one entry that says why there is none. Makes no CUDA call before it is asked.
std::vector<ExecutorInfo> cudaExecutors();
std::unique_ptr<Executor> openCuda(int index);  // throws ERR_DEVICE

// NVIDIA's libraries: 'nccl' between ranks, and beside the CUDA kernels in benchmarks 'cublasLt' and 'cudnn'.
struct LibraryVersion {
  std::string name, version;  // empty version: not found
  std::string reason;         // why not
};
std::vector<LibraryVersion> cudaLibraries();

// What a GPU of that compute capability and size would be given for a call, and what else would serve it; no device is
// asked. Throws ERR_DEVICE in a build without CUDA kernels, and what loading a program with the call would.
struct KernelChoice {
  std::string description;         // variant, tile and splits; empty where there is no choice
  std::vector<std::string> tiles;  // values of the attribute `tile`
  size_t workspaceBytes;           // that its launches hand to each other
};
KernelChoice describeCudaKernel(const CallDescription& call, int multiprocessors, int major);

}  // namespace sepconv
