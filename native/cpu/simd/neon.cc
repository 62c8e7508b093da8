#define SEPCONV_ISA neon
#define SEPCONV_VECTOR_BYTES 16
#include "all.inl"
