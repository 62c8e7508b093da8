// The emulated stream beside the launches. What it is given runs on a thread of its own: at once, or, as an adversary,
// only when it is joined, so that a program that does not wait for it, or changes meanwhile what it reads, computes
// something else. A library enqueues through the stream that it is handed (test/cuda/fakes/nccl.cc).
#pragma once
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace sepconv::emulator {

struct Work {
  void (*run)(void* argument);
  void* argument;
};

// What libraries see of it.
struct StreamOfLibraries {
  void (*enqueue)(StreamOfLibraries*, void (*run)(void*), void* argument);
};

class BesideStream {
 public:
  explicit BesideStream(bool late) : late_(late) {
    direct_.base.enqueue = [](StreamOfLibraries* stream, void (*run)(void*), void* argument) {
      reinterpret_cast<Direct*>(stream)->owner->push({run, argument});
    };
    direct_.owner = this;
    collector_.base.enqueue = [](StreamOfLibraries* stream, void (*run)(void*), void* argument) {
      reinterpret_cast<Collector*>(stream)->works->push_back({run, argument});
    };
  }
  ~BesideStream() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      queue_.clear();
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  void* enqueueing() { return &direct_.base; }
  // What is enqueued goes to the end of `works`.
  void* collecting(std::vector<Work>& works) {
    collector_.works = &works;
    return &collector_.base;
  }
  void push(const Work& work) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!thread_.joinable()) thread_ = std::thread([this] { serve(); });
    queue_.push_back(work);
    changed_.notify_all();
  }
  // Waits for all of it. `look`, where there is one, is called meanwhile; what it throws ends the wait.
  void join(const std::function<void()>& look) {
    std::unique_lock<std::mutex> lock(mutex_);
    released_ = true;
    changed_.notify_all();
    while (!queue_.empty() || busy_) {
      changed_.wait_for(lock, std::chrono::milliseconds(1));
      if (!look) continue;
      lock.unlock();
      try {
        look();
      } catch (...) {
        lock.lock();
        queue_.clear();
        released_ = false;
        throw;
      }
      lock.lock();
    }
    released_ = false;
    lock.unlock();
    if (look) look();
  }

 private:
  struct Direct {
    StreamOfLibraries base{};
    BesideStream* owner = nullptr;
  };
  struct Collector {
    StreamOfLibraries base{};
    std::vector<Work>* works = nullptr;
  };

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stop_ || (!queue_.empty() && (!late_ || released_)); });
      if (stop_) return;
      const Work work = queue_.front();
      queue_.pop_front();
      busy_ = true;
      lock.unlock();
      work.run(work.argument);
      lock.lock();
      busy_ = false;
      changed_.notify_all();
    }
  }

  const bool late_;
  Direct direct_;
  Collector collector_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work> queue_;
  std::thread thread_;
  bool busy_ = false, released_ = false, stop_ = false;
};

}  // namespace sepconv::emulator
