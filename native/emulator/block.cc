#include "block.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "../kernels/kernel.h"

namespace sepconv::emulator {
namespace {

constexpr int maxThreads = 1024, maxWarps = 64, namedBarriers = 16;
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
    : launch_(launch),
      mode_(mode),
      randomState_(seed),
      ranks_(static_cast<int>(launch.options.cluster)),
      sharedPitch_((launch.sharedBytes + 1023) / 1024 * 1024),
      shared_(nullptr, std::free) {
  const int threads = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  threadCount_ = threads * ranks_;
  if (threads < 32 || threads > maxThreads || threads % 32 || launch.sharedBytes > maxSharedBytes || !launch.grid.x ||
      !launch.grid.y || !launch.grid.z || launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 ||
      launch.grid.z > 65535 || ranks_ < 1 || threadCount_ > maxWarps * 32 ||
      launch.grid.x % static_cast<uint32_t>(ranks_))
    throw Error("ERR_INTERNAL", std::string("emulator: ") + launch.name + ": bad launch: grid " + text(launch.grid) +
                                    ", block " + text(launch.block) + ", clusters of " + std::to_string(ranks_) + ", " +
                                    std::to_string(launch.sharedBytes) + " bytes of shared memory");
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
    shared_.reset(static_cast<unsigned char*>(std::aligned_alloc(1024, sharedPitch_ * static_cast<size_t>(ranks_))));
  atBarrier_.resize(static_cast<size_t>(ranks_));
  atNamedBarriers_.resize(static_cast<size_t>(ranks_ * namedBarriers));
  if (launch.options.asynchronous) hopper_ = std::make_unique<Hopper>(*this, ranks_, threadCount_ / 32);
  main_.adoptCurrentStack();
}

void Block::run(cuda::Extent index) {
  index_ = index;
  block = this;
  live_ = threadCount_;
  runnable_ = 0;
  turn_ = 0;
  for (std::vector<Thread*>& waiting : atBarrier_) waiting.clear();
  for (std::vector<Thread*>& waiting : atNamedBarriers_) waiting.clear();
  liveOf_.assign(static_cast<size_t>(ranks_), threadsPerBlock());
  for (Queue& queue : ready_) {
    queue.threads.clear();
    queue.head = 0;
  }
  for (Collective& collective : collectives_) collective.arrived = 0;
  if (launch_.sharedBytes)  // NaN in every floating-point format
    std::memset(shared_.get(), 0xff, sharedPitch_ * static_cast<size_t>(ranks_));
  if (hopper_) hopper_->start();
  for (int i = 0; i < threadCount_; ++i) {
    Thread& t = threads_[static_cast<size_t>(i)];
    t.rank = i / threadsPerBlock();
    t.index = i % threadsPerBlock();
    t.lane = i % 32;
    t.warp = i / 32;
    t.done = false;
    t.openCopies.clear();
    t.copyGroups.clear();
    t.hopper = {};
    t.fiber.prepare(stackOf(static_cast<size_t>(i)), stackBytes, threadEntry);
  }
  for (int warp = 0; warp < threadCount_ / 32; ++warp) {
    Thread* lanes[32];
    for (int lane = 0; lane < 32; ++lane) lanes[lane] = &threads_[static_cast<size_t>(warp * 32 + lane)];
    makeReady(lanes, 32);
  }
  // Where nothing can run, the hardware's own work goes on.
  do {
    while (error_.empty() && (thread = nextReady())) main_.switchTo(thread->fiber);
  } while (error_.empty() && hopper_ && hopper_->progress());
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
  if (self->hopper_) self->hopper_->ends();
  thread->done = true;
  --self->live_;
  --self->liveOf_[static_cast<size_t>(thread->rank)];
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
      return __builtin_ctzll(runnable_);
    case WarpOrder::highestFirst:
      return 63 - __builtin_clzll(runnable_);
    case WarpOrder::random:
      // Mostly the same warp for a while: runs that lead by several steps bring out more than a uniform choice.
      if ((runnable_ >> turn_ & 1) && random() % 16) return turn_;
      turn_ = static_cast<int>(random() % static_cast<uint32_t>(threadCount_ / 32));
      break;
    case WarpOrder::fair:
      break;
  }
  int warp = turn_;
  while (!(runnable_ >> warp & 1)) warp = (warp + 1) % maxWarps;
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
    runnable_ &= ~(uint64_t{1} << warp);
    if (mode_.order == WarpOrder::fair) turn_ = (warp + 1) % maxWarps;
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
  runnable_ |= uint64_t{1} << threads[0]->warp;
}

void Block::countShared(const void* address, int bytes, Place place) {
  if (!account_) return;
  const auto offset = static_cast<uint32_t>(static_cast<const unsigned char*>(address) - shared_.get());
  logs_[static_cast<size_t>(thread->warp)].add({place.file, place.line, thread->lane, bytes, offset});
}

void Block::barrier(Place place) {
  std::vector<Thread*>& waiting = atBarrier_[static_cast<size_t>(thread->rank)];
  if (!waiting.empty()) {
    const Place other = waiting[0]->place;
    if (other.line != place.line || std::strcmp(other.file, place.file))
      fail("threads of one block are at different barriers, the other one at " + text(other), place);
  }
  if (liveOf_[static_cast<size_t>(thread->rank)] != threadsPerBlock())
    fail("barrier after a thread of the block has ended", place);
  thread->place = place;
  waiting.push_back(thread);
  if (static_cast<int>(waiting.size()) < threadsPerBlock()) return park("a block barrier", place);
  for (WarpLog& log : logs_) log.flush(*account_);
  release(waiting);
}

void Block::namedBarrier(int id, int count, Place place) {
  if (id < 1 || id >= namedBarriers || count % 32 || count > threadsPerBlock())
    fail("there is no barrier " + std::to_string(id) + " of " + std::to_string(count) + " threads", place);
  std::vector<Thread*>& waiting = atNamedBarriers_[static_cast<size_t>(thread->rank * namedBarriers + id)];
  thread->place = place;
  waiting.push_back(thread);
  if (static_cast<int>(waiting.size()) < count) return park("a named barrier", place);
  if (account_) logs_[static_cast<size_t>(thread->warp)].flush(*account_);
  release(waiting);
}

// All that wait go on, the running thread among them: the last to arrive has no right to go first.
void Block::release(std::vector<Thread*>& waiting) {
  std::vector<Thread*> lanes;
  for (int warp = 0; warp < threadCount_ / 32; ++warp) {
    lanes.clear();
    for (Thread* one : waiting)
      if (one->warp == warp) lanes.push_back(one);
    makeReady(lanes.data(), static_cast<int>(lanes.size()));
  }
  waiting.clear();
  leave(false);
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
  error_ = std::string(launch_.name) + ": " + what + " (" + text(place) + ", block " + text(index()) + ", thread " +
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
  const uint64_t cluster = launch.options.cluster;
  for (uint64_t i = 0; i < blocks; i += cluster) {
    const uint64_t at = mode.lastBlockFirst ? blocks - cluster - i : i;
    one.run({static_cast<uint32_t>(at % launch.grid.x), static_cast<uint32_t>(at / launch.grid.x % launch.grid.y),
             static_cast<uint32_t>(at / launch.grid.x / launch.grid.y)});
  }
}

}  // namespace sepconv::emulator
