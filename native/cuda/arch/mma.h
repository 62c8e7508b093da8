// Tensor cores as sm_80 has them: fragments out of shared memory (ldmatrix) and warp-wide products (mma.sync) with
// float32 accumulators, operands bfloat16 or tf32. All are collectives of the whole warp. Lane l holds, with g = l / 4
// and t = l % 4, of D[16, 8]: d[0], d[1] = D[g][2t], D[g][2t + 1]; d[2], d[3] the same of row g + 8.
#pragma once
#include "math.h"
#include "memory.h"
#if !defined(__CUDACC__)
#include "../../emulator/tensor_core.h"
#endif

namespace sepconv::arch {

// Four 8x8 matrices of 16-bit elements: lanes 8i to 8i + 7 name the rows of matrix i (16 bytes each, at `index`). Lane
// l gets elements 2t and 2t + 1 of row g of matrix i in fragment[i]; TRANSPOSED: of column g.
template <bool TRANSPOSED>
__device__ __forceinline__ void loadMatrices(uint32_t (&fragment)[4], const Shared<Bfloat16>& from,
                                             int index ARCH_PLACE) {
#if defined(__CUDACC__)
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(from.data + index));
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(address)
                 : "memory");
#else
  emulator::checkAccess("matrix read from shared memory", from.data, from.count, index, 8, sizeof(Bfloat16), place);
  emulator::block->countShared(from.data + index, 16, place);
  emulator::loadMatrices<TRANSPOSED>(fragment, from.data + index, place);
#endif
}

// stmatrix (sm_90): the reverse, four 8x8 matrices out of fragments as ldmatrix leaves them.
__device__ __forceinline__ void storeMatrices(const uint32_t (&fragment)[4], const Shared<Bfloat16>& to,
                                              int index ARCH_PLACE) {
#if defined(__CUDACC__)
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to.data + index))),
               "r"(fragment[0]), "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
               : "memory");
#else
  emulator::checkAccess("matrix write to shared memory", to.data, to.count, index, 8, sizeof(Bfloat16), place);
  emulator::block->countShared(to.data + index, 16, place);
  emulator::storeMatrices(fragment, to.data + index, place);
  emulator::wroteShared(to.data + index, 16);
#endif
}

// d += a . b for A[16, 16] and B[16, 8]. Lane l holds A[g][2t], A[g][2t + 1] in a[0], row g + 8 in a[1], depth 2t + 8
// in a[2], both in a[3]; B[2t][g], B[2t + 1][g] in b0, depth 2t + 8 in b1.
__device__ __forceinline__ void multiplyBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1 ARCH_PLACE) {
#if defined(__CUDACC__)
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  emulator::multiplyBf16(d, a, b0, b1, place);
#endif
}

// d += a . b for A[16, 8] and B[8, 8] in tf32. Lane l holds A[g][t] in a[0], row g + 8 in a[1], depth t + 4 in a[2],
// both in a[3]; B[t][g] in b0, depth t + 4 in b1.
__device__ __forceinline__ void multiplyTf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1 ARCH_PLACE) {
#if defined(__CUDACC__)
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  emulator::multiplyTf32(d, a, b0, b1, place);
#endif
}

// A float32 rounded to tf32 (10 bits of mantissa): nearest, ties away from zero.
__device__ __forceinline__ uint32_t toTf32(float x) {
#if defined(__CUDACC__)
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  const uint32_t bits = floatBits(x);
  return x - x == 0.f ? (bits + 0x1000) & 0xffffe000 : bits;  // infinities and NaN stay what they are
#endif
}

// max(x, 0) of two bfloat16; NaN stays NaN.
__device__ __forceinline__ uint32_t reluPair(uint32_t pair) {
#if defined(__CUDACC__)
  uint32_t result;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(pair), "r"(0u));
  return result;
#else
  const auto one = [](uint32_t x) { return (x & 0x8000) && (x & 0x7fff) <= 0x7f80 ? 0u : x; };
  return one(pair & 0xffff) | one(pair >> 16) << 16;
#endif
}

}  // namespace sepconv::arch
