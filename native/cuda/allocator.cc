#include "allocator.h"

#include <algorithm>

namespace sepconv::cuda {
namespace {

constexpr size_t granularity = 512;

std::string mebibytes(size_t bytes) {
  const double value = static_cast<double>(bytes) / (1 << 20);
  char text[32];
  std::snprintf(text, sizeof text, value < 10 ? "%.2f MiB" : "%.0f MiB", value);
  return text;
}

}  // namespace

class DeviceAllocator::Block final : public Allocation {
 public:
  Block(std::shared_ptr<DeviceAllocator> owner, void* data, size_t capacity, size_t bytes)
      : Allocation(data, bytes), owner_(std::move(owner)), capacity_(capacity) {}
  ~Block() override { owner_->release(data(), capacity_, bytes()); }

 private:
  const std::shared_ptr<DeviceAllocator> owner_;
  const size_t capacity_;
};

DeviceAllocator::~DeviceAllocator() { returnKept(); }

std::shared_ptr<Allocation> DeviceAllocator::allocate(size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw Error("ERR_MEMORY", "cannot allocate " + std::to_string(bytes) + " bytes");
  std::lock_guard<std::mutex> lock(mutex_);
  size_t capacity = (std::max(bytes, size_t{1}) + granularity - 1) / granularity * granularity;
  void* data = take(capacity, &capacity);
  if (!data) {
    try {
      data = device_->allocate(capacity);
    } catch (const Error& error) {
      if (std::string(error.code) != "ERR_MEMORY") throw;
      returnKept();
      try {
        data = device_->allocate(capacity);
      } catch (const Error& second) {
        if (std::string(second.code) != "ERR_MEMORY") throw;
        const DeviceInterface::Memory memory = device_->memory();
        const size_t used = memory.total - memory.free, others = used > allocated_ ? used - allocated_ : 0;
        throw Error("ERR_MEMORY", device_->properties().name + ": out of memory: needed " + mebibytes(bytes) +
                                      ", free " + mebibytes(memory.free) + " of " + mebibytes(memory.total) +
                                      ", held by this executor " + mebibytes(allocated_) +
                                      ", by others (the driver, other processes) " + mebibytes(others) +
                                      "; use a smaller batch or dispose of tensors");
      }
    }
  }
  allocated_ += bytes;
  peak_ = std::max(peak_, allocated_);
  return std::make_shared<Block>(shared_from_this(), data, capacity, bytes);
}

void DeviceAllocator::release(void* data, size_t capacity, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  allocated_ -= bytes;
  kept_.emplace(capacity, data);
}

void* DeviceAllocator::take(size_t capacity, size_t* taken) {
  const auto found = kept_.lower_bound(capacity);
  if (found == kept_.end() || found->first > capacity + capacity / 4) return nullptr;
  *taken = found->first;
  void* data = found->second;
  kept_.erase(found);
  return data;
}

void DeviceAllocator::returnKept() {
  for (const auto& [capacity, data] : kept_) device_->release(data);
  kept_.clear();
}

size_t DeviceAllocator::allocated() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return allocated_;
}

size_t DeviceAllocator::peak() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return peak_;
}

}  // namespace sepconv::cuda
