#include "device.h"

#include <pthread.h>
#include <signal.h>

#include "errors.h"

namespace sepconv::addon {

std::shared_ptr<Device> Device::open(Napi::Env env, std::unique_ptr<Executor> executor) {
  std::shared_ptr<Device> device(new Device(env, std::move(executor)));
  Device* raw = device.get();
  raw->completion_ = Completion::New(env, "sepconv", 0, 1, raw);
  raw->completion_.Unref(env);
  // Cleanup hooks run last in, first out: this one stops the thread before the thread-safe function is torn down.
  napi_add_env_cleanup_hook(env, cleanUp, raw);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  raw->thread_ = std::thread([raw] { raw->serve(); });
  if (!raw->executor_->hostMemory()) raw->uploader_ = std::thread([raw] { raw->serveUploads(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return device;
}

Device::~Device() {
  if (!thread_.joinable()) return;
  napi_remove_env_cleanup_hook(env_, cleanUp, this);
  shutdown();
}

bool Device::idle() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return pending_ == 0;
}

void Device::drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  drained_.wait(lock, [&] { return pending_ == 0; });
  if (writeError_) {
    const Error error = *writeError_;
    writeError_.reset();
    throw error;
  }
}

Napi::Promise Device::post(std::function<bool()> work, const Napi::Value& target) {
  auto task = std::make_unique<Task>();
  task->work = std::move(work);
  task->deferred.emplace(Napi::Promise::Deferred::New(env_));
  if (target.IsObject()) task->target = Napi::Persistent(target.As<Napi::Object>());
  const Napi::Promise promise = task->deferred->Promise();
  push(std::move(task));
  if (++promises_ == 1) {
    completion_.Ref(env_);
    self_ = shared_from_this();
  }
  return promise;
}

void Device::post(std::function<bool()> work) {
  auto task = std::make_unique<Task>();
  task->work = std::move(work);
  push(std::move(task));
}

void Device::upload(std::function<bool()> work) {
  auto task = std::make_unique<Task>();
  task->work = std::move(work);
  std::lock_guard<std::mutex> lock(mutex_);
  if (stop_) throw Error("ERR_DISPOSED", "the executor has been shut down");
  uploads_.push_back(std::move(task));
  ++uploadsPosted_;
  ++pending_;
  wake_.notify_all();
}

void Device::track(const std::shared_ptr<Run>& run) {
  std::lock_guard<std::mutex> lock(mutex_);
  latest_ = run;
  if (stop_) run->aborted = true;
}

void Device::cleanUp(void* device) { static_cast<Device*>(device)->shutdown(); }

void Device::push(std::unique_ptr<Task> task) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (stop_) throw Error("ERR_DISPOSED", "the executor has been shut down");
  task->after = uploadsPosted_;
  queue_.push_back(std::move(task));
  ++pending_;
  wake_.notify_all();
}

// Runs a task; its error stays with it, or with whoever asks next where it has no promise.
void Device::finish(Task& task) {
  if (!task.error) {
    try {
      task.result = task.work();
    } catch (...) {
      task.error = currentError();
    }
  }
  task.work = nullptr;
  std::lock_guard<std::mutex> lock(mutex_);
  if (task.error && !task.deferred) writeError_ = task.error;
  if (--pending_ == 0) drained_.notify_all();
}

void Device::serveUploads() {
  for (;;) {
    std::unique_ptr<Task> task;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || !uploads_.empty(); });
      if (stop_) return;
      task = std::move(uploads_.front());
      uploads_.pop_front();
    }
    finish(*task);
    std::lock_guard<std::mutex> lock(mutex_);
    ++uploadsDone_;
    wake_.notify_all();
  }
}

void Device::serve() {
  for (;;) {
    std::unique_ptr<Task> task;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || (!queue_.empty() && queue_.front()->after <= uploadsDone_); });
      if (stop_) return;
      task = std::move(queue_.front());
      queue_.pop_front();
      if (writeError_ && task->deferred) {
        task->error = std::move(writeError_);
        writeError_.reset();
      }
    }
    finish(*task);
    if (task->deferred && completion_.NonBlockingCall(task.get()) == napi_ok) task.release();
  }
}

void Device::settle(Napi::Env env, Napi::Function, Device* device, Task* task) {
  const std::unique_ptr<Task> owned(task);
  if (!env) {  // the environment is going away, and its references with it
    owned->target.SuppressDestruct();
    return;
  }
  if (owned->error)
    owned->deferred->Reject(errorObject(env, *owned->error).Value());
  else
    owned->deferred->Resolve(Napi::Boolean::New(env, owned->result));
  if (--device->promises_ == 0) {
    device->completion_.Unref(env);
    const std::shared_ptr<Device> last = std::move(device->self_);
    device->self_ = nullptr;
  }
}

void Device::shutdown() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    if (const std::shared_ptr<Run> run = latest_.lock()) run->aborted = true;
    wake_.notify_all();
  }
  thread_.join();
  if (uploader_.joinable()) uploader_.join();
  queue_.clear();
  uploads_.clear();
  completion_.Release();
  const std::shared_ptr<Device> last = std::move(self_);
}

}  // namespace sepconv::addon
