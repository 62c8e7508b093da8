// The primitives that are compiled once per instruction set (scalar, avx2, avx512, neon) from one source, as tables of
// plain functions. Kernels ask simd() for the table in force and never look at the instruction set themselves.
#pragma once
#include "bf16.h"
#include "depthwise.h"
#include "elementwise.h"
#include "gemm.h"
#include "normalisation.h"
#include "optimizer.h"
#include "pooling.h"

namespace sepconv::cpu {

struct SimdTable {
  const char* name;  // scalar, avx2, avx512, avx512bf16, neon
  int width;         // floats per vector
  GemmTable gemm;
  DepthwiseTable depthwise;
  NormalisationTable normalisation;
  PoolingTable pooling;
  ElementwiseTable elementwise;
  OptimizerTable optimizer;
  const Bf16Table* bf16;
};

// The table in force on the calling thread: the best one that this processor runs, unless another one was selected. An
// executor selects its own on whatever thread runs its programs, and a parallel region hands the caller's to the
// workers, so executors of different instruction sets live side by side in one process.
const SimdTable& simd();
// Names of the tables that this processor runs, best first; `wide` (64-byte vectors in AVX2 code, for tests of the
// 512-bit tiling on processors that lack AVX-512; only in builds with SEPCONV_WIDE=1) comes last and is never chosen by
// itself.
const char* const* availableSimd(int* count);
// A table by name (tests, benchmarks, SEPCONV_ISA); nullptr when this processor or build lacks it.
const SimdTable* findSimd(const char* name);
// Selects a table for the calling thread; nullptr goes back to the best one.
void selectSimd(const SimdTable* table);
// The same by name; false, and no change, when this processor or build lacks it.
bool selectSimd(const char* name);

}  // namespace sepconv::cpu
