// The CPU executor's thread pool and its shared blocks under ThreadSanitizer: regions of all sizes, one after another
// and after pauses (workers asleep), nested regions, tasks that throw, pools that come and go, several pools side by
// side. Every task's result is plain memory written by one thread and read by another, so that a missing happens-before
// edge is a report. With the argument `seeded-race` two tasks write one variable: the check must then fail.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "../../native/cpu/kernel.h"
#include "../../native/cpu/shared_blocks.h"
#include "../../native/cpu/simd/table.h"

namespace sepconv::cpu {
// Kernels are not part of this program; the pool only hands the table on.
const SimdTable& simd() {
  static const SimdTable table{};
  return table;
}
void selectSimd(const SimdTable*) {}
}  // namespace sepconv::cpu

namespace {

using sepconv::cpu::runBlocks;
using sepconv::cpu::ThreadPool;

int failures = 0;
void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  ++failures;
}

// Tasks that another thread than the caller took: without any the rest would prove nothing.
std::atomic<int64_t> elsewhere{0};

void regions(ThreadPool& pool, std::mt19937& random, int rounds) {
  std::vector<int64_t> values(256);
  int64_t expected = 0, sum = 0;
  for (int round = 0; round < rounds; ++round) {
    const int64_t tasks = 1 + static_cast<int64_t>(random() % values.size());
    pool.run(tasks, [&](int64_t task, int thread) {
      auto* scratch = static_cast<int64_t*>(pool.scratch(thread, 64 + 64 * (task % 5)));
      scratch[0] = task * round;
      if (thread > 0) elsewhere.fetch_add(1, std::memory_order_relaxed);
      for (volatile int spin = 0; spin < 200; spin = spin + 1) continue;
      // A nested region runs on its caller's thread, with scratch of its own.
      if (task % 16 == 3)
        pool.run(3, [&](int64_t inner, int own) { static_cast<int64_t*>(pool.scratch(own, 64))[0] = inner; });
      values[static_cast<size_t>(task)] = scratch[0];
    });
    for (int64_t task = 0; task < tasks; ++task) {
      sum += values[static_cast<size_t>(task)];
      expected += task * round;
    }
    if (round % 97 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  expect(sum == expected, "sums of regions");
}

void blocks(ThreadPool& pool, std::mt19937& random, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    const int64_t count = 1 + random() % 9, parts = 1 + random() % 7;
    std::vector<std::vector<float>> operands(static_cast<size_t>(pool.threads()), std::vector<float>(16));
    std::vector<float> results(static_cast<size_t>(count * parts));
    runBlocks(
        pool, count, parts,
        [&](int64_t block, int thread) {
          for (float& x : operands[static_cast<size_t>(thread)]) x = static_cast<float>(block + round);
          return operands[static_cast<size_t>(thread)].data();
        },
        [&](int64_t block, int64_t part, const float* operand, int64_t following) {
          expect(following < 0 || (following == block + 1 && following < count), "the block that follows");
          results[static_cast<size_t>(block * parts + part)] = operand[part] * static_cast<float>(part + 1);
        });
    for (int64_t i = 0; i < count * parts; ++i)
      expect(
          results[static_cast<size_t>(i)] == static_cast<float>(i / parts + round) * static_cast<float>(i % parts + 1),
          "results of blocks");
  }
}

void exceptions(ThreadPool& pool, int rounds) {
  int caught = 0;
  for (int round = 0; round < rounds; ++round) {
    try {
      pool.run(50, [&](int64_t task, int) {
        if (task % 7 == round % 7) throw std::runtime_error("task");
      });
    } catch (const std::runtime_error&) {
      ++caught;
    }
  }
  expect(caught == rounds, "exceptions of tasks");
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937 random(7);
  if (argc > 1 && !std::strcmp(argv[1], "seeded-race")) {
    ThreadPool pool(4);
    int64_t shared = 0;
    for (int round = 0; round < 200; ++round)
      pool.run(64, [&](int64_t task, int) {
        std::this_thread::sleep_for(std::chrono::microseconds(20));  // so that other threads get a task
        shared += task;
      });
    return shared < 0;
  }
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    regions(pool, random, 2000);
    blocks(pool, random, 1000);
    exceptions(pool, 200);
    regions(pool, random, 200);
  }
  for (int i = 0; i < 50; ++i) ThreadPool(4).run(4, [](int64_t, int) {});
  std::vector<std::thread> owners;
  for (unsigned seed = 0; seed < 3; ++seed)
    owners.emplace_back([seed] {
      std::mt19937 own(seed);
      ThreadPool pool(3);
      regions(pool, own, 500);
      blocks(pool, own, 300);
    });
  for (std::thread& owner : owners) owner.join();
  std::printf("%lld tasks on other threads\n", static_cast<long long>(elsewhere.load()));
  expect(elsewhere.load() > 10000, "work on other threads");
  return failures ? 1 : 0;
}
