// The CPU executor's worker threads. A parallel region is published by storing its number of tasks in `remaining`;
// whoever decrements that counter from a positive value owns a task. A region ends when `unfinished` reaches zero, and
// only then may the next one be published, so a worker that comes late either finds nothing or takes a task of the
// region that is current: it reads the region's fields after it owns a task, never before. Between regions workers spin
// for about 30 us (the gap between two kernels of a program is far shorter), then sleep on a condition variable; a wake
// costs the caller some 5 us, and the worker is there 20 to 50 us later.
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "float_mode.h"
#include "kernel.h"
#include "simd/table.h"

namespace sepconv::cpu {

namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr auto kSpin = std::chrono::microseconds(30);

// Spins until `ready` or until the time is over; the clock is read every 64th time only (a pause takes 40 to 140
// cycles).
template <class Condition>
bool spin(const Condition& ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pauseThread();
    }
    if (std::chrono::steady_clock::now() >= end) return false;
  }
}

struct Block {
  void* data = nullptr;
  size_t bytes = 0;
};

// Where the current thread stands: a nested run() stays on it and gets scratch of its own.
thread_local int currentThread = 0;
thread_local size_t depth = 0;

}  // namespace

struct ThreadPool::Implementation {
  explicit Implementation(int threads) : scratch(static_cast<size_t>(threads)) {}

  std::vector<std::thread> workers;
  std::vector<std::vector<Block>> scratch;  // by thread, by depth; touched by its own thread only

  // The region.
  Trampoline trampoline = nullptr;
  const void* context = nullptr;
  int64_t tasks = 0;
  const SimdTable* table = nullptr;
  std::exception_ptr exception;
  std::atomic<bool> failed{false};
  std::mutex exceptionMutex;

  alignas(kLine) std::atomic<int64_t> remaining{0};
  alignas(kLine) std::atomic<int64_t> unfinished{0};
  alignas(kLine) std::atomic<int> sleepers{0};
  std::atomic<bool> callerSleeps{false};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable wake, done;

  // Takes tasks until there are none.
  void work(int thread) {
    int64_t finished = 0;
    while (remaining.load(std::memory_order_relaxed) > 0) {
      const int64_t left = remaining.fetch_sub(1, std::memory_order_acquire);
      if (left <= 0) break;
      ++finished;
      if (failed.load(std::memory_order_relaxed)) continue;
      if (finished == 1) selectSimd(table);
      try {
        trampoline(context, tasks - left, thread);
      } catch (...) {
        std::lock_guard<std::mutex> lock(exceptionMutex);
        if (!failed.exchange(true)) exception = std::current_exception();
      }
    }
    if (finished && unfinished.fetch_sub(finished, std::memory_order_seq_cst) == finished &&
        callerSleeps.load(std::memory_order_seq_cst)) {
      std::lock_guard<std::mutex> lock(mutex);
      done.notify_one();
    }
  }

  void loop(int thread) {
    currentThread = thread;
    depth = 1;
    const FlushDenormals flush;
    const auto ready = [&] {
      return remaining.load(std::memory_order_relaxed) > 0 || stop.load(std::memory_order_relaxed);
    };
    for (;;) {
      if (!spin(ready)) {
        std::unique_lock<std::mutex> lock(mutex);
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        wake.wait(lock, [&] { return remaining.load(std::memory_order_seq_cst) > 0 || stop; });
        sleepers.fetch_sub(1, std::memory_order_seq_cst);
      }
      if (stop.load(std::memory_order_relaxed)) return;
      work(thread);
    }
  }
};

ThreadPool::ThreadPool(int threads) : implementation_(std::make_unique<Implementation>(threads < 1 ? 1 : threads)) {
  // Signals are Node's business: workers inherit a mask that blocks them all.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (int thread = 1; thread < threads; ++thread)
    implementation_->workers.emplace_back([this, thread] { implementation_->loop(thread); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(implementation_->mutex);
    implementation_->stop = true;
    implementation_->wake.notify_all();
  }
  for (std::thread& worker : implementation_->workers) worker.join();
  for (std::vector<Block>& blocks : implementation_->scratch)
    for (Block& block : blocks) free(block.data);
}

int ThreadPool::threads() const { return static_cast<int>(implementation_->scratch.size()); }

void ThreadPool::runErased(int64_t tasks, Trampoline trampoline, const void* context) {
  Implementation& pool = *implementation_;
  if (tasks <= 0) return;
  struct Level {  // also when a task throws
    Level() { ++depth; }
    ~Level() { --depth; }
  } level;
  if (depth > 1 || tasks == 1 || pool.workers.empty()) {
    for (int64_t task = 0; task < tasks; ++task) trampoline(context, task, currentThread);
    return;
  }

  pool.trampoline = trampoline;
  pool.context = context;
  pool.tasks = tasks;
  pool.table = &simd();
  pool.failed.store(false, std::memory_order_relaxed);
  pool.unfinished.store(tasks, std::memory_order_relaxed);
  pool.remaining.store(tasks, std::memory_order_seq_cst);
  const int sleeping = pool.sleepers.load(std::memory_order_seq_cst);
  if (sleeping) {
    std::lock_guard<std::mutex> lock(pool.mutex);
    if (tasks > sleeping) {
      pool.wake.notify_all();
    } else {
      for (int64_t i = 1; i < tasks; ++i) pool.wake.notify_one();
    }
  }
  pool.work(0);

  const auto finished = [&] { return pool.unfinished.load(std::memory_order_acquire) == 0; };
  if (!finished() && !spin(finished)) {
    std::unique_lock<std::mutex> lock(pool.mutex);
    pool.callerSleeps.store(true, std::memory_order_seq_cst);
    pool.done.wait(lock, [&] { return pool.unfinished.load(std::memory_order_seq_cst) == 0; });
    pool.callerSleeps.store(false, std::memory_order_relaxed);
  }
  if (pool.failed.load(std::memory_order_relaxed)) {
    const std::exception_ptr exception = std::move(pool.exception);
    pool.exception = nullptr;
    std::rethrow_exception(exception);
  }
}

void* ThreadPool::scratch(int thread, size_t bytes) {
  std::vector<Block>& blocks = implementation_->scratch[static_cast<size_t>(thread)];
  if (blocks.size() <= depth) blocks.resize(depth + 1);
  Block& block = blocks[depth];
  if (block.bytes < bytes) {
    const size_t wanted = std::max(bytes, block.bytes + block.bytes / 2);
    // Operands staged in cache are read in many streams at once: on one huge page they need one entry of the TLB.
    const size_t alignment = wanted >= kHugePage / 16 ? kHugePage : kLine;
    const size_t grown = (wanted + alignment - 1) / alignment * alignment;
    free(block.data);
    block = Block{};
    if (posix_memalign(&block.data, alignment, grown))
      throw Error("ERR_MEMORY",
                  "no memory for " + std::to_string(grown) + " bytes of scratch of thread " + std::to_string(thread));
#ifdef MADV_HUGEPAGE
    if (alignment == kHugePage) madvise(block.data, grown, MADV_HUGEPAGE);
#endif
    block.bytes = grown;
  }
  return block.data;
}

}  // namespace sepconv::cpu
