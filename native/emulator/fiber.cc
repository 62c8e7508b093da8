#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SEPCONV_FIBER_SANITIZED 1
#endif

#if !defined(SEPCONV_FIBER_UCONTEXT)
// void sepconvSwitch(void** saved, void* next): callee-saved registers of the System V ABI go onto the old stack, those
// of the new one come off it.
extern "C" void sepconvSwitch(void** saved, void* next);
__asm__(R"(
.text
.type sepconvSwitch,@function
.hidden sepconvSwitch
.globl sepconvSwitch
sepconvSwitch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sepconvSwitch,.-sepconvSwitch
)");
#endif

namespace sepconv::emulator {
namespace {

void announceSwitch([[maybe_unused]] void** saved, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t bytes) {
#if defined(SEPCONV_FIBER_SANITIZED)
  __sanitizer_start_switch_fiber(saved, stack, bytes);
#endif
}

void completeSwitch([[maybe_unused]] void* saved) {
#if defined(SEPCONV_FIBER_SANITIZED)
  __sanitizer_finish_switch_fiber(saved, nullptr, nullptr);
#endif
}

class Stacks {
 public:
  char* at(size_t index) {
    while (stacks_.size() <= index) {
      void* stack =
          mmap(nullptr, stackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED) throw std::bad_alloc();
      stacks_.push_back(static_cast<char*>(stack));
    }
    return stacks_[index];
  }
  ~Stacks() {
    for (char* stack : stacks_) munmap(stack, stackBytes);
  }

 private:
  std::vector<char*> stacks_;
};

}  // namespace

char* stackOf(size_t index) {
  static thread_local Stacks stacks;
  return stacks.at(index);
}

void Fiber::prepare(char* stack, size_t bytes, void (*entry)()) {
  stack_ = stack;
  bytes_ = bytes;
  sanitizerStack_ = nullptr;
#if defined(SEPCONV_FIBER_SANITIZED)
  // A launch that ended in an error left its threads' frames, and their red zones, where they stood.
  __asan_unpoison_memory_region(stack, bytes);
#endif
#if defined(SEPCONV_FIBER_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#else
  auto top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15});
  *--top = nullptr;  // a function is entered with the stack pointer 8 beyond a multiple of 16
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stackPointer_ = top;
#endif
}

void Fiber::adoptCurrentStack() {
#if defined(SEPCONV_FIBER_SANITIZED)
  pthread_attr_t attributes;
  void* stack = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &bytes_);
  pthread_attr_destroy(&attributes);
  stack_ = stack;
#endif
}

void Fiber::switchTo(Fiber& to, bool last) {
  announceSwitch(last ? nullptr : &sanitizerStack_, to.stack_, to.bytes_);
#if defined(SEPCONV_FIBER_UCONTEXT)
  swapcontext(&context_, &to.context_);
#else
  sepconvSwitch(&stackPointer_, to.stackPointer_);
#endif
  completeSwitch(sanitizerStack_);
}

void Fiber::started() { completeSwitch(nullptr); }

}  // namespace sepconv::emulator
