// The scratch memory that all programs of an executor share: one block, as large as the largest loaded program needs.
// A run keeps the block that it started with, also when a larger program is loaded meanwhile. Any thread.
#pragma once
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "executor.h"

namespace sepconv {

// Allocator: std::shared_ptr<Allocation> allocate(size_t bytes), which may throw.
template <class Allocator>
class SharedArena {
 public:
  explicit SharedArena(std::shared_ptr<Allocator> allocator) : allocator_(std::move(allocator)) {}

  void reserve(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    grow(bytes);
    sizes_.insert(bytes);
  }
  void giveBack(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    sizes_.erase(sizes_.find(bytes));
    if (block_ && block_->bytes() > largest()) block_.reset();
  }
  std::shared_ptr<Allocation> block() {
    std::lock_guard<std::mutex> lock(mutex_);
    grow(largest());
    return block_;
  }
  size_t bytes() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return block_ ? block_->bytes() : 0;
  }

 private:
  size_t largest() const { return sizes_.empty() ? 0 : *sizes_.rbegin(); }
  void grow(size_t bytes) {
    if (!bytes || (block_ && block_->bytes() >= bytes)) return;
    block_.reset();  // before the larger one is asked for: the two need not exist side by side
    block_ = allocator_->allocate(bytes);
  }

  const std::shared_ptr<Allocator> allocator_;
  mutable std::mutex mutex_;
  std::shared_ptr<Allocation> block_;
  std::multiset<size_t> sizes_;  // of the loaded programs
};

}  // namespace sepconv
