#include "hopper.h"

#include <algorithm>
#include <cstring>

#include "block.h"

namespace sepconv::emulator {
namespace {

constexpr uint64_t mapMark = 0x74656e736f726d61;
constexpr size_t swizzledRow = 128;
constexpr int registersOfMultiprocessor = 65536;

// The 128-byte swizzle: 16-byte chunks change places within 128 bytes by the number of the row modulo 8.
size_t swizzled(size_t address) { return address ^ ((address >> 7 & 7) << 4); }

float decode(const unsigned char* from, bool tf32) {
  uint32_t bits = 0;
  if (tf32) {
    std::memcpy(&bits, from, 4);
    bits &= 0xffffe000u;  // what the hardware ignores
  } else {
    uint16_t half;
    std::memcpy(&half, from, 2);
    bits = uint32_t{half} << 16;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

uint32_t roundedToTf32(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x - x == 0.f ? (bits + 0x1000) & 0xffffe000u : bits;
}

}  // namespace

void encodeTensorMap(void* map, const cuda::TensorMapRequest& request) {
  static_assert(sizeof(EmulatedTensorMap) <= cuda::tensorMapBytes, "fits where the driver's map does");
  const size_t element = bytesPerElement(request.dtype);
  // What cuTensorMapEncodeTiled refuses.
  if (reinterpret_cast<uintptr_t>(request.data) % 16 || request.rowBytes % 16 || !request.rows || !request.columns ||
      !request.boxRows || request.boxRows > 256 || !request.boxColumns || request.boxColumns > 256 ||
      request.boxColumns * element > swizzledRow || request.boxColumns * element % 16 ||
      request.rowBytes < request.columns * element)
    throw Error("ERR_INTERNAL", "emulator: a tensor map that the driver would refuse");
  EmulatedTensorMap made{request, mapMark};
  std::memcpy(map, &made, sizeof made);
}

Hopper::Hopper(Block& block, int ranks, int warps) : block_(block), ranks_(ranks) {
  asynchronous_.resize(block.sharedPitch() * static_cast<size_t>(ranks));
  warps_.resize(static_cast<size_t>(warps));
}

void Hopper::start() {
  std::fill(asynchronous_.begin(), asynchronous_.end(), static_cast<unsigned char>(0xff));
  barriers_.clear();
  loads_.clear();
  for (Warp& warp : warps_) warp = {};
  freeRegisters_.assign(static_cast<size_t>(ranks_), 0);
  wantRegisters_.clear();
  clusterArrived_ = 0;
  clusterPhase_ = 0;
  atCluster_.clear();
}

void Hopper::ends() {
  const Place place = thread->place;
  if (!thread->hopper.openStores.empty() || !thread->hopper.storeGroups.empty())
    block_.fail("a thread ends before its stores have read shared memory", place);
  const Warp& warp = warps_[static_cast<size_t>(thread->warp)];
  if (!warp.open.empty() || !warp.groups.empty()) block_.fail("a warp ends before its products are complete", place);
}

size_t Hopper::offsetOf(const void* shared, const char* what, Place place) const {
  const auto at = static_cast<const unsigned char*>(shared) - block_.sharedOf(0);
  if (at < 0 || static_cast<size_t>(at) >= asynchronous_.size())
    block_.fail(std::string(what) + " is not in shared memory", place);
  return static_cast<size_t>(at);
}

// ---- The two images of shared memory.

void Hopper::wroteShared(const void* address, size_t bytes) {
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(address) - block_.sharedOf(0));
  thread->hopper.written.push_back({offset, bytes});
}

void Hopper::fenceAsyncProxy() {
  for (const auto& [offset, bytes] : thread->hopper.written)
    std::memcpy(asynchronous_.data() + offset, block_.sharedOf(0) + offset, bytes);
  thread->hopper.written.clear();
}

// What TMA writes shows in both: generic reads are ordered behind it by the mbarrier.
void Hopper::put(int rank, size_t offset, const void* bytes, size_t count) {
  std::memcpy(block_.sharedOf(rank) + offset, bytes, count);
  std::memcpy(asynchronous_.data() + static_cast<size_t>(rank) * block_.sharedPitch() + offset, bytes, count);
}

// ---- mbarriers

void Hopper::initialiseBarrier(void* barrier, int arrivals, Place place) {
  const size_t offset = offsetOf(barrier, "an mbarrier", place);
  if (offset % 8 || arrivals < 1) block_.fail("a bad mbarrier", place);
  Barrier made;
  made.expected = made.pending = arrivals;
  made.by = thread;
  barriers_[offset] = made;
}

void Hopper::fenceBarrierInitialisation() {
  for (auto& [offset, barrier] : barriers_)
    if (barrier.by == thread) barrier.published = true;
}

Hopper::Barrier& Hopper::barrierAt(size_t offset, Place place) {
  const auto found = barriers_.find(offset);
  if (found == barriers_.end()) block_.fail("an mbarrier is used before it is initialised", place);
  return found->second;
}

void Hopper::complete(Barrier& barrier) {
  if (barrier.pending || barrier.bytes) return;
  ++barrier.phase;
  barrier.pending = barrier.expected;
  std::vector<Thread*> waiting;
  waiting.swap(barrier.waiting);
  for (Thread* one : waiting) block_.makeReady(one);
}

void Hopper::arrive(void* barrier, int rank, int64_t bytes, Place place) {
  size_t offset = offsetOf(barrier, "an mbarrier", place);
  if (rank >= 0) {
    if (rank >= ranks_) block_.fail("there is no such block in the cluster", place);
    if (block_.ended(rank)) block_.fail("an mbarrier of a block that has ended", place);
    offset = offset % block_.sharedPitch() + static_cast<size_t>(rank) * block_.sharedPitch();
  }
  Barrier& at = barrierAt(offset, place);
  if (rank >= 0 && rank != thread->rank && !at.published)
    block_.fail("another block's mbarrier without a fence behind its initialisation", place);
  if (!at.pending) block_.fail("more arrivals at an mbarrier than it expects", place);
  --at.pending;
  at.bytes += bytes;
  complete(at);
}

void Hopper::waitFor(void* barrier, int parity, Place place) {
  if (block_.mode().order == WarpOrder::random && block_.random() % 4 == 0) progress();
  const size_t offset = offsetOf(barrier, "an mbarrier", place);
  while (static_cast<int>(barrierAt(offset, place).phase & 1) == parity) {
    barrierAt(offset, place).waiting.push_back(thread);
    block_.wait("an mbarrier", place);
  }
}

// ---- TMA

size_t Hopper::boxAddress(const cuda::TensorMapRequest& request, size_t start, uint32_t row, uint32_t chunk) const {
  const size_t rowBytes = request.boxColumns * bytesPerElement(request.dtype);
  return swizzled(start + row * rowBytes + chunk * 16);
}

void Hopper::loadBox(const void* map, void* to, void* barrier, int x, int y, uint32_t ranks, Place place) {
  checkDependencies(place);
  Load load;
  std::memcpy(&load.map, map, sizeof load.map);
  if (load.map.mark != mapMark) block_.fail("a TMA load by something that is not a tensor map", place);
  load.to = offsetOf(to, "the destination of a TMA load", place) % block_.sharedPitch();
  load.barrier = offsetOf(barrier, "an mbarrier", place) % block_.sharedPitch();
  load.x = x;
  load.y = y;
  load.ranks = ranks;
  const cuda::TensorMapRequest& request = load.map.request;
  const size_t bytes = size_t{request.boxRows} * request.boxColumns * bytesPerElement(request.dtype);
  if (load.to % 1024) block_.fail("the destination of a TMA load is not at a multiple of 1024 bytes", place);
  if (load.to + bytes > block_.sharedBytes()) block_.fail("a TMA load beyond shared memory", place);
  if (!ranks || ranks >> ranks_) block_.fail("a multicast to blocks that the cluster does not have", place);
  const int64_t rows = std::min<int64_t>(y + int64_t{request.boxRows}, static_cast<int64_t>(request.rows)) - y;
  const int64_t columns = std::min<int64_t>(x + int64_t{request.boxColumns}, static_cast<int64_t>(request.columns)) - x;
  const auto element = static_cast<int64_t>(bytesPerElement(request.dtype));
  for (int64_t row = 0; row < rows && columns > 0; ++row)
    block_.countGlobal(static_cast<const unsigned char*>(request.data) +
                           (y + row) * static_cast<int64_t>(request.rowBytes) + x * element,
                       static_cast<int>(columns * element), false);
  for (int rank = 0; rank < ranks_; ++rank) {
    if (!(ranks >> rank & 1)) continue;
    if (block_.ended(rank)) block_.fail("a TMA load into a block that has ended", place);
    if (!barrierAt(load.barrier + static_cast<size_t>(rank) * block_.sharedPitch(), place).published)
      block_.fail("a TMA load on an mbarrier without a fence behind its initialisation", place);
  }
  if (!block_.mode().lateCopies && block_.mode().order != WarpOrder::random) return land(load);
  const std::vector<unsigned char> unknown(bytes, 0xff);
  for (int rank = 0; rank < ranks_; ++rank)
    if (ranks >> rank & 1) put(rank, load.to, unknown.data(), bytes);
  loads_.push_back(load);
}

void Hopper::land(const Load& load) {
  const cuda::TensorMapRequest& request = load.map.request;
  const size_t element = bytesPerElement(request.dtype), perChunk = 16 / element;
  const auto chunks = static_cast<uint32_t>(request.boxColumns / perChunk);
  for (int rank = 0; rank < ranks_; ++rank) {
    if (!(load.ranks >> rank & 1)) continue;
    for (uint32_t row = 0; row < request.boxRows; ++row)
      for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
        unsigned char bytes[16] = {};
        const int64_t y = load.y + int64_t{row}, x = load.x + static_cast<int64_t>(chunk * perChunk);
        if (y >= 0 && y < static_cast<int64_t>(request.rows))
          for (size_t e = 0; e < perChunk; ++e) {
            const int64_t at = x + static_cast<int64_t>(e);
            if (at < 0 || at >= static_cast<int64_t>(request.columns)) continue;
            std::memcpy(bytes + e * element,
                        static_cast<const unsigned char*>(request.data) + static_cast<size_t>(y) * request.rowBytes +
                            static_cast<size_t>(at) * element,
                        element);
            if (request.roundsToTf32) {
              uint32_t bits;
              std::memcpy(&bits, bytes + e * element, 4);
              bits = roundedToTf32(bits);
              std::memcpy(bytes + e * element, &bits, 4);
            }
          }
        put(rank, boxAddress(request, load.to, row, chunk), bytes, 16);
      }
    Barrier& barrier = barriers_.at(load.barrier + static_cast<size_t>(rank) * block_.sharedPitch());
    barrier.bytes -= static_cast<int64_t>(size_t{request.boxRows} * request.boxColumns * element);
    complete(barrier);
  }
}

bool Hopper::progress() {
  if (loads_.empty()) return false;
  size_t which = 0;
  if (block_.mode().order == WarpOrder::highestFirst) which = loads_.size() - 1;
  if (block_.mode().order == WarpOrder::random) which = block_.random() % loads_.size();
  const Load load = loads_[which];
  loads_.erase(loads_.begin() + static_cast<std::ptrdiff_t>(which));
  land(load);
  return true;
}

void Hopper::storeBox(const void* map, const void* from, int x, int y, Place place) {
  checkDependencies(place);
  EmulatedTensorMap made;
  std::memcpy(&made, map, sizeof made);
  if (made.mark != mapMark) block_.fail("a TMA store by something that is not a tensor map", place);
  const size_t start = offsetOf(from, "the source of a TMA store", place);
  const cuda::TensorMapRequest request = made.request;
  const size_t element = bytesPerElement(request.dtype);
  if (start % 1024) block_.fail("the source of a TMA store is not at a multiple of 1024 bytes", place);
  if (start % block_.sharedPitch() + size_t{request.boxRows} * request.boxColumns * element > block_.sharedBytes())
    block_.fail("a TMA store from beyond shared memory", place);
  const auto perform = [this, request, start, x, y, element] {
    for (uint32_t row = 0; row < request.boxRows; ++row)
      for (uint32_t column = 0; column < request.boxColumns; ++column) {
        const int64_t toRow = y + int64_t{row}, toColumn = x + int64_t{column};
        if (toRow < 0 || toRow >= static_cast<int64_t>(request.rows) || toColumn < 0 ||
            toColumn >= static_cast<int64_t>(request.columns))
          continue;
        const size_t chunk = column * element / 16, within = column * element % 16;
        unsigned char* const to = static_cast<unsigned char*>(request.data) +
                                  static_cast<size_t>(toRow) * request.rowBytes +
                                  static_cast<size_t>(toColumn) * element;
        std::memcpy(to, asynchronous_.data() + boxAddress(request, start, row, static_cast<uint32_t>(chunk)) + within,
                    element);
        block_.countGlobal(to, static_cast<int>(element), true);
      }
  };
  if (block_.mode().lateCopies)
    thread->hopper.openStores.emplace_back(perform);
  else
    perform();
}

void Hopper::commitStores() {
  thread->hopper.storeGroups.push_back(std::move(thread->hopper.openStores));
  thread->hopper.openStores.clear();
}

void Hopper::waitStores(int newest) {
  auto& groups = thread->hopper.storeGroups;
  while (static_cast<int>(groups.size()) > newest) {
    for (const auto& store : groups.front()) store();
    groups.pop_front();
  }
}

// ---- Clusters

void Hopper::clusterArrive(Place place) {
  if (thread->hopper.clusterPhase > clusterPhase_) block_.fail("arrives twice at the cluster's barrier", place);
  thread->hopper.clusterPhase = clusterPhase_ + 1;
  if (++clusterArrived_ < ranks_ * block_.threadsPerBlock()) return;
  clusterArrived_ = 0;
  ++clusterPhase_;
  std::vector<Thread*> waiting;
  waiting.swap(atCluster_);
  for (Thread* one : waiting) block_.makeReady(one);
}

void Hopper::clusterWait(Place place) {
  if (!thread->hopper.clusterPhase) block_.fail("waits at the cluster's barrier without having arrived", place);
  while (clusterPhase_ < thread->hopper.clusterPhase) {
    atCluster_.push_back(thread);
    block_.wait("the cluster's barrier", place);
  }
}

void* Hopper::remote(void* shared, int rank, Place place) {
  if (rank < 0 || rank >= ranks_) block_.fail("there is no such block in the cluster", place);
  if (block_.ended(rank)) block_.fail("shared memory of a block that has ended", place);
  return block_.sharedOf(rank) + offsetOf(shared, "an address", place) % block_.sharedPitch();
}

// ---- Registers

void Hopper::setRegisters(int count, bool more, Place place) {
  int& own = thread->hopper.registers;
  // What the compiler may give each thread of a block that has the multiprocessor to itself.
  if (!own) own = std::min(248, registersOfMultiprocessor / block_.threadsPerBlock() / 8 * 8);
  if (count % 8 || count < 24 || count > 256) block_.fail("setmaxnreg takes multiples of 8 from 24 to 256", place);
  if (more ? count < own : count > own)
    block_.fail(std::string("setmaxnreg would ") + (more ? "lower " : "raise ") + std::to_string(own) + " to " +
                    std::to_string(count),
                place);
  int64_t& free = freeRegisters_[static_cast<size_t>(thread->rank)];
  while (more && free < count - own) {
    wantRegisters_.push_back(thread);
    block_.wait("registers that others give back", place);
  }
  free -= count - own;
  own = count;
  if (more) return;
  std::vector<Thread*> waiting;
  waiting.swap(wantRegisters_);
  for (Thread* one : waiting) block_.makeReady(one);
}

// ---- wgmma

void Hopper::issue(void* const* arguments, Place place) {
  Warp& warp = warps_[static_cast<size_t>(thread->warp)];
  Product product;
  product.argument = *static_cast<const MatrixArgument*>(arguments[0]);
  product.rank = thread->rank;
  product.quarter = thread->index / 32 % 4;
  const MatrixArgument& first = product.argument;
  if (!warp.fenced) block_.fail("a wgmma without wgmma.fence since its registers were free", place);
  Accumulators* accumulators = nullptr;
  for (Accumulators& known : warp.accumulators)
    if (known.d[0] == first.d) accumulators = &known;
  if (accumulators && accumulators->n != first.n) block_.fail("one wgmma's accumulators overlap another's", place);
  if (!accumulators) {
    warp.accumulators.push_back({{}, first.n, 0, std::vector<float>(static_cast<size_t>(16 * first.n))});
    accumulators = &warp.accumulators.back();
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const MatrixArgument*>(arguments[lane]);
    if (own.aDescriptor != first.aDescriptor || own.bDescriptor != first.bDescriptor)
      block_.fail("lanes of one warp give a wgmma different descriptors", place);
    product.a[lane] = own.a;
    accumulators->d[lane] = own.d;
    if (accumulators->jobs) continue;
    for (int i = 0; i < first.n / 2; ++i) {
      const int row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      accumulators->values[static_cast<size_t>(row * first.n + column)] = own.d[i];
      std::memset(own.d + i, 0xff, sizeof(float));
    }
  }
  ++accumulators->jobs;
  if (!block_.mode().lateCopies) perform(warp, product);
  warp.open.push_back(product);
}

void Hopper::fenceProducts() { warps_[static_cast<size_t>(thread->warp)].fenced = true; }

void Hopper::commitProducts() {
  Warp& warp = warps_[static_cast<size_t>(thread->warp)];
  warp.groups.push_back(std::move(warp.open));
  warp.open.clear();
}

void Hopper::waitProducts(int newest) {
  Warp& warp = warps_[static_cast<size_t>(thread->warp)];
  while (static_cast<int>(warp.groups.size()) > newest) {
    for (const Product& product : warp.groups.front()) {
      if (block_.mode().lateCopies) perform(warp, product);
      for (Accumulators& known : warp.accumulators)
        if (known.d[0] == product.argument.d) --known.jobs;
    }
    warp.groups.pop_front();
  }
  for (size_t i = 0; i < warp.accumulators.size();) {
    Accumulators& done = warp.accumulators[i];
    if (done.jobs) {
      ++i;
      continue;
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int e = 0; e < done.n / 2; ++e)
        done.d[lane][e] =
            done.values[static_cast<size_t>((lane / 4 + e / 2 % 2 * 8) * done.n + e / 4 * 8 + lane % 4 * 2 + e % 2)];
    warp.fenced = false;
    warp.accumulators.erase(warp.accumulators.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

// Elements [k][line] of an operand in the asynchronous image, from line `first` on: PTX ISA, "Shared memory matrix
// layout" of wgmma, 128-byte swizzle, 16 bytes at a time. Along depth (not transposed) groups of 8 lines are `stride`
// apart; transposed, 64 lines are in a row of 128 bytes, the next 64 `leading` further, and groups of 8 along depth
// `stride` apart.
void Hopper::loadOperand(float (&out)[16][256], int rank, uint64_t descriptor, bool transposed, bool tf32, size_t first,
                         size_t lines) const {
  const size_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
               stride = (descriptor >> 32 & 0x3fff) << 4;
  const size_t element = tf32 ? 4 : 2, perChunk = 16 / element, depth = tf32 ? 8 : 16;
  const unsigned char* image = asynchronous_.data() + static_cast<size_t>(rank) * block_.sharedPitch();
  const auto chunkAt = [&](size_t address) {
    const size_t at = swizzled(address);
    if (at + 16 > block_.sharedBytes()) block_.fail("a wgmma reads beyond shared memory", thread->place);
    return image + at;
  };
  if (transposed) {
    for (size_t k = 0; k < depth; ++k)
      for (size_t l = first; l < first + lines; l += perChunk) {
        const unsigned char* chunk =
            chunkAt(start + l % 64 * element + l / 64 * leading + k % 8 * swizzledRow + k / 8 * stride);
        for (size_t e = 0; e < perChunk; ++e) out[k][l - first + e] = decode(chunk + e * element, tf32);
      }
    return;
  }
  for (size_t l = first; l < first + lines; ++l)
    for (size_t k = 0; k < depth; k += perChunk) {
      const unsigned char* chunk = chunkAt(start + l % 8 * swizzledRow + l / 8 * stride + k * element);
      for (size_t e = 0; e < perChunk; ++e) out[k + e][l - first] = decode(chunk + e * element, tf32);
    }
}

void Hopper::perform(Warp& warp, const Product& product) {
  const MatrixArgument& m = product.argument;
  const int depth = m.tf32 ? 8 : 16;
  if (m.bDescriptor >> 62 != 1 || (!m.a && m.aDescriptor >> 62 != 1))
    block_.fail("a wgmma whose layout is not swizzled by 128 bytes", thread->place);
  if (m.tf32 && (m.aTransposed || m.bTransposed)) block_.fail("wgmma transposes 16-bit operands only", thread->place);
  static thread_local float a[16][256], b[16][256];  // [k][line]
  loadOperand(b, product.rank, m.bDescriptor, m.bTransposed, m.tf32, 0, static_cast<size_t>(m.n));
  if (!m.a)
    loadOperand(a, product.rank, m.aDescriptor, m.aTransposed, m.tf32, static_cast<size_t>(product.quarter) * 16, 16);
  for (int row = 0; m.a && row < 16; ++row)
    for (int k = 0; k < depth; ++k) {
      // As mma.sync lays A out, per warp.
      const int within = m.tf32 ? k % 4 : k % 8 / 2, half = m.tf32 ? k / 4 : k / 8;
      const auto* word = reinterpret_cast<const unsigned char*>(product.a[row % 8 * 4 + within] + row / 8 + half * 2);
      a[k][row] = decode(word + (m.tf32 ? 0 : k % 2 * 2), m.tf32);
    }
  for (Accumulators& accumulators : warp.accumulators) {
    if (accumulators.d[0] != m.d) continue;
    for (int row = 0; row < 16; ++row) {
      float* sums = accumulators.values.data() + row * m.n;
      for (int k = 0; k < depth; ++k)
        for (int column = 0; column < m.n; ++column) sums[column] += a[k][row] * b[k][column];
    }
  }
}

void checkDependencies(Place place) {
  if (block->launch().options.programmatic && !thread->hopper.dependenciesMet)
    block->fail("device memory is touched before griddepcontrol.wait", place);
}

}  // namespace sepconv::emulator
