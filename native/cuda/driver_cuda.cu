// The CUDA runtime behind DeviceInterface, and the discovery of devices. The runtime is linked statically and loads
// libcuda by itself, so the addon loads on machines without a driver. One stream for kernels; copies have one of their
// own and pass through pinned memory, so that an upload neither waits for a run nor falls into the recording of one.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <mutex>
#include <set>

#include "discovery.h"
#include "executor.h"
#include "vendor/nccl.h"

namespace sepconv {
namespace cuda {
namespace {

// Exists to ask whether the build holds code for a device.
__global__ void probe() {}

static_assert(cudaErrorInsufficientDriver == errorInsufficientDriver && cudaErrorNoDevice == errorNoDevice &&
                  cudaErrorNoKernelImageForDevice == errorNoKernelImage &&
                  cudaErrorInvalidDeviceFunction == errorInvalidFunction,
              "discovery.h");

std::string describe(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + " (" + cudaGetErrorString(error) + ")";
}

class CudaRecording final : public Recording {
 public:
  explicit CudaRecording(cudaGraphExec_t graph) : graph(graph) {}
  ~CudaRecording() override { cudaGraphExecDestroy(graph); }
  const cudaGraphExec_t graph;
};

class CudaDevice final : public DeviceInterface {
 public:
  explicit CudaDevice(int index) : index_(index) {
    cudaDeviceProp found;
    check(cudaSetDevice(index), "cudaSetDevice");
    check(cudaGetDeviceProperties(&found, index), "cudaGetDeviceProperties");
    properties_.name = "cuda:" + std::to_string(index) + " (" + found.name + ")";
    properties_.major = found.major;
    properties_.minor = found.minor;
    properties_.multiprocessors = found.multiProcessorCount;
    properties_.sharedBytes = found.sharedMemPerBlockOptin;
    // PTX for sm_80 that the driver has compiled for a newer device holds no wait.
    cudaFuncAttributes code;
    check(cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(probe)), "cudaFuncGetAttributes");
    properties_.programmatic = code.ptxVersion >= 90;
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    properties_.stream = stream_;
    check(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaEventCreate(&start_), "cudaEventCreate");
    check(cudaEventCreate(&stop_), "cudaEventCreate");
  }
  ~CudaDevice() override {
    cudaSetDevice(index_);
    for (Staging& staging : staging_) {
      if (staging.done) cudaEventDestroy(staging.done);
      if (staging.data) cudaFreeHost(staging.data);
    }
    if (beside_) cudaStreamDestroy(beside_);
    if (forked_) cudaEventDestroy(forked_);
    if (joined_) cudaEventDestroy(joined_);
    if (stop_) cudaEventDestroy(stop_);
    if (start_) cudaEventDestroy(start_);
    if (copies_) cudaStreamDestroy(copies_);
    if (stream_) cudaStreamDestroy(stream_);
  }

  const DeviceProperties& properties() const override { return properties_; }
  void makeCurrent() override { enter(); }

  Memory memory() override {
    enter();
    Memory memory{};
    check(cudaMemGetInfo(&memory.free, &memory.total), "cudaMemGetInfo");
    return memory;
  }

  void* allocate(size_t bytes) override {
    enter();
    void* pointer = nullptr;
    const cudaError_t error = cudaMalloc(&pointer, bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // not sticky: the device stays usable
      throw Error("ERR_MEMORY", properties_.name + ": out of memory: needed " + std::to_string(bytes) + " bytes");
    }
    check(error, "cudaMalloc");
    return pointer;
  }

  void release(void* pointer) override {
    cudaSetDevice(index_);
    cudaFree(pointer);
  }

  void copyIn(void* device, const void* host, size_t bytes) override {
    using Host = std::function<void(void*, size_t, size_t)>;
    staged(
        bytes, "copy to the device",
        [&](void* pinned, size_t offset, size_t count) {
          return cudaMemcpyAsync(static_cast<char*>(device) + offset, pinned, count, cudaMemcpyHostToDevice, copies_);
        },
        Host([&](void* pinned, size_t offset, size_t count) {
          std::memcpy(pinned, static_cast<const char*>(host) + offset, count);
        }),
        Host([](void*, size_t, size_t) {}));
  }
  void copyOut(void* host, const void* device, size_t bytes) override {
    using Host = std::function<void(void*, size_t, size_t)>;
    staged(
        bytes, "copy from the device",
        [&](void* pinned, size_t offset, size_t count) {
          return cudaMemcpyAsync(pinned, static_cast<const char*>(device) + offset, count, cudaMemcpyDeviceToHost,
                                 copies_);
        },
        Host([](void*, size_t, size_t) {}), Host([&](void* pinned, size_t offset, size_t count) {
          std::memcpy(static_cast<char*>(host) + offset, pinned, count);
        }));
  }

  void launch(const Launch& launch) override {
    enter();
    if (launch.sharedBytes > 48 << 10 && optedIn_.insert(launch.function).second)
      check(cudaFuncSetAttribute(launch.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(properties_.sharedBytes)),
            launch.name);
    void* arguments[] = {const_cast<void*>(launch.parameters)};
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(launch.grid.x, launch.grid.y, launch.grid.z);
    config.blockDim = dim3(launch.block.x, launch.block.y, launch.block.z);
    config.dynamicSmemBytes = launch.sharedBytes;
    config.stream = stream_;
    config.attrs = attributes;
    if (launch.options.cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs++].val.clusterDim = {launch.options.cluster, 1, 1};
    }
    // Not behind a join: only a launch is known to say when the one after it may start.
    const bool programmatic = launch.options.programmatic && !behindJoin_;
    behindJoin_ = false;
    if (programmatic) {
      attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    check(cudaLaunchKernelExC(&config, launch.function, arguments), launch.name);
  }

  void encodeTensorMap(void* map, const TensorMapRequest& request) override {
    enter();
    const CUtensorMapDataType type = request.dtype == DType::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                     : request.roundsToTf32           ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
                                                                      : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    const cuuint64_t sizes[] = {request.columns, request.rows}, strides[] = {request.rowBytes};
    const cuuint32_t box[] = {request.boxColumns, request.boxRows}, steps[] = {1, 1};
    static_assert(sizeof(CUtensorMap) == tensorMapBytes, "driver.h");
    const CUresult result = tensorMapEncoder()(static_cast<CUtensorMap*>(map), type, 2, request.data, sizes, strides,
                                               box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
      throw Error("ERR_DEVICE", properties_.name + ": cuTensorMapEncodeTiled refuses " + std::to_string(request.rows) +
                                    " x " + std::to_string(request.columns) + " with error " +
                                    std::to_string(static_cast<int>(result)));
  }

  void launchBeside(const std::function<void(void*)>& body) override {
    enter();
    if (!beside_) {
      check(cudaStreamCreateWithFlags(&beside_, cudaStreamNonBlocking), "cudaStreamCreate");
      check(cudaEventCreateWithFlags(&forked_, cudaEventDisableTiming), "cudaEventCreate");
      check(cudaEventCreateWithFlags(&joined_, cudaEventDisableTiming), "cudaEventCreate");
    }
    check(cudaEventRecord(forked_, stream_), "cudaEventRecord");
    check(cudaStreamWaitEvent(beside_, forked_, 0), "cudaStreamWaitEvent");
    body(beside_);
    check(cudaEventRecord(joined_, beside_), "cudaEventRecord");
    open_ = true;
  }

  void join() override {
    enter();
    if (!open_) return;
    open_ = false;
    behindJoin_ = true;
    check(cudaStreamWaitEvent(stream_, joined_, 0), "cudaStreamWaitEvent");
  }

  void watch(std::function<void()> look) override { look_ = std::move(look); }

  void synchronize() override {
    enter();
    if (!look_) {
      check(cudaStreamSynchronize(stream_), "run");
      return;
    }
    // A sum over ranks of which one has left never ends.
    auto looked = std::chrono::steady_clock::now();
    for (cudaError_t state; (state = cudaStreamQuery(stream_)) != cudaSuccess;) {
      if (state != cudaErrorNotReady) check(state, "run");
      const auto now = std::chrono::steady_clock::now();
      if (now - looked < lookEvery) continue;
      looked = now;
      look_();
    }
  }

  std::unique_ptr<Recording> record(const std::function<void()>& body) override {
    enter();
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      body();
      join();  // a recording is complete only where all its streams have come together
    } catch (...) {
      open_ = false;
      cudaStreamEndCapture(stream_, &graph);
      if (graph) cudaGraphDestroy(graph);
      cudaGetLastError();  // of the capture
      throw;
    }
    check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "cudaGraphInstantiate");
    return std::make_unique<CudaRecording>(executable);
  }

  void replay(Recording& recording) override {
    enter();
    check(cudaGraphLaunch(static_cast<CudaRecording&>(recording).graph, stream_), "cudaGraphLaunch");
  }

  double time(const std::function<void()>& body) override {
    enter();
    check(cudaEventRecord(start_, stream_), "cudaEventRecord");
    body();
    check(cudaEventRecord(stop_, stream_), "cudaEventRecord");
    check(cudaEventSynchronize(stop_), "run");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start_, stop_), "cudaEventElapsedTime");
    return static_cast<double>(milliseconds) * 1e6;
  }

 private:
  // Through two pinned buffers by turns: the host fills or empties one while the copy engine works on the other, at
  // twice the rate of pageable memory, and beside whatever the kernels' stream is doing.
  template <class Transfer, class Host>
  void staged(size_t bytes, const char* what, const Transfer& transfer, const Host& before, const Host& after) {
    enter();
    std::lock_guard<std::mutex> lock(stagingMutex_);
    for (Staging& staging : staging_) {
      if (staging.data) continue;
      if (cudaMallocHost(&staging.data, stagingBytes) != cudaSuccess) {
        cudaGetLastError();  // not sticky: the device stays usable
        staging.data = nullptr;
        throw Error("ERR_MEMORY", properties_.name + ": the host has no " + std::to_string(stagingBytes) +
                                      " bytes of pinned memory for copies");
      }
      check(cudaEventCreateWithFlags(&staging.done, cudaEventDisableTiming), "cudaEventCreate");
    }
    const size_t pieces = (bytes + stagingBytes - 1) / stagingBytes;
    const auto sizeOf = [&](size_t piece) { return std::min(stagingBytes, bytes - piece * stagingBytes); };
    const auto finish = [&](size_t piece) {
      Staging& staging = staging_[piece % 2];
      check(cudaEventSynchronize(staging.done), what);
      after(staging.data, piece * stagingBytes, sizeOf(piece));
    };
    for (size_t piece = 0; piece < pieces; ++piece) {
      Staging& staging = staging_[piece % 2];
      if (piece >= 2) finish(piece - 2);
      before(staging.data, piece * stagingBytes, sizeOf(piece));
      check(transfer(staging.data, piece * stagingBytes, sizeOf(piece)), what);
      check(cudaEventRecord(staging.done, copies_), what);
    }
    for (size_t piece = pieces > 2 ? pieces - 2 : 0; piece < pieces; ++piece) finish(piece);
  }

  // Out of the driver that the runtime has loaded: the addon does not link libcuda.
  decltype(&cuTensorMapEncodeTiled) tensorMapEncoder() {
    if (!encoder_) {
      void* function = nullptr;
      cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
      check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
            "cudaGetDriverEntryPointByVersion");
      if (found != cudaDriverEntryPointSuccess)
        throw Error("ERR_DEVICE", properties_.name + ": the driver has no cuTensorMapEncodeTiled; update it");
      encoder_ = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    }
    return encoder_;
  }

  // The current device is per thread.
  void enter() {
    failure_.refuse(properties_.name);
    check(cudaSetDevice(index_), "cudaSetDevice");
  }

  void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess)
      failure_.report(properties_.name.empty() ? "cuda:" + std::to_string(index_) : properties_.name,
                      std::string(what) + ": " + describe(error));
  }

  static constexpr auto lookEvery = std::chrono::milliseconds(1);
  static constexpr size_t stagingBytes = size_t{4} << 20;
  struct Staging {
    void* data = nullptr;
    cudaEvent_t done = nullptr;
  };

  const int index_;
  DeviceProperties properties_;
  Staging staging_[2];
  std::mutex stagingMutex_;
  cudaStream_t stream_ = nullptr, copies_ = nullptr;
  cudaStream_t beside_ = nullptr;  // made when it is first needed
  cudaEvent_t start_ = nullptr, stop_ = nullptr, forked_ = nullptr, joined_ = nullptr;
  bool open_ = false, behindJoin_ = false;
  std::function<void()> look_;
  std::set<const void*>
      optedIn_;  // kernels that may have more than 48 KiB of shared memory; used by the thread that runs
  decltype(&cuTensorMapEncodeTiled) encoder_ = nullptr;
  Failure failure_;
};

ExecutorInfo describeDevice(int index) {
  ExecutorInfo info;
  info.name = "cuda:" + std::to_string(index);
  cudaDeviceProp found;
  cudaError_t error = cudaGetDeviceProperties(&found, index);
  if (error != cudaSuccess) {
    info.code = "no-device";
    info.reason = "the device cannot be asked: " + describe(error);
    return info;
  }
  const std::string capability = std::to_string(found.major) + "." + std::to_string(found.minor);
  info.properties["device"] = std::string(found.name);
  info.properties["computeCapability"] = capability;
  info.properties["multiprocessors"] = static_cast<double>(found.multiProcessorCount);
  info.properties["l2Bytes"] = static_cast<double>(found.l2CacheSize);
  info.properties["memoryBytes"] = static_cast<double>(found.totalGlobalMem);
  info.properties["panel"] = 0.0;
  info.properties["kernels"] = kernelNames();
  std::string uuid;
  for (const char byte : found.uuid.bytes) {
    const char* digits = "0123456789abcdef";
    uuid += {digits[static_cast<unsigned char>(byte) >> 4], digits[byte & 15]};
  }
  info.properties["uuid"] = uuid;
  info.properties["dtypes"] = std::vector<std::string>{"float32", "bfloat16"};
  cudaFuncAttributes attributes;
  error = cudaSetDevice(index);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe));
  explainDevice(info, error, describe(error), found.name, capability);
  cudaGetLastError();
  return info;
}

}  // namespace
}  // namespace cuda

std::vector<ExecutorInfo> cudaExecutors() {
  using namespace cuda;
  int count = 0, driver = 0, runtime = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  if (error != cudaSuccess || count == 0) return {explainNoDevice(error, describe(error), driver, runtime)};
  std::string nccl;
  try {
    nccl = ncclVersion();
  } catch (const Error&) {
    nccl = "not found";
  }
  std::vector<ExecutorInfo> all;
  for (int i = 0; i < count; ++i) {
    all.push_back(describeDevice(i));
    all.back().properties["driverVersion"] = static_cast<double>(driver);
    all.back().properties["runtimeVersion"] = static_cast<double>(runtime);
    all.back().properties["nccl"] = nccl;
  }
  return all;
}

std::unique_ptr<Executor> openCuda(int index) {
  using namespace cuda;
  std::vector<ExecutorInfo> all = cudaExecutors();
  const std::string name = "cuda:" + std::to_string(index);
  for (ExecutorInfo& info : all) {
    if (info.name == "cuda") throw Error("ERR_DEVICE", "'" + name + "' is not available: " + info.reason);
    if (info.name != name) continue;
    if (!info.available) throw Error("ERR_DEVICE", "'" + name + "' is not available: " + info.reason);
    return makeExecutor(std::make_unique<CudaDevice>(index), std::move(info), kernels());
  }
  throw Error("ERR_DEVICE",
              "there is no '" + name + "': this machine has " + std::to_string(all.size()) + " CUDA devices");
}

}  // namespace sepconv
