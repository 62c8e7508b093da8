// One instruction set's table. Included by avx2.cc, avx512.cc, neon.cc and scalar.cc, which define SEPCONV_ISA (a name)
// and SEPCONV_VECTOR_BYTES and are compiled with that instruction set's flags.
#include "table.h"

namespace sepconv::cpu::SEPCONV_ISA {
namespace {
#include "vector.inl"

// On top of it, in any order.
#include "bf16.inl"
#include "depthwise.inl"
#include "elementwise.inl"
#include "gemm.inl"
#include "normalisation.inl"
#include "optimizer.inl"
#include "pooling.inl"
}  // namespace

#define SEPCONV_TEXT_(x) #x
#define SEPCONV_TEXT(x) SEPCONV_TEXT_(x)
extern const SimdTable table;
const SimdTable table = {
    SEPCONV_TEXT(SEPCONV_ISA), kWidth,         gemmTable, depthwiseTable, normalisationTable, poolingTable,
    elementwiseTable,          optimizerTable, &bf16Table};
}  // namespace sepconv::cpu::SEPCONV_ISA
