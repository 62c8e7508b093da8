#include "shared_sums.h"

#include <algorithm>
#include <cstring>

#include "../mpi/shim.h"

namespace sepconv::distributed {

namespace {

// Of each segment at a time: sums of three and more ranks pass through `to` again while it is in L1.
constexpr int64_t kBlock = 2048;

void add(float* to, const std::vector<const float*>& from, int64_t offset, int64_t count) {
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    const float* first = from[0] + offset;
    for (size_t rank = 1; rank < from.size(); ++rank) {
      const float* next = from[rank] + offset;
      for (int64_t i = begin; i < end; ++i) to[i] = first[i] + next[i];
      first = to;
    }
  }
}

}  // namespace

void SharedSums::open(const sepconv_mpi* mpi, int rank, int size, int localSize) {
  if (size < 2 || size > kMostRanks || localSize != size) return;
  std::vector<void*> segments(static_cast<size_t>(size));
  if (mpi->share(2 * kSlotBytes, segments.data())) return;
  mpi_ = mpi;
  rank_ = rank;
  own_ = static_cast<float*>(segments[static_cast<size_t>(rank)]);
  for (void* segment : segments) segments_.push_back(static_cast<const float*>(segment));
}

int SharedSums::advance(Sum& sum, bool* complete) {
  while (sum.at < sum.count) {
    const int64_t left = sum.count - sum.at;
    const int64_t pieces = (left + kSlotFloats - 1) / kSlotFloats;
    const int64_t count = (left + pieces - 1) / pieces;
    const int64_t offset = slot_ * kSlotFloats;
    if (!sum.request) {
      std::memcpy(own_ + offset, sum.values + sum.at, static_cast<size_t>(count) * sizeof(float));
      mpi_->fence();
      if (const int code = mpi_->barrier(SEPCONV_MPI_DATA, &sum.request)) return code;
    }
    int passed = 0;
    if (const int code = mpi_->test(sum.request, &passed)) {
      sum.request = nullptr;  // gone with the error
      return code;
    }
    if (!passed) {
      *complete = false;
      return 0;
    }
    sum.request = nullptr;
    mpi_->fence();
    add(sum.values + sum.at, segments_, offset, count);
    sum.at += count;
    slot_ ^= 1;
  }
  *complete = true;
  return 0;
}

}  // namespace sepconv::distributed
