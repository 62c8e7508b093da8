// All that the CUDA executor asks of a device: memory, copies, launches, and recorded sequences of launches.
// driver_cuda.cu implements it by the CUDA runtime, native/emulator/driver_emulated.cc on the host, so that the same
// executor and the same launch code run in tests without a GPU. Launches are ordered as on one stream: each sees the
// effects of all earlier ones.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../kernels/kernel.h"

namespace sepconv::cuda {

struct Extent {
  uint32_t x = 1, y = 1, z = 1;
};

// What kernels for compute capability 9.0 ask of a launch.
struct LaunchOptions {
  uint32_t cluster = 1;       // blocks per cluster, in x
  bool programmatic = false;  // set by arch::launch: may start while the launch before it ends (beginLaunch)
  bool asynchronous = false;  // uses TMA or wgmma: tells the emulator to model the asynchronous proxy
};

// A matrix in device memory for TMA: rows of `columns` elements, read and written in boxes, of which a row is 128 bytes
// in shared memory (128-byte swizzle).
struct TensorMapRequest {
  void* data;  // 16-byte aligned
  DType dtype;
  bool roundsToTf32;  // float32 becomes tf32 on the way into shared memory
  uint64_t rows, columns, rowBytes;
  uint32_t boxRows, boxColumns;
};
constexpr size_t tensorMapBytes = 128;

// One kernel launch. Kernels take a single parameter struct by value, so that a launch is plain data that can be kept.
struct Launch {
  const char* name;                                               // for messages
  const void* function;                                           // the __global__ function
  void (*emulate)(const void* function, const void* parameters);  // runs one thread of it; null in CUDA builds
  Extent grid, block;
  size_t sharedBytes;
  const void* parameters;
  size_t parameterBytes;
  LaunchOptions options;
};

// What the choice of tiles may depend on.
struct DeviceProperties {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 1;
  size_t sharedBytes = 48 << 10;  // dynamic shared memory that one block may have
  bool programmatic = false;      // the kernels' code waits for earlier launches by itself (sm_90 and up)
  void* stream = nullptr;         // cudaStream_t of the launches, for libraries that launch by themselves
};

// The first error that a device has reported. From then on it is refused: what it would compute could be garbage, and
// an error of one launch shows up in the next call that looks. Any thread.
class Failure {
 public:
  [[noreturn]] void report(const std::string& device, const std::string& what) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (what_.empty()) what_ = what;
    failed_ = true;
    throw Error("ERR_DEVICE", device + ": " + what);
  }
  void refuse(const std::string& device) {
    if (!failed_) return;
    std::lock_guard<std::mutex> lock(mutex_);
    throw Error("ERR_DEVICE", device + " is not used any more after an earlier error: " + what_ +
                                  "; start the process again, checkpoints are not affected");
  }

 private:
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::string what_;
};

// A sequence of launches that can be run again and again at little cost (a CUDA graph). It keeps the parameters, so the
// memory that they point to must stay in place.
class Recording {
 public:
  virtual ~Recording() = default;
};

// Every method throws sepconv::Error: ERR_MEMORY with what was asked for and what is free, ERR_DEVICE with the call
// that failed. After an ERR_DEVICE that the hardware reported, all further calls throw it again: results could be
// garbage.
class DeviceInterface {
 public:
  struct Memory {
    size_t free, total;
  };

  virtual ~DeviceInterface() = default;
  virtual const DeviceProperties& properties() const = 0;
  // Libraries that the calling thread uses from now on work on this device.
  virtual void makeCurrent() = 0;
  virtual Memory memory() = 0;
  // At least 256-byte aligned, uninitialised.
  virtual void* allocate(size_t bytes) = 0;
  // No work in flight may use the block; never throws.
  virtual void release(void* pointer) = 0;
  // Returns when the bytes are there. May be called while another thread launches.
  virtual void copyIn(void* device, const void* host, size_t bytes) = 0;
  // Returns when the bytes are there.
  virtual void copyOut(void* host, const void* device, size_t bytes) = 0;
  // Returns at once; the parameters are copied.
  virtual void launch(const Launch& launch) = 0;
  virtual void synchronize() = 0;
  // Work beside the launches that follow, behind those so far: `body` enqueues it on the stream (cudaStream_t) that it
  // is given. Recorded as launches are.
  virtual void launchBeside(const std::function<void(void* stream)>& body) = 0;
  // Launches from here on are behind all such work.
  virtual void join() = 0;
  // Called again and again while the host waits in synchronize(); what it throws ends the wait.
  virtual void watch(std::function<void()> look) = 0;
  // Collects the launches that `body` makes instead of running them.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& body) = 0;
  virtual void replay(Recording& recording) = 0;
  // Device nanoseconds that the launches of `body` take; waits for them.
  virtual double time(const std::function<void()>& body) = 0;
  // Writes tensorMapBytes to `map` (64-byte aligned): the form in which this device's TMA wants the request.
  virtual void encodeTensorMap(void* map, const TensorMapRequest& request) = 0;
};

}  // namespace sepconv::cuda
