#define SEPCONV_ISA avx512
#define SEPCONV_VECTOR_BYTES 64
#include "all.inl"
