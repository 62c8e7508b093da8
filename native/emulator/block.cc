#include "block.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "../kernels/kernel.h"

namespace sepconv::emulator {
namespace {

constexpr int maxThreads = 1024;
constexpr size_t maxSharedBytes = 232448;  // what sm_90 gives one block

std::string text(cuda::Extent extent) {
  return std::to_string(extent.x) + "," + std::to_string(extent.y) + "," + std::to_string(extent.z);
}

std::string text(Place place) {
  const char* slash = std::strrchr(place.file, '/');
  return std::string(slash ? slash + 1 : place.file) + ":" + std::to_string(place.line);
}

}  // namespace

Block::Block(const cuda::Launch& launch, const Mode& mode, uint32_t seed)
    : launch_(launch), mode_(mode), randomState_(seed), shared_(nullptr, std::free) {
  threadCount_ = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  if (threadCount_ < 32 || threadCount_ > maxThreads || threadCount_ % 32 || launch.sharedBytes > maxSharedBytes ||
      !launch.grid.x || !launch.grid.y || !launch.grid.z || launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 ||
      launch.grid.z > 65535)
    throw Error("ERR_INTERNAL", std::string("emulator: ") + launch.name + ": bad launch: grid " + text(launch.grid) +
                                    ", block " + text(launch.block) + ", " + std::to_string(launch.sharedBytes) +
                                    " bytes of shared memory");
  threads_.resize(static_cast<size_t>(threadCount_));
  collectives_.resize(static_cast<size_t>(threadCount_ / 32));
  if (mode.counts) {
    account_ = &accountOf(launch.name);
    ++account_->launches;
    account_->threads = launch.block.x;
    account_->sharedBytes = std::max<uint64_t>(account_->sharedBytes, launch.sharedBytes);
    logs_.resize(collectives_.size());
  }
  if (launch.sharedBytes)
    shared_.reset(static_cast<unsigned char*>(std::aligned_alloc(1024, (launch.sharedBytes + 1023) / 1024 * 1024)));
  main_.adoptCurrentStack();
}

void Block::run(cuda::Extent index) {
  index_ = index;
  block = this;
  live_ = threadCount_;
  runnable_ = 0;
  turn_ = 0;
  atBarrier_.clear();
  for (Queue& queue : ready_) {
    queue.threads.clear();
    queue.head = 0;
  }
  for (Collective& collective : collectives_) collective.arrived = 0;
  if (launch_.sharedBytes) std::memset(shared(), 0xff, launch_.sharedBytes);  // NaN in every floating-point format
  for (int i = 0; i < threadCount_; ++i) {
    Thread& t = threads_[static_cast<size_t>(i)];
    t.index = i;
    t.lane = i % 32;
    t.warp = i / 32;
    t.done = false;
    t.openCopies.clear();
    t.copyGroups.clear();
    t.fiber.prepare(stackOf(static_cast<size_t>(i)), stackBytes, threadEntry);
  }
  for (int warp = 0; warp < threadCount_ / 32; ++warp) {
    Thread* lanes[32];
    for (int lane = 0; lane < 32; ++lane) lanes[lane] = &threads_[static_cast<size_t>(warp * 32 + lane)];
    makeReady(lanes, 32);
  }
  while (error_.empty() && (thread = nextReady())) main_.switchTo(thread->fiber);
  thread = nullptr;
  block = nullptr;
  for (WarpLog& log : logs_) log.flush(*account_);
  if (!error_.empty()) throw Error("ERR_INTERNAL", "emulator: " + error_);
  if (live_) reportDeadlock();
}

void Block::threadEntry() {
  Fiber::started();
  Block* self = block;
  self->launch_.emulate(self->launch_.function, self->launch_.parameters);
  thread->done = true;
  --self->live_;
  self->leave(true);
  std::abort();  // a finished thread is never resumed
}

// Goes to the next thread that can run, or back to run() when there is none.
void Block::leave(bool last) {
  Thread* self = thread;
  Thread* next = error_.empty() ? nextReady() : nullptr;
  if (next == self) return;
  thread = next;
  self->fiber.switchTo(next ? next->fiber : main_, last);
}

void Block::park(const char* what, Place place) {
  thread->waitingAt = what;
  thread->place = place;
  leave(false);
}

uint32_t Block::random() {
  randomState_ = randomState_ * 1664525u + 1013904223u;
  return randomState_ >> 8;
}

int Block::nextWarp() {
  switch (mode_.order) {
    case WarpOrder::lowestFirst:
      return __builtin_ctz(runnable_);
    case WarpOrder::highestFirst:
      return 31 - __builtin_clz(runnable_);
    case WarpOrder::random:
      // Mostly the same warp for a while: runs that lead by several steps bring out more than a uniform choice.
      if ((runnable_ >> turn_ & 1) && random() % 16) return turn_;
      turn_ = static_cast<int>(random() % 32);
      break;
    case WarpOrder::fair:
      break;
  }
  int warp = turn_;
  while (!(runnable_ >> warp & 1)) warp = (warp + 1) % 32;
  return warp;
}

Thread* Block::nextReady() {
  if (!runnable_) return nullptr;
  const int warp = nextWarp();
  turn_ = warp;
  Queue& queue = ready_[warp];
  Thread* next = queue.threads[queue.head++];
  if (queue.head == queue.threads.size()) {
    queue.threads.clear();
    queue.head = 0;
    runnable_ &= ~(1u << warp);
    if (mode_.order == WarpOrder::fair) turn_ = (warp + 1) % 32;
  }
  return next;
}

// All of one warp.
void Block::makeReady(Thread* const* threads, int count) {
  if (!count) return;
  Queue& queue = ready_[threads[0]->warp];
  const size_t first = queue.threads.size();
  queue.threads.insert(queue.threads.end(), threads, threads + count);
  if (mode_.shuffledLanes)
    for (size_t i = static_cast<size_t>(count) - 1; i > 0; --i)
      std::swap(queue.threads[first + i], queue.threads[first + random() % (i + 1)]);
  runnable_ |= 1u << threads[0]->warp;
}

void Block::countShared(const void* address, int bytes, Place place) {
  if (!account_) return;
  const auto offset = static_cast<uint32_t>(static_cast<const unsigned char*>(address) - shared_.get());
  logs_[static_cast<size_t>(thread->warp)].add({place.file, place.line, thread->lane, bytes, offset});
}

void Block::barrier(Place place) {
  if (!atBarrier_.empty()) {
    const Place other = atBarrier_[0]->place;
    if (other.line != place.line || std::strcmp(other.file, place.file))
      fail("threads of one block are at different barriers, the other one at " + text(other), place);
  }
  if (live_ != threadCount_) fail("barrier after a thread of the block has ended", place);
  thread->place = place;
  atBarrier_.push_back(thread);
  if (static_cast<int>(atBarrier_.size()) < threadCount_) return park("a block barrier", place);
  for (WarpLog& log : logs_) log.flush(*account_);
  std::vector<Thread*> lanes;
  for (int warp = 0; warp < threadCount_ / 32; ++warp) {
    lanes.clear();
    for (Thread* waiting : atBarrier_)
      if (waiting->warp == warp) lanes.push_back(waiting);
    makeReady(lanes.data(), static_cast<int>(lanes.size()));
  }
  atBarrier_.clear();
  leave(false);  // the last to arrive has no right to go first
}

void Block::collective(void* argument, Collective::Body body, const char* what, Place place) {
  Collective& current = collectives_[static_cast<size_t>(thread->warp)];
  if (current.arrived &&
      (current.body != body || current.place.line != place.line || std::strcmp(current.place.file, place.file)))
    fail(std::string("lanes of one warp are at different collectives, the other one at ") + text(current.place), place);
  current.body = body;
  current.place = place;
  current.arguments[thread->lane] = argument;
  current.arrived |= 1u << thread->lane;
  if (current.arrived != ~0u) return park(what, place);
  body(current.arguments);
  if (account_) logs_[static_cast<size_t>(thread->warp)].flush(*account_);
  current.arrived = 0;
  Thread* others[31];
  int count = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (lane != thread->lane) others[count++] = &threads_[static_cast<size_t>(thread->warp * 32 + lane)];
  makeReady(others, count);
}

void Block::fail(const std::string& what, Place place) {
  error_ = std::string(launch_.name) + ": " + what + " (" + text(place) + ", block " + text(index_) + ", thread " +
           std::to_string(thread->index) + ")";
  leave(true);
  std::abort();  // a failed thread is never resumed
}

void Block::reportDeadlock() {
  std::map<std::string, int> states;
  for (const Thread& t : threads_)
    ++states[t.done ? "ended" : std::string("wait at ") + t.waitingAt + " in " + text(t.place)];
  std::string message = std::string("emulator: ") + launch_.name + ": deadlock in block " + text(index_);
  for (const auto& [state, count] : states) message += "; " + std::to_string(count) + " threads " + state;
  throw Error("ERR_INTERNAL", message);
}

void runGrid(const cuda::Launch& launch, const Mode& mode, uint32_t seed) {
  Block one(launch, mode, seed);
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t at = mode.lastBlockFirst ? blocks - 1 - i : i;
    one.run({static_cast<uint32_t>(at % launch.grid.x), static_cast<uint32_t>(at / launch.grid.x % launch.grid.y),
             static_cast<uint32_t>(at / launch.grid.x / launch.grid.y)});
  }
}

}  // namespace sepconv::emulator
