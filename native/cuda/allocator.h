// Device memory in blocks that are kept when they are given back: asking the driver for one takes longer than most
// kernels, and would wait for the device. Before an allocation fails, the kept blocks go back to the driver. Any
// thread.
#pragma once
#include <map>
#include <memory>
#include <mutex>

#include "../kernels/executor.h"
#include "driver.h"

namespace sepconv::cuda {

class DeviceAllocator : public std::enable_shared_from_this<DeviceAllocator> {
 public:
  explicit DeviceAllocator(std::shared_ptr<DeviceInterface> device) : device_(std::move(device)) {}
  ~DeviceAllocator();
  DeviceAllocator(const DeviceAllocator&) = delete;
  DeviceAllocator& operator=(const DeviceAllocator&) = delete;

  // At least 256-byte aligned. Throws ERR_MEMORY with what was asked for, what this executor holds and what is free.
  std::shared_ptr<Allocation> allocate(size_t bytes);
  // Bytes asked for and not given back; the highest such number.
  size_t allocated() const;
  size_t peak() const;

 private:
  class Block;
  void release(void* data, size_t capacity, size_t bytes);
  void* take(size_t capacity, size_t* taken);  // a kept block of this size or little more; null where there is none
  void returnKept();

  const std::shared_ptr<DeviceInterface> device_;
  mutable std::mutex mutex_;
  std::multimap<size_t, void*> kept_;  // by capacity
  size_t allocated_ = 0, peak_ = 0;
};

}  // namespace sepconv::cuda
