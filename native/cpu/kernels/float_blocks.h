// Blocks of activations as float32: where they lie, or, where storage is bfloat16, widened into the thread's scratch
// and rounded on the way back. A block is in cache both times, so memory sees bfloat16 alone.
#pragma once
#include "../kernel.h"
#include "../simd/table.h"

namespace sepconv::cpu {

class FloatBlocks {
 public:
  // At most `slots` blocks at a time of at most `largest` elements; `half`: storage is bfloat16.
  FloatBlocks(ThreadPool& pool, int thread, bool half, int64_t largest, int slots)
      : half_(half),
        row_((largest + 15) / 16 * 16),
        scratch_(half ? static_cast<float*>(pool.scratch(thread, static_cast<size_t>(row_ * slots) * sizeof(float)))
                      : nullptr) {}
  // Elements [start, start + n) of `data`, which may be null.
  const float* read(int slot, const void* data, int64_t start, int64_t n) const {
    if (!data || !half_) return data ? static_cast<const float*>(data) + start : nullptr;
    simd().bf16->widen(static_cast<const uint16_t*>(data) + start, scratch_ + slot * row_, n);
    return scratch_ + slot * row_;
  }
  // Where results go before `store`.
  float* target(int slot, void* data, int64_t start) const {
    return half_ ? scratch_ + slot * row_ : static_cast<float*>(data) + start;
  }
  void store(int slot, void* data, int64_t start, int64_t n) const {
    if (half_) simd().bf16->narrow(scratch_ + slot * row_, static_cast<uint16_t*>(data) + start, n);
  }

 private:
  bool half_;
  int64_t row_;
  float* scratch_;
};

}  // namespace sepconv::cpu
