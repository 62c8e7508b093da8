#define SEPCONV_ISA wide
#define SEPCONV_VECTOR_BYTES 64
#include "all.inl"
