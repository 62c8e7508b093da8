// What kernels know of the other ranks of a job: sums over all of them, under way while other kernels compute.
// Implemented by native/distributed; a process that is alone has none.
#pragma once
#include <cstdint>

namespace sepconv {

class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual int size() const = 0;
  // Begins to replace `count` values by their sums over all ranks, in an order that depends on count and size alone;
  // the memory belongs to the sum until wait(values) has returned. Every rank starts the same sums in the same order.
  virtual void start(float* values, int64_t count) = 0;
  // Throws ERR_RANK, naming the rank that left, or ERR_MPI.
  virtual void wait(float* values) = 0;
  // Throws ERR_RANK where a rank has left.
  virtual void check() const = 0;
};

// Of this process; nullptr where there is none.
Collectives* collectives();
void setCollectives(Collectives* all);

}  // namespace sepconv
