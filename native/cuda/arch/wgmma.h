// wgmma (sm_90a): products of a warpgroup, four warps whose first has a number divisible by 4, with operands in shared
// memory, where TMA has put them with the 128-byte swizzle, and float32 accumulators in registers. Each thread calls
// every function here together with its warp. They work asynchronously: between multiply and the wait that retires it
// nobody may touch the accumulators, the registers of A, or the shared memory that it reads.
//
// Accumulators: warp w of the warpgroup holds rows 16w to 16w + 15 of D[64, N]; lane l, with g = l / 4 and t = l % 4,
// holds in d[4j] and d[4j + 1] columns 8j + 2t and 8j + 2t + 1 of row g, in d[4j + 2] and d[4j + 3] the same of row
// g + 8. A in registers: as multiplyBf16 and multiplyTf32 (mma.h) take it.
#pragma once
#include "mbarrier.h"
#include "mma.h"

namespace sepconv::arch {

// Along which way an operand's rows of 128 bytes run: `depth`: a row holds 64 elements of bfloat16 (32 of tf32) of one
// line; `lines`: 64 lines of one depth, bfloat16 only ("transposed": the hardware turns 16-bit operands alone).
enum class Major : uint8_t { depth, lines };

// Names an operand in shared memory, `bytes` from a tile that starts at a multiple of 1024: along depth, groups of
// eight lines are 1024 bytes apart; along lines, groups of eight depths are, and the next 64 lines are `linesBytes`
// further. A step of one instruction's depth adds 32 bytes along depth, 2048 along lines.
template <class T>
__device__ __forceinline__ uint64_t describeOperand(const Shared<T>& tile, int bytes, int linesBytes ARCH_PLACE) {
#if defined(__CUDACC__)
  const uint32_t address = sharedAddress(tile.data) + bytes;
#else
  if (bytes % 16 || linesBytes % 16) emulator::block->fail("a wgmma operand is misaligned", place);
  const auto address =
      static_cast<uint32_t>(reinterpret_cast<const unsigned char*>(tile.data) - emulator::block->shared() + bytes);
#endif
  return uint64_t{address >> 4 & 0x3fff} | uint64_t{static_cast<uint32_t>(linesBytes) >> 4 & 0x3fff} << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// wgmma.fence: orders registers before the products that follow: before the first one, and whenever threads have
// touched accumulators or registers of A since the last.
__device__ __forceinline__ void fenceProducts(ARCH_PLACE_ONLY) {
#if defined(__CUDACC__)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  emulator::fenceProducts(place);
#endif
}

// wgmma.commit_group: ends a group of products.
__device__ __forceinline__ void commitProducts(ARCH_PLACE_ONLY) {
#if defined(__CUDACC__)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emulator::commitProducts(place);
#endif
}

// wgmma.wait_group: until at most `newest` groups are outstanding.
template <int newest>
__device__ __forceinline__ void waitProducts(ARCH_PLACE_ONLY) {
#if defined(__CUDACC__)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(newest) : "memory");
#else
  emulator::waitProducts(newest, place);
#endif
}

// An empty asm that reads and writes `x`: the compiler keeps accumulators where they are between asynchronous products.
template <int COUNT>
__device__ __forceinline__ void keepInRegisters(float (&x)[COUNT]) {
#if defined(__CUDACC__)
  ARCH_UNROLL
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(x[i])::"memory");
#else
  (void)x;
#endif
}

#if defined(__CUDACC__)
// clang-format off
// The registers of D[64, 2 C]: SEPCONV_DC in the text of the instruction, SEPCONV_RC as its operands.
#define SEPCONV_D48 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47"
#define SEPCONV_D64 \
  SEPCONV_D48 ", " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SEPCONV_D92 \
  SEPCONV_D64 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, " \
  "%84, %85, %86, %87, %88, %89, %90, %91"
#define SEPCONV_D128 \
  SEPCONV_D92 ", " \
  "%92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, " \
  "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, " \
  "%126, %127"
#define SEPCONV_R4_(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SEPCONV_R48 \
  SEPCONV_R4_(0), SEPCONV_R4_(4), SEPCONV_R4_(8), SEPCONV_R4_(12), SEPCONV_R4_(16), SEPCONV_R4_(20), \
  SEPCONV_R4_(24), SEPCONV_R4_(28), SEPCONV_R4_(32), SEPCONV_R4_(36), SEPCONV_R4_(40), SEPCONV_R4_(44)
#define SEPCONV_R64 \
  SEPCONV_R48, \
  SEPCONV_R4_(48), SEPCONV_R4_(52), SEPCONV_R4_(56), SEPCONV_R4_(60)
#define SEPCONV_R92 \
  SEPCONV_R64, \
  SEPCONV_R4_(64), SEPCONV_R4_(68), SEPCONV_R4_(72), SEPCONV_R4_(76), SEPCONV_R4_(80), SEPCONV_R4_(84), \
  SEPCONV_R4_(88)
#define SEPCONV_R128 \
  SEPCONV_R92, \
  SEPCONV_R4_(92), SEPCONV_R4_(96), SEPCONV_R4_(100), SEPCONV_R4_(104), SEPCONV_R4_(108), SEPCONV_R4_(112), \
  SEPCONV_R4_(116), SEPCONV_R4_(120), SEPCONV_R4_(124)
// clang-format on

// One overload per N: the numbers of the operands behind the accumulators are part of the text.
#define SEPCONV_WGMMA(N, C, O0, O1, O2, O3, O4, O5)                                                                 \
  template <class Format, Major A, Major B>                                                                         \
  __device__ __forceinline__ void multiplyInstruction(float(&d)[C], uint64_t a, uint64_t b) {                       \
    if constexpr (Format::tf32)                                                                                     \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k8.f32.tf32.tf32 {" SEPCONV_D##C "}, %" #O0 ", %" #O1    \
                                                                                            ", 1, 1, 1;"            \
                   : SEPCONV_R##C                                                                                   \
                   : "l"(a), "l"(b));                                                                               \
    else                                                                                                            \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" SEPCONV_D##C                        \
                   "}, %" #O0 ", %" #O1 ", 1, 1, 1, %" #O2 ", %" #O3 ";"                                            \
                   : SEPCONV_R##C                                                                                   \
                   : "l"(a), "l"(b), "n"(static_cast<int>(A == Major::lines)),                                      \
                     "n"(static_cast<int>(B == Major::lines)));                                                     \
  }                                                                                                                 \
  template <class Format, Major B>                                                                                  \
  __device__ __forceinline__ void multiplyInstruction(float(&d)[C], const uint32_t(&a)[4], uint64_t b) {            \
    if constexpr (Format::tf32)                                                                                     \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k8.f32.tf32.tf32 {" SEPCONV_D##C                         \
                   "}, {%" #O0 ", %" #O1 ", %" #O2 ", %" #O3 "}, %" #O4 ", 1, 1, 1;"                                \
                   : SEPCONV_R##C                                                                                   \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                           \
    else                                                                                                            \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" SEPCONV_D##C                        \
                   "}, {%" #O0 ", %" #O1 ", %" #O2 ", %" #O3 "}, %" #O4 ", 1, 1, 1, %" #O5 ";"                      \
                   : SEPCONV_R##C                                                                                   \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(static_cast<int>(B == Major::lines))); \
  }
SEPCONV_WGMMA(96, 48, 48, 49, 50, 51, 52, 53)
SEPCONV_WGMMA(128, 64, 64, 65, 66, 67, 68, 69)
SEPCONV_WGMMA(184, 92, 92, 93, 94, 95, 96, 97)
SEPCONV_WGMMA(256, 128, 128, 129, 130, 131, 132, 133)
#undef SEPCONV_WGMMA
#endif

// wgmma.mma_async: D[64, N] += A[64, K] . B[K, N]; N is twice the number of accumulators, K 16 for bfloat16 and 8 for
// tf32 (`Format::tf32`), of which the hardware ignores the lowest 13 bits.
template <class Format, Major A, Major B, int COUNT>
__device__ __forceinline__ void multiplyGroup(float (&d)[COUNT], uint64_t a, uint64_t b ARCH_PLACE) {
  static_assert(!Format::tf32 || (A == Major::depth && B == Major::depth), "tf32 has no transposed operands");
#if defined(__CUDACC__)
  multiplyInstruction<Format, A, B>(d, a, b);
#else
  emulator::multiplyGroup({d, nullptr, a, b, 2 * COUNT, Format::tf32, A == Major::lines, B == Major::lines}, place);
#endif
}

// The same with A in registers.
template <class Format, Major B, int COUNT>
__device__ __forceinline__ void multiplyGroup(float (&d)[COUNT], const uint32_t (&a)[4], uint64_t b ARCH_PLACE) {
  static_assert(!Format::tf32 || B == Major::depth, "tf32 has no transposed operands");
#if defined(__CUDACC__)
  multiplyInstruction<Format, B>(d, a, b);
#else
  emulator::multiplyGroup({d, a, 0, b, 2 * COUNT, Format::tf32, false, B == Major::lines}, place);
#endif
}

}  // namespace sepconv::arch
