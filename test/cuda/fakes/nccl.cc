// A stand-in for libnccl.so.2 on the emulated device: ranks are processes of one machine that add up in a file which
// all of them have mapped. Sums run on the emulated stream (native/emulator/beside.h), in the order of ranks, and end
// with an error where a rank has died or this one's communicator was aborted.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <ctime>

#include "fake.h"

#ifndef FAKE_NCCL_VERSION
#define FAKE_NCCL_VERSION 22703
#endif

namespace {

constexpr int kMostRanks = 8, kRemoteError = 6, kInvalidUsage = 5;
constexpr size_t kCapacity = size_t{8} << 20;  // floats per rank

struct Id {
  char bytes[128];
};
struct Shared {
  std::atomic<int> joined;
  std::atomic<int> pids[kMostRanks];
  std::atomic<uint64_t> arrived[kMostRanks], read[kMostRanks];  // sums that the rank has given to, and taken from
  uint64_t counts[kMostRanks];
};
struct Communicator {
  int size, rank;
  Shared* shared;
  float* values;  // [kMostRanks][kCapacity]
  std::atomic<int> state{0};
  std::atomic<bool> aborted{false};
  uint64_t sums = 0;
};
struct Stream {
  void (*enqueue)(Stream*, void (*run)(void*), void* argument);
};
struct Sum {
  Communicator* communicator;
  const float* from;
  float* to;
  size_t count;
};

int depth = 0;

// Whether it came true before a rank died or this one gave up.
template <class Condition>
bool await(Communicator& c, const Condition& condition) {
  for (;;) {
    if (c.aborted) return false;
    bool all = true;
    for (int i = 0; i < c.size; ++i) {
      if (condition(i)) continue;
      all = false;
      const int pid = c.shared->pids[i];
      if (pid && kill(pid, 0) && errno == ESRCH) return false;
    }
    if (all) return true;
    const timespec pause{0, 50000};
    nanosleep(&pause, nullptr);
  }
}

// Kept, for a recorded one runs again.
void run(void* argument) {
  const Sum& sum = *static_cast<Sum*>(argument);
  Communicator& c = *sum.communicator;
  if (c.state) return;
  const uint64_t number = ++c.sums;
  std::memcpy(c.values + static_cast<size_t>(c.rank) * kCapacity, sum.from, sum.count * sizeof(float));
  c.shared->counts[c.rank] = sum.count;
  c.shared->arrived[c.rank] = number;
  if (!await(c, [&](int i) { return c.shared->arrived[i] >= number; })) {
    c.state = kRemoteError;
    return;
  }
  for (int i = 0; i < c.size; ++i)
    if (c.shared->counts[i] != sum.count) c.state = kInvalidUsage;
  for (size_t k = 0; k < sum.count; ++k) {
    float total = 0.f;
    for (int i = 0; i < c.size; ++i) total += c.values[static_cast<size_t>(i) * kCapacity + k];
    sum.to[k] = total;
  }
  c.shared->read[c.rank] = number;
  // Its place is free again once all have read it.
  if (!await(c, [&](int i) { return c.shared->read[i] >= number; })) c.state = kRemoteError;
}

}  // namespace

extern "C" {
int ncclGetVersion(int* version) { return *version = FAKE_NCCL_VERSION, 0; }
int ncclGetUniqueId(Id* id) {
  std::memset(id, 0, sizeof *id);
  std::snprintf(id->bytes, sizeof id->bytes, "/tmp/fake-nccl-%d-%ld", static_cast<int>(getpid()),
                static_cast<long>(std::time(nullptr)));
  return log("ncclGetUniqueId"), 0;
}
int ncclCommInitRank(Communicator** made, int size, Id id, int rank) {
  if (size > kMostRanks) return kInvalidUsage;
  const size_t header = (sizeof(Shared) + 4095) / 4096 * 4096;
  const size_t bytes = header + kMostRanks * kCapacity * sizeof(float);
  const int file = open(id.bytes, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes))) return 2;
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped == MAP_FAILED) return 2;
  auto* c = new Communicator{size, rank, static_cast<Shared*>(mapped),
                             reinterpret_cast<float*>(static_cast<char*>(mapped) + header)};
  c->shared->pids[rank] = static_cast<int>(getpid());
  ++c->shared->joined;
  if (!await(*c, [&](int) { return c->shared->joined >= size; })) return kRemoteError;
  unlink(id.bytes);
  *made = c;
  char text[64];
  std::snprintf(text, sizeof text, "ncclCommInitRank %d of %d", rank, size);
  return log(text), 0;
}
int ncclGroupStart() { return ++depth, 0; }
int ncclGroupEnd() { return --depth < 0 ? kInvalidUsage : 0; }
int ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, Communicator* c, Stream* stream) {
  if (type != 7 || operation != 0 || count > kCapacity) return kInvalidUsage;
  if (c->state) return c->state;
  char text[64];
  std::snprintf(text, sizeof text, "ncclAllReduce %zu", count);
  log(text);
  stream->enqueue(stream, run, new Sum{c, static_cast<const float*>(from), static_cast<float*>(to), count});
  return 0;
}
int ncclCommGetAsyncError(Communicator* c, int* state) { return *state = c->state, 0; }
int ncclCommAbort(Communicator* c) { return log("ncclCommAbort"), c->aborted = true, 0; }
int ncclCommDestroy(Communicator* c) { return log("ncclCommDestroy"), c->aborted = true, 0; }
const char* ncclGetErrorString(int error) {
  return error == kRemoteError ? "remote process exited or there was a network error" : "made for a test";
}
}
