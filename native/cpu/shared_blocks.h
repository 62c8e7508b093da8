// Blocks of rows that threads own, and parts of them that threads share. A thread takes one block after the other of a
// range of its own, so that it finds in its cache what neighbouring blocks have in common, then those that are left in
// the ranges of others. It prepares a block's operand in its own cache (the depthwise result of a separable
// convolution, say) and works through the block's parts; when no block is left, it takes parts of the blocks that
// others still work on, from their operand. So the operand stays in one L2, and nobody waits for the slowest thread for
// longer than one part takes. Which thread does what has no influence on the results.
#pragma once
#include <atomic>
#include <memory>

#include "kernel.h"

namespace sepconv::cpu {

// prepare(block, thread) returns the operand of a block; work(block, part, operand, following) does one of its parts.
// `following` is the block that this thread takes next, which its cache may be prepared for, or negative: unknown.
template <class Prepare, class Work>
void runBlocks(ThreadPool& pool, int64_t blocks, int64_t parts, const Prepare& prepare, const Work& work) {
  using Operand = decltype(prepare(int64_t{0}, 0));
  struct alignas(64) Slot {
    std::atomic<int64_t> next;  // block of the thread's range, which ends at `end`
    int64_t end;
    std::atomic<int64_t> part;  // the next one; `parts` and above: none
    int64_t block, following;
    Operand operand;
  };
  const int threads = pool.threads();
  if (threads == 1 || blocks * parts == 1) {  // nobody to share with
    pool.run(1, [&](int64_t, int thread) {
      for (int64_t block = 0; block < blocks; ++block) {
        const Operand operand = prepare(block, thread);
        const int64_t following = block + 1 < blocks ? block + 1 : -1;
        for (int64_t part = 0; part < parts; ++part) work(block, part, operand, following);
      }
    });
    return;
  }
  const std::unique_ptr<Slot[]> slots(new Slot[static_cast<size_t>(threads)]);
  for (int i = 0; i < threads; ++i) {
    Slot& slot = slots[static_cast<size_t>(i)];
    slot.next.store(blocks * i / threads, std::memory_order_relaxed);
    slot.end = blocks * (i + 1) / threads;
    slot.part.store(parts, std::memory_order_relaxed);
  }
  std::atomic<int64_t> ready{0};
  std::atomic<bool> failed{false};
  const auto workOff = [&](Slot& slot, bool own) {
    bool any = false;
    while (slot.part.load(std::memory_order_relaxed) < parts) {
      const int64_t part = slot.part.fetch_add(1, std::memory_order_acquire);
      if (part >= parts) break;
      work(slot.block, part, slot.operand, own ? slot.following : -1);
      any = true;
    }
    return any;
  };
  const auto take = [&](int thread) {
    for (int i = 0; i < threads; ++i) {
      Slot& slot = slots[static_cast<size_t>((thread + i) % threads)];
      if (slot.next.load(std::memory_order_relaxed) >= slot.end) continue;
      const int64_t block = slot.next.fetch_add(1, std::memory_order_relaxed);
      if (block < slot.end) return block;
    }
    return blocks;
  };
  pool.run(threads, [&](int64_t, int thread) {
    Slot& own = slots[static_cast<size_t>(thread)];
    for (int64_t block; (block = take(thread)) < blocks;) {
      try {
        own.operand = prepare(block, thread);
      } catch (...) {
        failed.store(true, std::memory_order_relaxed);
        throw;
      }
      own.block = block;
      own.following = block + 1 < own.end && own.next.load(std::memory_order_relaxed) == block + 1 ? block + 1 : -1;
      own.part.store(0, std::memory_order_release);
      ready.fetch_add(1, std::memory_order_release);
      workOff(own, true);
    }
    // A block that is taken but not ready yet is waited for: its parts may be half of what is left.
    for (;;) {
      const bool all = ready.load(std::memory_order_acquire) >= blocks;
      bool any = false;
      for (int i = 1; i < threads; ++i) any |= workOff(slots[static_cast<size_t>((thread + i) % threads)], false);
      if ((all && !any) || failed.load(std::memory_order_relaxed)) return;
      if (!any) pauseThread();
    }
  });
}

// work(task, thread), each thread one task after the other of a range of its own, then those that are left of others'
// ranges: for tasks whose neighbours read the same memory.
template <class Work>
void runRanges(ThreadPool& pool, int64_t tasks, const Work& work) {
  runBlocks(
      pool, tasks, 1, [](int64_t, int thread) { return thread; },
      [&](int64_t task, int64_t, int thread, int64_t) { work(task, thread); });
}

}  // namespace sepconv::cpu
