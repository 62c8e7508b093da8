// Cooperative stacks: one emulated CUDA thread runs on one fiber until it must wait for others.
// On x86-64 a switch saves six registers by hand (about 30 ns, against 300 for swapcontext, which makes system calls);
// elsewhere ucontext serves. AddressSanitizer is told of every switch, so that overruns are reported in kernel code
// too.
#pragma once
#include <cstddef>

#if !defined(__x86_64__) || defined(SEPCONV_EMULATOR_UCONTEXT)
#define SEPCONV_FIBER_UCONTEXT 1
#include <ucontext.h>
#endif

namespace sepconv::emulator {

class Fiber {
 public:
  // Makes the fiber start at `entry` when it is next switched to. `entry` calls Fiber::started() first and never
  // returns.
  void prepare(char* stack, size_t bytes, void (*entry)());
  // Describes the calling thread's own stack, so that fibers can switch back to it.
  void adoptCurrentStack();
  // Runs `to` until something switches back; `last`: this fiber is never resumed.
  void switchTo(Fiber& to, bool last = false);
  static void started();

 private:
#if defined(SEPCONV_FIBER_UCONTEXT)
  ucontext_t context_;
#else
  void* stackPointer_ = nullptr;
#endif
  const void* stack_ = nullptr;
  size_t bytes_ = 0;
  void* sanitizerStack_ = nullptr;
};

// Stacks of this thread, kept between launches: the index-th one, 128 KiB, pages untouched until used.
constexpr size_t stackBytes = 128 << 10;
char* stackOf(size_t index);

}  // namespace sepconv::emulator
