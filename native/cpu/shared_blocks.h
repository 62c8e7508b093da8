// Blocks of rows that threads own, and parts of them that threads share. A thread takes a block, prepares its operand
// in its own cache (the depthwise result of a separable convolution, say) and works through the block's parts; when no
// block is left, it takes parts of the blocks that others still work on, from their operand. So the operand stays in
// one L2, and nobody waits for the slowest thread for longer than one part takes. Which thread does what has no
// influence on the results.
#pragma once
#include <atomic>
#include <memory>

#include "kernel.h"

namespace sepconv::cpu {

// prepare(block, thread) returns the operand of a block; work(block, part, operand) does one of its parts.
template <class Prepare, class Work>
void runBlocks(ThreadPool& pool, int64_t blocks, int64_t parts, const Prepare& prepare, const Work& work) {
  using Operand = decltype(prepare(int64_t{0}, 0));
  struct alignas(64) Slot {
    std::atomic<int64_t> part;  // the next one; `parts` and above: none
    int64_t block;
    Operand operand;
  };
  const int threads = pool.threads();
  if (threads == 1 || blocks * parts == 1) {  // nobody to share with
    pool.run(1, [&](int64_t, int thread) {
      for (int64_t block = 0; block < blocks; ++block) {
        const Operand operand = prepare(block, thread);
        for (int64_t part = 0; part < parts; ++part) work(block, part, operand);
      }
    });
    return;
  }
  const std::unique_ptr<Slot[]> slots(new Slot[static_cast<size_t>(threads)]);
  for (int i = 0; i < threads; ++i) slots[static_cast<size_t>(i)].part.store(parts, std::memory_order_relaxed);
  std::atomic<int64_t> next{0}, ready{0};
  std::atomic<bool> failed{false};
  const auto workOff = [&](Slot& slot) {
    bool any = false;
    while (slot.part.load(std::memory_order_relaxed) < parts) {
      const int64_t part = slot.part.fetch_add(1, std::memory_order_acquire);
      if (part >= parts) break;
      work(slot.block, part, slot.operand);
      any = true;
    }
    return any;
  };
  pool.run(threads, [&](int64_t, int thread) {
    Slot& own = slots[static_cast<size_t>(thread)];
    for (int64_t block; (block = next.fetch_add(1, std::memory_order_relaxed)) < blocks;) {
      try {
        own.operand = prepare(block, thread);
      } catch (...) {
        failed.store(true, std::memory_order_relaxed);
        throw;
      }
      own.block = block;
      own.part.store(0, std::memory_order_release);
      ready.fetch_add(1, std::memory_order_release);
      workOff(own);
    }
    // A block that is taken but not ready yet is waited for: its parts may be half of what is left.
    for (;;) {
      const bool all = ready.load(std::memory_order_acquire) >= blocks;
      bool any = false;
      for (int i = 1; i < threads; ++i) any |= workOff(slots[static_cast<size_t>((thread + i) % threads)]);
      if ((all && !any) || failed.load(std::memory_order_relaxed)) return;
      if (!any) pauseThread();
    }
  });
}

}  // namespace sepconv::cpu
