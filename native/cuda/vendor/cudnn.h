// The part of cuDNN 9's legacy convolution API that the comparison needs, declared by hand.
#pragma once
#include <cstddef>

#include "library.h"

namespace sepconv::cuda {

struct Cudnn {
  using Handle = struct CudnnHandle*;
  using Tensor = struct CudnnTensor*;
  using Filter = struct CudnnFilter*;
  using Convolution = struct CudnnConvolution*;
  // cudnnTensorFormat_t, cudnnDataType_t, cudnnConvolutionMode_t, cudnnMathType_t
  static constexpr int formatNhwc = 1, typeFloat = 0, typeBfloat16 = 9, crossCorrelation = 1;
  static constexpr int mathDefault = 0, mathTensorCores = 1, mathFma = 3;

#define SEPCONV_CUDNN(F)                                                                                   \
  F(size_t, cudnnGetVersion, (void))                                                                       \
  F(const char*, cudnnGetErrorString, (int))                                                               \
  F(int, cudnnCreate, (Handle*))                                                                           \
  F(int, cudnnSetStream, (Handle, void* stream))                                                           \
  F(int, cudnnCreateTensorDescriptor, (Tensor*))                                                           \
  F(int, cudnnDestroyTensorDescriptor, (Tensor))                                                           \
  F(int, cudnnSetTensor4dDescriptor, (Tensor, int format, int type, int n, int c, int h, int w))           \
  F(int, cudnnCreateFilterDescriptor, (Filter*))                                                           \
  F(int, cudnnDestroyFilterDescriptor, (Filter))                                                           \
  F(int, cudnnSetFilter4dDescriptor, (Filter, int type, int format, int k, int c, int h, int w))           \
  F(int, cudnnCreateConvolutionDescriptor, (Convolution*))                                                 \
  F(int, cudnnDestroyConvolutionDescriptor, (Convolution))                                                 \
  F(int, cudnnSetConvolution2dDescriptor,                                                                  \
    (Convolution, int padHeight, int padWidth, int strideHeight, int strideWidth, int dilationHeight,      \
     int dilationWidth, int mode, int computeType))                                                        \
  F(int, cudnnSetConvolutionGroupCount, (Convolution, int))                                                \
  F(int, cudnnSetConvolutionMathType, (Convolution, int))                                                  \
  F(int, cudnnGetConvolutionForwardWorkspaceSize,                                                          \
    (Handle, Tensor x, Filter, Convolution, Tensor y, int algorithm, size_t*))                             \
  F(int, cudnnGetConvolutionBackwardDataWorkspaceSize,                                                     \
    (Handle, Filter, Tensor dy, Convolution, Tensor dx, int algorithm, size_t*))                           \
  F(int, cudnnGetConvolutionBackwardFilterWorkspaceSize,                                                   \
    (Handle, Tensor x, Tensor dy, Convolution, Filter dw, int algorithm, size_t*))                         \
  F(int, cudnnConvolutionForward,                                                                          \
    (Handle, const void* alpha, Tensor, const void* x, Filter, const void* w, Convolution, int algorithm,  \
     void* workspace, size_t bytes, const void* beta, Tensor, void* y))                                    \
  F(int, cudnnConvolutionBackwardData,                                                                     \
    (Handle, const void* alpha, Filter, const void* w, Tensor, const void* dy, Convolution, int algorithm, \
     void* workspace, size_t bytes, const void* beta, Tensor, void* dx))                                   \
  F(int, cudnnConvolutionBackwardFilter,                                                                   \
    (Handle, const void* alpha, Tensor, const void* x, Tensor, const void* dy, Convolution, int algorithm, \
     void* workspace, size_t bytes, const void* beta, Filter, void* dw))
#define SEPCONV_MEMBER(RESULT, NAME, PARAMETERS) RESULT(*NAME) PARAMETERS;
  SEPCONV_CUDNN(SEPCONV_MEMBER)

  // Throws ERR_DEVICE with the name of the call unless `status` is 0.
  void check(int status, const char* call) const;
  // One per stream; made on the device that is current.
  Handle handle(void* stream) const;
};

// Throws ERR_DEVICE where cuDNN is not to be found.
const Cudnn& cudnn();

}  // namespace sepconv::cuda
