// The part of cuBLASLt 12 and 13 that the comparison needs, declared by hand.
#pragma once
#include <cstddef>
#include <cstdint>

#include "library.h"

namespace sepconv::cuda {

struct CublasLt {
  using Handle = struct CublasLtHandle*;
  using Operation = struct CublasLtOperation*;
  using Layout = struct CublasLtLayout*;
  using Preference = struct CublasLtPreference*;
  // cudaDataType, cublasComputeType_t, cublasOperation_t and the attributes' numbers
  static constexpr int typeFloat = 0, typeBfloat16 = 14, computeFloat = 68, computeTf32 = 77;
  static constexpr int attributeTransA = 3, attributeTransB = 4, transpose = 1, preferenceWorkspace = 1;

  struct Algorithm {
    uint64_t data[8];
  };
  struct Heuristic {
    Algorithm algorithm;
    size_t workspaceBytes;
    int state;
    float waves;
    int reserved[4];
  };
  static_assert(sizeof(Heuristic) == 96, "as the library lays it out");

#define SEPCONV_CUBLASLT(F)                                                                                            \
  F(size_t, cublasLtGetVersion, (void))                                                                                \
  F(int, cublasLtCreate, (Handle*))                                                                                    \
  F(int, cublasLtMatmulDescCreate, (Operation*, int computeType, int scaleType))                                       \
  F(int, cublasLtMatmulDescDestroy, (Operation))                                                                       \
  F(int, cublasLtMatmulDescSetAttribute, (Operation, int attribute, const void*, size_t))                              \
  F(int, cublasLtMatrixLayoutCreate, (Layout*, int type, uint64_t rows, uint64_t columns, int64_t leading))            \
  F(int, cublasLtMatrixLayoutDestroy, (Layout))                                                                        \
  F(int, cublasLtMatmulPreferenceCreate, (Preference*))                                                                \
  F(int, cublasLtMatmulPreferenceDestroy, (Preference))                                                                \
  F(int, cublasLtMatmulPreferenceSetAttribute, (Preference, int attribute, const void*, size_t))                       \
  F(int, cublasLtMatmulAlgoGetHeuristic,                                                                               \
    (Handle, Operation, Layout a, Layout b, Layout c, Layout d, Preference, int requested, Heuristic*, int* returned)) \
  F(int, cublasLtMatmul,                                                                                               \
    (Handle, Operation, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta,             \
     const void* c, Layout, void* d, Layout, const Algorithm*, void* workspace, size_t bytes, void* stream))
#define SEPCONV_MEMBER_LT(RESULT, NAME, PARAMETERS) RESULT(*NAME) PARAMETERS;
  SEPCONV_CUBLASLT(SEPCONV_MEMBER_LT)

  void check(int status, const char* call) const;
  Handle handle(void* stream) const;  // one per stream; made on the device that is current
};

// Throws ERR_DEVICE where cuBLASLt is not to be found.
const CublasLt& cublasLt();

}  // namespace sepconv::cuda
