// The CPU executor's side of a kernel: a Kernel is made once per call of a program (all shape arithmetic, blocking and
// checks happen in its factory) and run any number of times. Work is split into tasks by shape alone, never by the
// number of threads, so that the same inputs give the same bits on one thread or many.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>

#include "../kernels/kernel.h"

namespace sepconv::cpu {

// One step of a spin loop: gives the other thread of the core its turn.
inline void pauseThread() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Fixed set of worker threads. `run(tasks, body)` calls body(task, thread) for every task in [0, tasks), the calling
// thread taking part, and returns when all are done. Tasks are handed out one by one from an atomic counter: order and
// thread are arbitrary, so a task must write only what belongs to it. `thread` < threads() selects per-thread scratch.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  int threads() const;
  template <class Body>
  void run(int64_t tasks, const Body& body) {
    runErased(
        tasks,
        [](const void* context, int64_t task, int thread) { (*static_cast<const Body*>(context))(task, thread); },
        &body);
  }
  // At least `bytes` of 64-byte-aligned scratch of this thread; its content does not outlive the call of body.
  void* scratch(int thread, size_t bytes);

 private:
  using Trampoline = void (*)(const void* context, int64_t task, int thread);
  void runErased(int64_t tasks, Trampoline trampoline, const void* context);
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

struct Arguments {
  const void* const* inputs;  // nullptr for an absent optional input
  size_t inputCount;          // optional inputs at the end may be left out altogether
  void* const* outputs;
  void* workspace;  // workspaceBytes() bytes, 64-byte aligned, uninitialised
  ThreadPool& pool;

  template <class T = float>
  const T* input(size_t index) const {
    return index < inputCount ? static_cast<const T*>(inputs[index]) : nullptr;
  }
  template <class T = float>
  T* output(size_t index = 0) const {
    return static_cast<T*>(outputs[index]);
  }
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  // Scratch for results of one task that another task reads, such as partial sums; independent of the number of
  // threads.
  virtual size_t workspaceBytes() const { return 0; }
  virtual void run(const Arguments& arguments) const = 0;
};

using Factory = std::unique_ptr<Kernel> (*)(const CallDescription& call);
using Registry = std::unordered_map<std::string, Factory>;

// Each kernels/*.cc registers its factories here; see registry.cc.
void registerGemmKernels(Registry& registry);           // kernels/pointwise.cc, kernels/conv2d.cc, kernels/separable.cc
void registerDepthwiseKernels(Registry& registry);      // kernels/depthwise.cc
void registerNormalisationKernels(Registry& registry);  // kernels/normalisation.cc
void registerPoolingKernels(Registry& registry);        // kernels/pooling.cc
void registerReductionKernels(Registry& registry);      // kernels/reduction.cc
void registerElementwiseKernels(Registry& registry);    // kernels/elementwise.cc
void registerLossKernels(Registry& registry);           // kernels/loss.cc
void registerShapeKernels(Registry& registry);          // kernels/shape.cc
void registerUpdateKernels(Registry& registry);         // kernels/update.cc
void registerOptimizerKernels(Registry& registry);      // kernels/optimizer.cc
void registerAllReduceKernels(Registry& registry);      // kernels/all_reduce.cc
const Registry& kernels();

}  // namespace sepconv::cpu
