#define SEPCONV_ISA scalar
#define SEPCONV_VECTOR_BYTES 16
#include "all.inl"
