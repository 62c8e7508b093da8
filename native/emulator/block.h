// Runs one thread block, or one cluster of blocks side by side, after another on the calling host thread: CUDA threads
// are fibers, and barriers and warp collectives are rendezvous points whose last arriver computes for all. A thread
// runs until it must wait, so what the hardware would interleave is explored by the adversary modes below rather than
// by chance. Covered: missing or divergent barriers, copies waited for too late or overwritten too early, reads of
// shared memory that nobody wrote (it starts as NaN), accesses beyond a buffer or misaligned, blocks that depend on
// each other's order, deadlock; and what hopper.h says of TMA, mbarriers and wgmma. Blind to: time, coalescing,
// registers, fused multiply-add contraction.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "../cuda/driver.h"
#include "account.h"
#include "fiber.h"
#include "hopper.h"

namespace sepconv::emulator {

// Which of the warps that can run runs next: the one that waited longest, or unfairly, to bring out missing barriers.
enum class WarpOrder : uint8_t { fair, lowestFirst, highestFirst, random };

// One way to schedule a kernel; a correct kernel gives the same bits under all of them.
struct Mode {
  const char* name;
  WarpOrder order;
  bool lateCopies;     // asynchronous copies land when they are waited for, not when they are issued
  bool shuffledLanes;  // the lanes of a warp run in random order
  bool lastBlockFirst;
  bool counts = false;  // memory traffic and bank conflicts (account.h), several times slower
};
constexpr Mode counting{"counting", WarpOrder::fair, false, false, false, true};
constexpr Mode modes[] = {
    {"fair", WarpOrder::fair, false, false, false},
    {"fair-late-shuffled", WarpOrder::fair, true, true, false},
    {"lowest-first", WarpOrder::lowestFirst, false, false, false},
    {"highest-first-late", WarpOrder::highestFirst, true, false, true},
    {"random-late-shuffled", WarpOrder::random, true, true, true},
    {"random", WarpOrder::random, false, false, false},
};
constexpr int modeCount = sizeof modes / sizeof modes[0];

// Where in the kernel's source an operation stands, for messages.
struct Place {
  const char* file;
  int line;
};

struct PendingCopy {
  unsigned char* destination;
  const unsigned char* source;
  int bytes, validBytes;  // what is beyond validBytes becomes zero
};

struct Thread {
  Fiber fiber;
  int index = 0, lane = 0;
  int rank = 0;  // of its block in the cluster
  int warp = 0;  // among those of all blocks of the cluster
  bool done = false;
  const char* waitingAt = "";
  Place place{};
  std::vector<PendingCopy> openCopies;
  std::deque<std::vector<PendingCopy>> copyGroups;
  ThreadOfHopper hopper;
};

// A warp collective in flight; arguments[lane] points into that lane's own stack.
struct Collective {
  using Body = void (*)(void* const* arguments);
  Body body = nullptr;
  Place place{};
  uint32_t arrived = 0;
  void* arguments[32];
};

class Block {
 public:
  Block(const cuda::Launch& launch, const Mode& mode, uint32_t seed);
  ~Block() {
    if (!account_) return;
    account_->sectorsRead += sectorsRead_.size();
    account_->sectorsWritten += sectorsWritten_.size();
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  // The block at `index`, and with it the others of its cluster, which follow in x.
  void run(cuda::Extent index);

  // Called by the running thread.
  cuda::Extent index() const;
  cuda::Extent grid() const { return launch_.grid; }
  const cuda::Launch& launch() const { return launch_; }
  const Mode& mode() const { return mode_; }
  unsigned char* shared();
  unsigned char* sharedOf(int rank) { return shared_.get() + static_cast<size_t>(rank) * sharedPitch_; }
  size_t sharedPitch() const { return sharedPitch_; }
  size_t sharedBytes() const { return launch_.sharedBytes; }
  int threadsPerBlock() const { return threadCount_ / ranks_; }
  bool ended(int rank) const { return liveOf_[static_cast<size_t>(rank)] == 0; }
  Hopper& hopper() { return *hopper_; }
  bool tracksProxies() const { return hopper_ != nullptr; }
  void countGlobal(const void* address, int bytes, bool written) {
    if (!account_) return;
    (written ? account_->bytesWritten : account_->bytesRead) += static_cast<uint64_t>(bytes);
    std::unordered_set<uintptr_t>& sectors = written ? sectorsWritten_ : sectorsRead_;
    const auto first = reinterpret_cast<uintptr_t>(address);
    for (uintptr_t sector = first / sectorBytes; sector <= (first + static_cast<uintptr_t>(bytes) - 1) / sectorBytes;
         ++sector)
      sectors.insert(sector);
  }
  void countShared(const void* address, int bytes, Place place);
  void barrier(Place place);
  // bar.sync id, count: `count` threads of the block.
  void namedBarrier(int id, int count, Place place);
  // The running thread waits until somebody makes it ready.
  void wait(const char* what, Place place) { park(what, place); }
  void makeReady(Thread* one) { makeReady(&one, 1); }
  uint32_t random();
  // Blocks until all 32 lanes of the warp are here; `body` then runs once.
  void collective(void* argument, Collective::Body body, const char* what, Place place);
  // Ends the launch with an error that names kernel, block, thread and place.
  [[noreturn]] void fail(const std::string& what, Place place);

 private:
  struct Queue {
    std::vector<Thread*> threads;
    size_t head = 0;
  };

  static void threadEntry();
  Thread* nextReady();
  int nextWarp();
  void release(std::vector<Thread*>& waiting);
  void makeReady(Thread* const* threads, int count);
  void park(const char* what, Place place);
  void leave(bool last);
  [[noreturn]] void reportDeadlock();

  const cuda::Launch& launch_;
  const Mode& mode_;
  uint32_t randomState_;
  cuda::Extent index_{};  // of the cluster's first block
  int ranks_;             // blocks of the cluster
  int threadCount_;       // of all of them
  std::vector<Thread> threads_;
  std::vector<Collective> collectives_;                // one per warp: lanes cannot be at two at once
  std::vector<std::vector<Thread*>> atBarrier_;        // by rank
  std::vector<std::vector<Thread*>> atNamedBarriers_;  // by rank and number
  std::vector<int> liveOf_;                            // by rank
  Queue ready_[64];                                    // per warp
  uint64_t runnable_ = 0;                              // bit per warp: its queue is not empty
  int turn_ = 0;
  int live_ = 0;
  size_t sharedPitch_;  // from one block's shared memory to the next one's
  std::unique_ptr<unsigned char, void (*)(void*)> shared_;
  std::unique_ptr<Hopper> hopper_;  // where the launch says that it uses the asynchronous proxy
  Account* account_ = nullptr;      // where this launch is counted
  std::unordered_set<uintptr_t> sectorsRead_, sectorsWritten_;  // that this launch has touched
  std::vector<WarpLog> logs_;                                   // one per warp
  Fiber main_;
  std::string error_;
};

inline thread_local Block* block = nullptr;
inline thread_local Thread* thread = nullptr;

inline cuda::Extent Block::index() const {
  return {index_.x + static_cast<uint32_t>(thread->rank), index_.y, index_.z};
}
inline unsigned char* Block::shared() { return sharedOf(thread->rank); }

Account& accountOf(const char* launch);
// Runs the whole grid; throws sepconv::Error (ERR_INTERNAL) when the kernel misbehaves.
void runGrid(const cuda::Launch& launch, const Mode& mode, uint32_t seed);

}  // namespace sepconv::emulator
