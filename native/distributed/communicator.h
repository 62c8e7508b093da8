// The ranks of an MPI job as this process sees them. All calls of MPI are made by one thread, the progress thread,
// which keeps reductions going while kernels compute; whoever wants something posts it there. MPI itself is reached
// through native/mpi/shim.h.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "../kernels/collectives.h"
#include "../kernels/kernel.h"
#include "shared_sums.h"

struct sepconv_mpi;

namespace sepconv::distributed {

using Bytes = std::vector<uint8_t>;

struct Message {
  int from = 0, tag = 0;
  Bytes bytes;
};

// Of the sums that programs asked for, since the last look.
struct Statistics {
  uint64_t reductions = 0, bytes = 0;
  double busySeconds = 0;  // while at least one sum was under way
  double waitSeconds = 0;  // of these, while a program stood still for one
};

class Communicator final : public Collectives {
 public:
  // Tags of messages that belong to the communicator itself; others are free from `kFirstTag` on.
  static constexpr int kFailure = 0, kFarewell = 1, kFirstTag = 16;

  using Completed = std::function<void(const std::optional<Error>& error, Bytes result)>;
  // `message` is called on the progress thread with what other ranks send.
  using Receiver = std::function<void(Message message)>;

  // Loads the shim and starts MPI, which waits for all other ranks. Throws ERR_MPI: no library, another version than
  // the shim was compiled for, too low a thread level.
  explicit Communicator(const std::string& shim);
  // Without close() this leaves MPI running: the launcher then ends the job.
  ~Communicator() override;

  int rank() const { return rank_; }
  int size() const override { return size_; }
  int localRank() const { return localRank_; }
  int localSize() const { return localSize_; }
  const std::string& library() const { return library_; }
  int threadLevel() const { return threadLevel_; }

  // For the event loop; `completed` is called on the progress thread.
  void allGather(Bytes own, Completed completed);
  void gather(Bytes own, Completed completed);  // the result is empty but on rank 0
  void broadcast(Bytes bytes, Completed completed);
  void send(int to, int tag, Bytes bytes, Completed completed);
  void setReceiver(Receiver receiver);

  // Tells every other rank that this one cannot go on; theirs and this one's pending and later calls end with ERR_RANK.
  void fail(const std::string& reason);
  // Ends MPI: together where all is well. After a failure the ranks take leave of each other, waiting some seconds at
  // most, and the job is aborted, which does not return.
  void close(int status);

  void start(float* values, int64_t count) override;
  void wait(float* values) override;
  void check() const override;
  Statistics takeStatistics();

 private:
  enum class Kind { allReduce, allGather, gather, broadcast, send };
  struct Operation {
    Kind kind = Kind::send;
    int to = 0, tag = 0;
    SharedSums::Sum sum = {};  // allReduce
    Bytes own, all;
    void* request = nullptr;
    Completed completed;
    bool done = false;
    std::optional<Error> error;
  };
  using Entry = std::shared_ptr<Operation>;
  enum class State { starting, running, closing, ended };

  void serve();
  void begin(Operation& operation);
  // Whether it is complete; `moved` becomes true where it came further.
  bool advance(Operation& operation, bool* moved);
  void post(Entry entry);
  void finish(const Entry& entry, std::optional<Error> error);
  // Whether there was a message.
  bool receive();
  void leave(int status);
  void rest(std::chrono::steady_clock::time_point moved);
  Error broken() const;
  Error inWords(int code, const char* what) const;

  const sepconv_mpi* mpi_ = nullptr;
  int rank_ = 0, size_ = 1, localRank_ = 0, localSize_ = 1, threadLevel_ = 0;
  std::string library_;
  std::thread thread_;

  mutable std::mutex mutex_;
  std::condition_variable wake_, done_;
  State state_ = State::starting;
  std::optional<Error> startError_;
  std::deque<Entry> queue_;
  std::map<const float*, Entry> sums_;  // started, not yet waited for
  Receiver receiver_;
  std::optional<std::string> failure_;  // why the job cannot go on
  int waiting_ = 0;                     // programs that stand still
  int farewells_ = 0;
  int status_ = 0;
  Statistics statistics_;

  // Progress thread only.
  std::vector<Entry> active_;
  SharedSums shared_;
};

}  // namespace sepconv::distributed
