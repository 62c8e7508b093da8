// Runs one thread block after another on the calling host thread: a block's CUDA threads are fibers, and barriers and
// warp collectives are rendezvous points whose last arriver computes for all. A thread runs until it must wait, so what
// the hardware would interleave is explored by the adversary modes below rather than by chance. Covered: missing or
// divergent barriers, copies waited for too late or overwritten too early, reads of shared memory that nobody wrote (it
// starts as NaN), accesses beyond a buffer or misaligned, blocks that depend on each other's order, deadlock. Blind to:
// time, coalescing, registers, fused multiply-add contraction.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../cuda/driver.h"
#include "account.h"
#include "fiber.h"

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
  int index = 0, lane = 0, warp = 0;
  bool done = false;
  const char* waitingAt = "";
  Place place{};
  std::vector<PendingCopy> openCopies;
  std::deque<std::vector<PendingCopy>> copyGroups;
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
  void run(cuda::Extent index);

  // Called by the running thread.
  cuda::Extent index() const { return index_; }
  cuda::Extent grid() const { return launch_.grid; }
  const Mode& mode() const { return mode_; }
  unsigned char* shared() { return shared_.get(); }
  size_t sharedBytes() const { return launch_.sharedBytes; }
  void countGlobal(int bytes, bool written) {
    if (account_) (written ? account_->bytesWritten : account_->bytesRead) += static_cast<uint64_t>(bytes);
  }
  void countShared(const void* address, int bytes, Place place);
  void barrier(Place place);
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
  uint32_t random();
  void makeReady(Thread* const* threads, int count);
  void park(const char* what, Place place);
  void leave(bool last);
  [[noreturn]] void reportDeadlock();

  const cuda::Launch& launch_;
  const Mode& mode_;
  uint32_t randomState_;
  cuda::Extent index_{};
  int threadCount_;
  std::vector<Thread> threads_;
  std::vector<Collective> collectives_;  // one per warp: lanes cannot be at two at once
  std::vector<Thread*> atBarrier_;
  Queue ready_[32];        // per warp
  uint32_t runnable_ = 0;  // bit per warp: its queue is not empty
  int turn_ = 0;
  int live_ = 0;
  std::unique_ptr<unsigned char, void (*)(void*)> shared_;
  Account* account_ = nullptr;  // where this launch is counted
  std::vector<WarpLog> logs_;   // one per warp
  Fiber main_;
  std::string error_;
};

inline thread_local Block* block = nullptr;
inline thread_local Thread* thread = nullptr;

Account& accountOf(const char* launch);
// Runs the whole grid; throws sepconv::Error (ERR_INTERNAL) when the kernel misbehaves.
void runGrid(const cuda::Launch& launch, const Mode& mode, uint32_t seed);

}  // namespace sepconv::emulator
