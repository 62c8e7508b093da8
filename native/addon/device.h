// One executor as JavaScript sees it: a queue that a thread of its own works off in order, and the way back to the
// event loop. Uploads into memory that no queued run sees have a thread of their own, so that the next run's inputs are
// copied while the current one runs; what is queued after an upload waits for it. One per openExecutor(); everything
// except the threads' own part belongs to the JavaScript thread that opened it.
#pragma once
#include <napi.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "../kernels/executor.h"

namespace sepconv::addon {

// One entry of the queue. Tasks with a promise keep the process alive until it is settled.
struct Task {
  std::function<bool()> work;                       // on the queue thread; what it captured is released there
  std::optional<Napi::Promise::Deferred> deferred;  // settled on the JavaScript thread with the result of work
  Napi::ObjectReference target;                     // the array that is written into
  bool result = false;
  std::optional<Error> error;
  size_t after = 0;  // uploads that must be complete
};

class Device : public std::enable_shared_from_this<Device> {
 public:
  static std::shared_ptr<Device> open(Napi::Env env, std::unique_ptr<Executor> executor);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  Executor& executor() { return *executor_; }
  // Whether nothing is queued or running.
  bool idle() const;
  // Waits until that is so, and throws what a write without a promise of its own has failed with since the last look.
  void drain();
  Napi::Promise post(std::function<bool()> work, const Napi::Value& target);
  // Without a promise: its error is thrown by the next task or drain().
  void post(std::function<bool()> work);
  // The same beside the queue: into memory that nothing queued or running sees, on an executor without host memory.
  void upload(std::function<bool()> work);
  // On the queue thread: the run that is about to start, so that it can be stopped at its next call when the
  // environment ends.
  void track(const std::shared_ptr<Run>& run);

 private:
  Device(Napi::Env env, std::unique_ptr<Executor> executor) : env_(env), executor_(std::move(executor)) {}
  static void settle(Napi::Env env, Napi::Function, Device* device, Task* task);
  using Completion = Napi::TypedThreadSafeFunction<Device, Task, settle>;

  void push(std::unique_ptr<Task> task);
  void serve();
  void serveUploads();
  void finish(Task& task);
  void shutdown();
  static void cleanUp(void* device);

  const Napi::Env env_;
  const std::unique_ptr<Executor> executor_;
  Completion completion_;
  std::thread thread_, uploader_;

  mutable std::mutex mutex_;
  std::condition_variable wake_, drained_;
  std::deque<std::unique_ptr<Task>> queue_, uploads_;
  size_t pending_ = 0;  // queued or running, uploads included
  size_t uploadsPosted_ = 0, uploadsDone_ = 0;
  bool stop_ = false;
  std::optional<Error> writeError_;
  std::weak_ptr<Run> latest_;

  // JavaScript thread only.
  size_t promises_ = 0;
  std::shared_ptr<Device> self_;  // while promises are open
};

}  // namespace sepconv::addon
