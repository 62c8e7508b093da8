// The classes that JavaScript gets: NativeExecutor, NativeMemory, NativeProgram, NativeCommunicator. Their constructors
// and the type tags that keep foreign objects out belong to the environment, so worker threads may load the addon too.
#pragma once
#include <napi.h>

#include <memory>
#include <unordered_map>

#include "../distributed/communicator.h"
#include "device.h"

namespace sepconv::addon {

// Per environment.
struct Classes {
  Napi::FunctionReference executor, memory, program, communicator;
};

class MemoryWrapper : public Napi::ObjectWrap<MemoryWrapper> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Value create(Napi::Env env, std::shared_ptr<Device> device, std::shared_ptr<Allocation> allocation);
  // The wrapper behind a value; throws ERR_ARGUMENT for anything else, memory of another executor, and ERR_DISPOSED.
  static MemoryWrapper& of(const Napi::Value& value, const Device& device);

  explicit MemoryWrapper(const Napi::CallbackInfo& info);
  void Finalize(Napi::BasicEnv env) override;
  const std::shared_ptr<Allocation>& allocation() const { return allocation_; }
  // A zero-copy view, detached by dispose().
  Napi::Value buffer(Napi::Env env);

 private:
  // What a view keeps alive; emptied by dispose() although the view's own finalizer runs later.
  using Holder = std::shared_ptr<Allocation>;
  Napi::Value bytes(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);

  std::shared_ptr<Device> device_;
  std::shared_ptr<Allocation> allocation_;
  int64_t reported_ = 0;  // bytes that V8 was told of
  std::shared_ptr<Holder> holder_;
  Napi::Reference<Napi::ArrayBuffer> view_;
};

class ProgramWrapper : public Napi::ObjectWrap<ProgramWrapper> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Value create(Napi::Env env, std::shared_ptr<Device> device, std::shared_ptr<LoadedProgram> program);
  explicit ProgramWrapper(const Napi::CallbackInfo& info);

 private:
  void bind(const Napi::CallbackInfo& info);
  Napi::Value run(const Napi::CallbackInfo& info);
  void runSync(const Napi::CallbackInfo& info);
  Napi::Value profile(const Napi::CallbackInfo& info);
  Napi::Value elapsed(const Napi::CallbackInfo& info);
  void abort(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);

  LoadedProgram& program() const;
  std::shared_ptr<Run> prepare(const Napi::CallbackInfo& info) const;

  // In this order: the program goes before the device whose executor it refers to.
  std::shared_ptr<Device> device_;
  std::shared_ptr<LoadedProgram> program_;
  std::unordered_map<uint32_t, std::weak_ptr<Run>> tickets_;  // of runs that can be aborted
};

class ExecutorWrapper : public Napi::ObjectWrap<ExecutorWrapper> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Value create(Napi::Env env, std::unique_ptr<Executor> executor);
  explicit ExecutorWrapper(const Napi::CallbackInfo& info);

 private:
  Napi::Value info(const Napi::CallbackInfo& info);
  Napi::Value allocate(const Napi::CallbackInfo& info);
  Napi::Value buffer(const Napi::CallbackInfo& info);
  void write(const Napi::CallbackInfo& info);
  void read(const Napi::CallbackInfo& info);
  Napi::Value readAsync(const Napi::CallbackInfo& info);
  Napi::Value workspaceBytes(const Napi::CallbackInfo& info);
  Napi::Value tiles(const Napi::CallbackInfo& info);
  Napi::Value ranksId(const Napi::CallbackInfo& info);
  Napi::Value joinRanks(const Napi::CallbackInfo& info);
  Napi::Value load(const Napi::CallbackInfo& info);
  Napi::Value memory(const Napi::CallbackInfo& info);
  void setThreads(const Napi::CallbackInfo& info);

  std::shared_ptr<Device> device_;
};

// The ranks of an MPI job (communicator.cc).
class CommunicatorWrapper : public Napi::ObjectWrap<CommunicatorWrapper> {
 public:
  static Napi::Function define(Napi::Env env);
  // Starts MPI, once per process.
  static Napi::Value open(const Napi::CallbackInfo& info);
  explicit CommunicatorWrapper(const Napi::CallbackInfo& info);
  ~CommunicatorWrapper() override;

 private:
  struct Settled;
  Napi::Value allGather(const Napi::CallbackInfo& info);
  Napi::Value gather(const Napi::CallbackInfo& info);
  Napi::Value broadcast(const Napi::CallbackInfo& info);
  Napi::Value send(const Napi::CallbackInfo& info);
  void receive(const Napi::CallbackInfo& info);
  void fail(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);
  Napi::Value statistics(const Napi::CallbackInfo& info);

  distributed::Communicator& communicator() const;
  template <class Start>
  Napi::Value post(const Napi::CallbackInfo& info, const Start& start);
  void stop();
  static void cleanUp(void* wrapper);

  const Napi::Env env_;
  std::unique_ptr<distributed::Communicator> communicator_;
  Napi::ThreadSafeFunction completion_;
  Napi::FunctionReference receiver_;
  size_t promises_ = 0;  // open; while there are any, the process stays alive
  bool listening_ = false;
  bool stopped_ = false;
};

Napi::Value mapFile(const Napi::CallbackInfo& info);         // map.cc
Napi::Value describeKernel(const Napi::CallbackInfo& info);  // describe.cc

}  // namespace sepconv::addon
