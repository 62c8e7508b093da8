// Sums over ranks that share memory, the way of one machine. MPI's own sum moves each byte into fragments, out of them
// and through the addition, in small pieces and by a thread that shares its core with the kernels; this one copies it
// once and adds: 0.7 to 1.0 ms for 3.0 of 2.9 MB over two ranks, beside a training step.
#pragma once
#include <cstdint>
#include <vector>

struct sepconv_mpi;

namespace sepconv::distributed {

class SharedSums {
 public:
  // More ranks read each other's segments more often than MPI's algorithms move them.
  static constexpr int kMostRanks = 4;

  // Collective: every rank calls it at the same place. Afterwards `usable` says the same on every rank.
  void open(const sepconv_mpi* mpi, int rank, int size, int localSize);
  bool usable() const { return !segments_.empty(); }

  struct Sum {
    float* values;
    int64_t count;
    int64_t at = 0;           // what is summed already
    void* request = nullptr;  // the barrier behind this rank's part of the piece
  };
  // Goes on with a sum as far as the other ranks have come; whether it is complete. A sum is begun when the one before
  // it is complete, on every rank in the same order. Elements are added in the order of the ranks, so all ranks get the
  // same bits. Returns an error code of MPI.
  int advance(Sum& sum, bool* complete);

 private:
  // Of a slot: the size of a bucket of gradients (BUCKET_BYTES in src/ops/allReduce.ts).
  static constexpr int64_t kSlotBytes = 1 << 19;
  static constexpr int64_t kSlotFloats = kSlotBytes / static_cast<int64_t>(sizeof(float));

  const sepconv_mpi* mpi_ = nullptr;
  int rank_ = 0;
  std::vector<const float*> segments_;
  float* own_ = nullptr;
  // Two slots: when the barrier of one piece has been passed, every rank has read the piece before it.
  int slot_ = 0;
};

}  // namespace sepconv::distributed
