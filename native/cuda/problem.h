// The first layer of a kernel: calls become problems, after a check of every shape, dtype and attribute, so that a
// program file that was edited fails at load time and not on the device. Index arithmetic in kernels is 32-bit within
// one tensor: tensors of 2^31 elements and more are refused here.
#pragma once
#include "../kernels/kernel.h"

namespace sepconv::cuda {

// Resolved geometry of a window in the kernels' integer type.
struct Window {
  int height, width, outHeight, outWidth;
  int kernelHeight, kernelWidth;
  int strideHeight, strideWidth, dilationHeight, dilationWidth;
  int top, left;
};

struct DepthwiseProblem {
  Window window;
  int batch, channels, multiplier;
  Activation inputActivation, activation;
};

// y[rows, columns] = epilogue(A[rows, depth] . filter[depth, columns]).
struct MatrixProblem {
  int64_t rows;
  int depth, columns;
  int panel;  // columns per panel of a packed filter, 0 for [depth, columns]
  Activation inputActivation, activation;
};

struct SeparableProblem {
  DepthwiseProblem depthwise;  // its `activation` is the intermediate one
  MatrixProblem pointwise;     // rows = batch * outHeight * outWidth, depth = channels * multiplier
};

DepthwiseProblem checkDepthwise(const CallDescription& call);
MatrixProblem checkPointwise(const CallDescription& call);  // with statistics: three outputs
SeparableProblem checkSeparable(const CallDescription& call);

// Throws ERR_FORMAT or ERR_DTYPE with the call's scope and name.
[[noreturn]] void refuse(const CallDescription& call, const std::string& what);
const TensorType& requireInput(const CallDescription& call, size_t index, const char* name, size_t rank,
                               DType dtype = DType::float32);
// Absent inputs pass.
void requireShape(const CallDescription& call, size_t input, const char* name, const std::vector<int64_t>& shape);
void requireOutput(const CallDescription& call, size_t index, const std::vector<int64_t>& shape,
                   DType dtype = DType::float32);

}  // namespace sepconv::cuda
