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
  DType dtype;
};

// How exactly products are computed: float32 on the SIMT units, or on tensor cores with float32 accumulation, operands
// rounded to tf32 (attribute precision: 'tf32', float32 storage) or stored as bfloat16.
enum class Precision : uint8_t { float32, tf32, bfloat16 };

// y[rows, columns] = epilogue(A[rows, depth] . filter[depth, columns]) and its gradients with respect to A (a product
// over columns) and to the filter (a product over rows).
struct MatrixProblem {
  int64_t rows;
  int depth, columns;
  int panel;  // columns per panel of a packed filter, 0 for [depth, columns]
  Activation inputActivation, activation;
  DType dtype;
  Precision precision;
};

// conv2d and its gradients.
struct Conv2dProblem {
  Window window;
  int batch, groups, cin, cout;
  int panel;
  Activation inputActivation, activation;
  DType dtype;
  Precision precision;
};

struct SeparableProblem {
  DepthwiseProblem depthwise;  // its `activation` is the intermediate one
  MatrixProblem pointwise;     // rows = batch * outHeight * outWidth, depth = channels * multiplier
};

// The window of a pool over x[n, h, w, c].
Window poolWindow(const CallDescription& call, const TensorType& x);
DepthwiseProblem checkDepthwise(const CallDescription& call);
DepthwiseProblem checkDepthwiseInputGradient(const CallDescription& call);
DepthwiseProblem checkDepthwiseFilterGradient(const CallDescription& call);
DepthwiseProblem checkDepthwiseGradients(
    const CallDescription& call);                           // 3x3, in fours of float32 or eights of bfloat16
MatrixProblem checkPointwise(const CallDescription& call);  // with statistics: three outputs
MatrixProblem checkPointwiseInputGradient(const CallDescription& call);
MatrixProblem checkPointwiseFilterGradient(const CallDescription& call);
Conv2dProblem checkConv2d(const CallDescription& call);
Conv2dProblem checkConv2dInputGradient(const CallDescription& call);
Conv2dProblem checkConv2dFilterGradient(const CallDescription& call);
SeparableProblem checkSeparable(const CallDescription& call);  // with statistics: three outputs
SeparableProblem checkSeparablePointwiseGradient(const CallDescription& call);

constexpr int64_t maxElements = 0x7fffffff;
// The call's scope and name, for messages.
std::string subject(const CallDescription& call);
// Throws ERR_FORMAT or ERR_DTYPE with the call's scope and name.
[[noreturn]] void refuse(const CallDescription& call, const std::string& what);
const TensorType& requireInput(const CallDescription& call, size_t index, const char* name, size_t rank,
                               DType dtype = DType::float32);
// The same for what may be stored as float32 or bfloat16.
const TensorType& requireFloating(const CallDescription& call, size_t index, const char* name, size_t rank);
// Shape and dtype of `type`; absent inputs pass.
void requireLike(const CallDescription& call, size_t input, const char* name, const TensorType& type);
// float32 of this shape; absent inputs pass.
void requireShape(const CallDescription& call, size_t input, const char* name, const std::vector<int64_t>& shape);
void requireOutput(const CallDescription& call, size_t index, const std::vector<int64_t>& shape,
                   DType dtype = DType::float32);
inline void requireOutputLike(const CallDescription& call, size_t index, const TensorType& type) {
  requireOutput(call, index, type.shape, type.dtype);
}
// Attribute `name` with `count` entries in [least, 2^30].
std::vector<int> requireIntegers(const CallDescription& call, const char* name, size_t count, int64_t least);
std::string describe(const std::vector<int64_t>& shape);

}  // namespace sepconv::cuda
