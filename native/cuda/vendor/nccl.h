// The part of NCCL 2 (from 2.14 on) that sums over the ranks of a job, declared by hand, and this process's place among
// them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "library.h"

namespace sepconv::cuda {

struct Nccl {
  using Communicator = struct NcclCommunicator*;
  struct Id {
    char bytes[128];
  };
  // ncclResult_t, ncclDataType_t, ncclRedOp_t
  static constexpr int success = 0, inProgress = 7, typeFloat = 7, sum = 0;
  static constexpr int leastVersion = 21400;  // 2.14: sums in recorded graphs beside other work, errors without waiting

#define SEPCONV_NCCL(F)                                                                              \
  F(int, ncclGetVersion, (int*))                                                                     \
  F(int, ncclGetUniqueId, (Id*))                                                                     \
  F(int, ncclCommInitRank, (Communicator*, int ranks, Id, int rank))                                 \
  F(int, ncclAllReduce,                                                                              \
    (const void* from, void* to, size_t count, int type, int operation, Communicator, void* stream)) \
  F(int, ncclGroupStart, (void))                                                                     \
  F(int, ncclGroupEnd, (void))                                                                       \
  F(int, ncclCommGetAsyncError, (Communicator, int*))                                                \
  F(int, ncclCommAbort, (Communicator))                                                              \
  F(int, ncclCommDestroy, (Communicator))                                                            \
  F(const char*, ncclGetErrorString, (int))
#define SEPCONV_MEMBER_NCCL(RESULT, NAME, PARAMETERS) RESULT(*NAME) PARAMETERS;
  SEPCONV_NCCL(SEPCONV_MEMBER_NCCL)

  int version() const;
};

// Throws ERR_DEVICE where NCCL is not to be found, or too old.
const Nccl& nccl();
std::string ncclVersion();

// This process as one of several that sum over their GPUs. At most one per process, since a rank has one device.
class NcclRanks {
 public:
  // On the device that is current. Waits for all other ranks. Throws ERR_RANK.
  NcclRanks(const Nccl::Id& id, int size, int rank);
  ~NcclRanks();
  NcclRanks(const NcclRanks&) = delete;
  NcclRanks& operator=(const NcclRanks&) = delete;

  int size() const { return size_; }
  struct Piece {
    const float* from;
    float* to;
    size_t count;
  };
  // Enqueues the sums over all ranks, as one exchange. Every rank asks for the same ones in the same order.
  void sum(const std::vector<Piece>& pieces, void* stream);
  // While the host waits for the device: throws ERR_RANK where a rank has left, with what it said where MPI has brought
  // word of it; what the device is still waiting for is given up.
  void watch();

 private:
  void check(int result, const char* call);
  [[noreturn]] void lost(const std::string& what);

  const Nccl& api_;
  const int size_;
  std::mutex mutex_;
  Nccl::Communicator communicator_ = nullptr;
};

// nullptr before joinRanks.
NcclRanks* ncclRanks();
void setNcclRanks(std::unique_ptr<NcclRanks> ranks);

}  // namespace sepconv::cuda
