// What compute capability 9.0 adds, on the host: mbarriers, TMA, clusters, wgmma, programmatic launches. Modelled:
// - Two images of shared memory. Threads write the generic one; TMA stores and wgmma read the asynchronous one, into
//   which fence.proxy.async carries what the fencing thread has written. A forgotten fence reads stale bytes or NaN.
// - TMA loads land when they are issued, at random, or only when no thread can run, first, last or in any order; until
//   then their destination is NaN. Each completes its bytes on the mbarrier of every block that it writes.
// - wgmma runs warp by warp, when it is issued or, in the late modes, when it is waited for; it reads shared memory and
//   the registers of A then, and its accumulators are NaN until the wait that retires it.
// - TMA stores read shared memory when they are issued or when they are waited for.
// - Registers that setmaxnreg asks for come out of those that others have given back.
// - In a programmatic launch nothing in device memory may be touched before griddepcontrol.wait.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <unordered_map>
#include <vector>

#include "../cuda/driver.h"

namespace sepconv::emulator {

class Block;
struct Thread;
struct Place;

// What encodeTensorMap writes on the emulated device.
struct EmulatedTensorMap {
  cuda::TensorMapRequest request;
  uint64_t mark;  // tells a map from anything else
};
void encodeTensorMap(void* map, const cuda::TensorMapRequest& request);

struct ThreadOfHopper {
  using Operations = std::vector<std::function<void()>>;
  struct Range {
    size_t offset, bytes;
  };
  std::vector<Range> written;  // to shared memory, not yet fenced; offsets from the cluster's first block
  Operations openStores;
  std::deque<Operations> storeGroups;
  bool dependenciesMet = false;
  int registers = 0;
  uint64_t clusterPhase = 0;  // that this thread waits for
};

// One lane's part of a wgmma: d[n / 2] += A[64, K] . B[K, n], K 16 for bfloat16 and 8 for tf32.
struct MatrixArgument {
  float* d;
  const uint32_t* a;  // nullptr: A by its descriptor
  uint64_t aDescriptor, bDescriptor;
  int n;
  bool tf32, aTransposed, bTransposed;
};

class Hopper {
 public:
  Hopper(Block& block, int ranks, int warps);
  void start();  // of a cluster
  // Lands one TMA load that is outstanding; false: there is none.
  bool progress();
  void ends();  // the running thread

  void wroteShared(const void* address, size_t bytes);
  void fenceAsyncProxy();

  void initialiseBarrier(void* barrier, int arrivals, Place place);
  void fenceBarrierInitialisation();
  void arrive(void* barrier, int rank, int64_t bytes, Place place);  // bytes: that are expected from now on
  void waitFor(void* barrier, int parity, Place place);

  // `ranks`: bit per block of the cluster that receives the box.
  void loadBox(const void* map, void* to, void* barrier, int x, int y, uint32_t ranks, Place place);
  void storeBox(const void* map, const void* from, int x, int y, Place place);
  void commitStores();
  void waitStores(int newest);

  void clusterArrive(Place place);
  void clusterWait(Place place);
  void* remote(void* shared, int rank, Place place);

  void setRegisters(int count, bool more, Place place);

  // By the last lane of a warp to arrive.
  void issue(void* const* arguments, Place place);
  void fenceProducts();
  void commitProducts();
  void waitProducts(int newest);

 private:
  struct Barrier {
    int expected = 0, pending = 0;
    int64_t bytes = 0;
    uint64_t phase = 0;
    bool published = false;  // to the asynchronous proxy and the cluster
    Thread* by = nullptr;
    std::vector<Thread*> waiting;
  };
  struct Load {
    EmulatedTensorMap map;
    size_t to, barrier;  // within a block
    int x, y;
    uint32_t ranks;
  };
  struct Accumulators {
    float* d[32];
    int n, jobs;
    std::vector<float> values;  // [16][n]
  };
  struct Product {
    MatrixArgument argument;
    const uint32_t* a[32];
    int rank, quarter;  // of 64 rows
  };
  struct Warp {
    bool fenced = false;
    std::vector<Product> open;
    std::deque<std::vector<Product>> groups;
    std::vector<Accumulators> accumulators;
  };

  size_t offsetOf(const void* shared, const char* what, Place place) const;
  Barrier& barrierAt(size_t offset, Place place);
  void complete(Barrier& barrier);
  void land(const Load& load);
  void put(int rank, size_t offset, const void* bytes, size_t count);
  size_t boxAddress(const cuda::TensorMapRequest& request, size_t start, uint32_t row, uint32_t chunk) const;
  void perform(Warp& warp, const Product& product);
  void loadOperand(float (&out)[16][256], int rank, uint64_t descriptor, bool transposed, bool tf32, size_t first,
                   size_t lines) const;

  Block& block_;
  const int ranks_;
  std::vector<unsigned char> asynchronous_;  // the other image of the cluster's shared memory
  std::unordered_map<size_t, Barrier> barriers_;
  std::deque<Load> loads_;
  std::vector<Warp> warps_;
  std::vector<int64_t> freeRegisters_;  // by rank
  std::vector<Thread*> wantRegisters_;
  int clusterArrived_ = 0;
  uint64_t clusterPhase_ = 0;
  std::vector<Thread*> atCluster_;
};

// Nothing in device memory before griddepcontrol.wait.
void checkDependencies(Place place);

}  // namespace sepconv::emulator
