#include "nccl.h"

#include <chrono>
#include <thread>

#include "../../kernels/collectives.h"
#include "../../kernels/kernel.h"

namespace sepconv::cuda {
namespace {

// Not destroyed with the process: by then the driver may be gone. Its executor gives it back.
NcclRanks* joined = nullptr;
// How long to wait for word of what has happened to the rank that NCCL misses.
constexpr auto wordTime = std::chrono::seconds(2);

}  // namespace

int Nccl::version() const {
  int version = 0;
  if (ncclGetVersion(&version)) throw Error("ERR_DEVICE", "NCCL does not tell its version");
  return version;
}

const Nccl& nccl() {
  static const Nccl api = [] {
    const Library library("NCCL", {"libnccl.so.2", "libnccl.so"});
    Nccl bound;
#define SEPCONV_BIND(RESULT, NAME, PARAMETERS) library.bind(bound.NAME, #NAME);
    SEPCONV_NCCL(SEPCONV_BIND)
    if (const int version = bound.version(); version < Nccl::leastVersion)
      throw Error("ERR_DEVICE", "NCCL is too old: 2.14 is needed, this one calls itself " + std::to_string(version));
    return bound;
  }();
  return api;
}

std::string ncclVersion() {
  const int version = nccl().version();
  return std::to_string(version / 10000) + "." + std::to_string(version % 10000 / 100) + "." +
         std::to_string(version % 100);
}

NcclRanks* ncclRanks() { return joined; }
void setNcclRanks(std::unique_ptr<NcclRanks> ranks) {
  delete joined;
  joined = ranks.release();
}

NcclRanks::NcclRanks(const Nccl::Id& id, int size, int rank) : api_(nccl()), size_(size) {
  check(api_.ncclCommInitRank(&communicator_, size, id, rank), "ncclCommInitRank");
}

NcclRanks::~NcclRanks() {
  if (communicator_) api_.ncclCommDestroy(communicator_);
}

void NcclRanks::sum(const std::vector<Piece>& pieces, void* stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!communicator_) throw Error("ERR_RANK", "NCCL: another rank has left");
  check(api_.ncclGroupStart(), "ncclGroupStart");
  int first = Nccl::success;
  for (const Piece& piece : pieces) {
    const int result =
        api_.ncclAllReduce(piece.from, piece.to, piece.count, Nccl::typeFloat, Nccl::sum, communicator_, stream);
    if (first == Nccl::success) first = result;
  }
  const int ended = api_.ncclGroupEnd();
  check(first, "ncclAllReduce");
  check(ended, "ncclGroupEnd");
}

void NcclRanks::watch() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!communicator_) throw Error("ERR_RANK", "NCCL: another rank has left");
  std::string word;
  try {
    if (Collectives* all = collectives()) all->check();
  } catch (const Error& error) {
    word = error.what();
  }
  if (!word.empty()) {
    api_.ncclCommAbort(communicator_);
    communicator_ = nullptr;
    throw Error("ERR_RANK", word);
  }
  int state = Nccl::success;
  check(api_.ncclCommGetAsyncError(communicator_, &state), "ncclCommGetAsyncError");
  check(state, "a sum over the ranks");
}

void NcclRanks::check(int result, const char* call) {
  if (result == Nccl::success || result == Nccl::inProgress) return;
  lost(std::string(call) + ": " + api_.ncclGetErrorString(result));
}

void NcclRanks::lost(const std::string& what) {
  if (communicator_) api_.ncclCommAbort(communicator_);
  communicator_ = nullptr;
  const auto until = std::chrono::steady_clock::now() + wordTime;
  for (Collectives* all = collectives(); all && std::chrono::steady_clock::now() < until;) {
    all->check();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  throw Error("ERR_RANK", "NCCL: " + what + "; NCCL_DEBUG=INFO tells more");
}

}  // namespace sepconv::cuda
