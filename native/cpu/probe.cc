// What this machine can do at most, for the roofline of `sepconv bench`: multiply-adds from registers, and copies of a
// given footprint. Both run on all threads at once and report the best of several short rounds: a limit is what was
// reached once. The arithmetic is compiled per instruction set by the target attribute, with vectors as the kernels
// have them: one more accumulator chain than latency times throughput asks for (5 cycles, 2 per cycle).
#include "probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sepconv::cpu {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kChains = 12;      // accumulators: AVX2 has 16 registers, two hold the factors
constexpr int kSteps = 1 << 16;  // multiply-adds per accumulator and call
constexpr double kRound = 4e-3;  // seconds
constexpr int kRounds = 6;

template <class V>
inline __attribute__((always_inline)) float chains(float seed) {
  V sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = V{} + (seed + static_cast<float>(i));
  const V factor = V{} + 0.999f, term = V{} + seed;
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term;
  }
  V total = {};
  for (int i = 0; i < kChains; ++i) total += sums[i];
  return total[0];
}

struct Arithmetic {
  float (*run)(float);
  int width;  // multiply-adds per instruction
};

typedef float Vector16 __attribute__((vector_size(16)));
[[maybe_unused]] float runBase(float seed) { return chains<Vector16>(seed); }

#if defined(__x86_64__)
typedef float Vector32 __attribute__((vector_size(32)));
typedef float Vector64 __attribute__((vector_size(64)));
__attribute__((target("avx2,fma"))) float runAvx2(float seed) { return chains<Vector32>(seed); }
__attribute__((target("avx512f,avx512vl,fma,prefer-vector-width=512"))) float runAvx512(float seed) {
  return chains<Vector64>(seed);
}
__attribute__((target("avx512f,avx512vl,avx512bw,avx512bf16,prefer-vector-width=512"))) float runDots(float seed) {
  __m512 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(seed + static_cast<float>(i));
  const __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.999f), _mm512_set1_ps(seed));
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], factor, factor);
  }
  __m512 total = sums[0];
  for (int i = 1; i < kChains; ++i) total = _mm512_add_ps(total, sums[i]);
  return _mm512_cvtss_f32(total);
}
#endif

Arithmetic arithmetic(const std::string& isa, bool bfloat16) {
#if defined(__x86_64__)
  if (isa == "avx512bf16" && bfloat16) return {runDots, 32};
  if (isa == "avx512" || isa == "avx512bf16") return {runAvx512, 16};
  if (isa == "avx2" || isa == "wide") return {runAvx2, 8};
#endif
  (void)isa, (void)bfloat16;
  return {runBase, 4};
}

// Runs `work(thread)` on all threads at once, again and again for `kRound` seconds a round.
// Returns the most calls per second and thread pool that a round reached.
template <class Work>
double callsPerSecond(int threads, const Work& work) {
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::atomic<int> ready{0};
    std::atomic<double> rate{0};
    const auto body = [&](int thread) {
      work(thread);
      ready.fetch_add(1);
      while (ready.load() < threads) std::this_thread::yield();
      const Clock::time_point start = Clock::now();
      double seconds = 0;
      int64_t calls = 0;
      do {
        work(thread);
        ++calls;
        seconds = std::chrono::duration<double>(Clock::now() - start).count();
      } while (seconds < kRound);
      double sum = rate.load();
      while (!rate.compare_exchange_weak(sum, sum + static_cast<double>(calls) / seconds)) {
      }
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(body, thread);
    body(0);
    for (std::thread& other : others) other.join();
    best = std::max(best, rate.load());
  }
  return best;
}

}  // namespace

double peakGflops(const std::string& isa, int threads, bool bfloat16) {
  const Arithmetic unit = arithmetic(isa, bfloat16);
  std::vector<float> sink(static_cast<size_t>(threads) * 16);
  const double calls = callsPerSecond(threads, [&](int thread) {
    float& slot = sink[static_cast<size_t>(thread) * 16];
    slot = unit.run(slot * 1e-30f + 1.0f);
  });
  return calls * 2.0 * kSteps * kChains * unit.width / 1e9;
}

double copyGigabytesPerSecond(size_t footprint, int threads) {
  // A source and a target of half the footprint each, shared out over the threads.
  const size_t bytes = std::max<size_t>(footprint / 2 / static_cast<size_t>(threads), 4096);
  std::vector<std::unique_ptr<char[]>> blocks;
  for (int thread = 0; thread < threads; ++thread) {
    blocks.emplace_back(new char[2 * bytes]);
    std::memset(blocks.back().get(), thread + 1, 2 * bytes);
  }
  const double calls = callsPerSecond(threads, [&](int thread) {
    char* block = blocks[static_cast<size_t>(thread)].get();
    std::memcpy(block + bytes, block, bytes);
    asm volatile("" : : "r"(block) : "memory");
  });
  return calls * 2.0 * static_cast<double>(bytes) / 1e9;
}

}  // namespace sepconv::cpu
