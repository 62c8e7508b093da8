// The bfloat16 loops alone: all others are those of AVX-512.
#define SEPCONV_ISA avx512bf16
#define SEPCONV_VECTOR_BYTES 64
#include "table.h"

namespace sepconv::cpu::SEPCONV_ISA {
namespace {
#include "vector.inl"

// On top of it.
#include "bf16.inl"
}  // namespace

extern const Bf16Table table;
const Bf16Table table = bf16Table;
}  // namespace sepconv::cpu::SEPCONV_ISA
