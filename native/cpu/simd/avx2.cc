#define SEPCONV_ISA avx2
#define SEPCONV_VECTOR_BYTES 32
#include "all.inl"
