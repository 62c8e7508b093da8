#include "allocator.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace sepconv::cpu {

namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kPage = size_t{64} << 10;   // granularity of mapped blocks
constexpr size_t kMapped = size_t{1} << 20;  // from here on straight from the system
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHuge = kHugePage;             // from here on on huge pages
constexpr size_t kChecked = size_t{256} << 20;  // from here on compared with the memory that is free: the system would
                                                // hand out address space and kill the process at first use

size_t roundUp(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Four classes per power of two below kMapped (at most 25 % unused), whole pages above.
size_t capacityFor(size_t bytes) {
  if (bytes >= kMapped) return roundUp(bytes, kPage);
  size_t power = kAlignment;
  while (power * 2 <= bytes) power *= 2;
  return roundUp(std::max<size_t>(bytes, 1), std::max(kAlignment, power / 4));
}

void* systemAllocate(size_t capacity) {
  if (capacity < kMapped) {
    void* data = nullptr;
    return posix_memalign(&data, kAlignment, capacity) ? nullptr : data;
  }
  const size_t slack = capacity >= kHuge ? kHugePage : 0;
  if (capacity + slack < capacity) return nullptr;
  void* mapped = mmap(nullptr, capacity + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* begin = static_cast<char*>(mapped);
  if (slack) {
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (before) munmap(begin, before);
    begin += before;
    if (slack - before) munmap(begin + capacity, slack - before);
#ifdef MADV_HUGEPAGE
    madvise(begin, capacity, MADV_HUGEPAGE);
#endif
  }
  return begin;
}

void systemRelease(void* data, size_t capacity) {
  if (capacity < kMapped)
    free(data);
  else
    munmap(data, capacity);
}

}  // namespace

size_t physicalMemory() {
  const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
  return pages > 0 && size > 0 ? static_cast<size_t>(pages) * static_cast<size_t>(size) : 0;
}

size_t freeMemory() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  size_t kibibytes, total = 0;
  while (file >> key >> kibibytes) {
    if (key == "MemAvailable:" || key == "SwapFree:") total += kibibytes << 10;
    std::getline(file, unit);
  }
  return total;
}

class CachingAllocator::Block : public Allocation {
 public:
  Block(std::shared_ptr<CachingAllocator> owner, void* data, size_t bytes, size_t capacity)
      : Allocation(data, bytes), owner_(std::move(owner)), capacity_(capacity) {}
  ~Block() override { owner_->release(data(), capacity_, bytes()); }

 private:
  const std::shared_ptr<CachingAllocator> owner_;
  const size_t capacity_;
};

CachingAllocator::CachingAllocator(size_t cacheLimit) : cacheLimit_(cacheLimit) {}

CachingAllocator::~CachingAllocator() { trim(0); }

size_t CachingAllocator::allocated() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return allocated_;
}

size_t CachingAllocator::peak() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return peak_;
}

// A cached block of the capacity, or for mapped blocks one that is at most an eighth larger.
void* CachingAllocator::takeCached(size_t capacity, size_t* taken) {
  auto found = free_.lower_bound(capacity);
  if (found == free_.end() || found->first > (capacity < kMapped ? capacity : capacity + capacity / 8)) return nullptr;
  void* data = found->second.data;
  *taken = found->first;
  cached_ -= found->first;
  free_.erase(found);
  return data;
}

void CachingAllocator::trim(size_t limit) {
  while (cached_ > limit) {
    auto oldest = std::min_element(free_.begin(), free_.end(),
                                   [](const auto& a, const auto& b) { return a.second.age < b.second.age; });
    systemRelease(oldest->second.data, oldest->first);
    cached_ -= oldest->first;
    free_.erase(oldest);
  }
}

std::shared_ptr<Allocation> CachingAllocator::allocate(size_t bytes) {
  size_t capacity = bytes <= SIZE_MAX / 2 ? capacityFor(bytes) : 0;
  std::unique_lock<std::mutex> lock(mutex_);
  void* data = capacity ? takeCached(capacity, &capacity) : nullptr;
  if (!data && capacity) {
    const auto affordable = [&] {
      if (capacity < kChecked) return true;
      const size_t available = freeMemory();
      return available == 0 || capacity <= available;
    };
    if (!affordable()) trim(0);
    if (affordable()) data = systemAllocate(capacity);
    if (!data && cached_) {
      trim(0);
      if (affordable()) data = systemAllocate(capacity);
    }
  }
  if (!data)
    throw Error("ERR_MEMORY", "cannot allocate " + std::to_string(bytes) +
                                  " bytes on cpu: " + std::to_string(freeMemory()) + " bytes are free and " +
                                  std::to_string(allocated_) + " are in use by this executor");
  allocated_ += bytes;
  peak_ = std::max(peak_, allocated_);
  lock.unlock();
  return std::make_shared<Block>(shared_from_this(), data, bytes, capacity);
}

void CachingAllocator::release(void* data, size_t capacity, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  allocated_ -= bytes;
  if (capacity > cacheLimit_) {
    systemRelease(data, capacity);
    return;
  }
  free_.emplace(capacity, Free{data, clock_++});
  cached_ += capacity;
  trim(cacheLimit_);
}

}  // namespace sepconv::cpu
