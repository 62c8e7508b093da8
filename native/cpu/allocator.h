// Host memory in 64-byte-aligned blocks that are kept when they are given back: a page that was used once costs nothing
// to use again, while a fresh one costs a fault (some 0.25 us per 4 KiB: 2 ms for a batch of pictures). Blocks from 4
// MiB up lie on 2 MiB boundaries and ask for huge pages. The cache is bounded and emptied, oldest block first, before
// any allocation fails.
#pragma once
#include <map>
#include <memory>
#include <mutex>

#include "../kernels/executor.h"

namespace sepconv::cpu {

class CachingAllocator : public std::enable_shared_from_this<CachingAllocator> {
 public:
  explicit CachingAllocator(size_t cacheLimit);
  ~CachingAllocator();
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;

  // Any thread. Throws ERR_MEMORY.
  std::shared_ptr<Allocation> allocate(size_t bytes);
  // Bytes asked for and not given back; the highest such number.
  size_t allocated() const;
  size_t peak() const;

 private:
  class Block;
  struct Free {
    void* data;
    uint64_t age;
  };
  void release(void* data, size_t capacity, size_t bytes);
  void* takeCached(size_t capacity, size_t* taken);
  void trim(size_t limit);  // with mutex_ held

  const size_t cacheLimit_;
  mutable std::mutex mutex_;
  std::multimap<size_t, Free> free_;  // by capacity
  size_t cached_ = 0, allocated_ = 0, peak_ = 0;
  uint64_t clock_ = 0;
};

// Bytes of main memory, and how many of them can be had without swapping; 0 where the system does not say.
size_t physicalMemory();
size_t freeMemory();

}  // namespace sepconv::cpu
