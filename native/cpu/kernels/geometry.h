// The window of a convolution call (attributes strides, dilations, padding: [top, bottom, left, right]) as resolved
// integers, checked against the shapes of the call.
#pragma once
#include "checks.h"

namespace sepconv::cpu {

inline void expectRank4(const CallDescription& call, const char* role, const TensorType& type) {
  if (type.rank() != 4) fail(call, "ERR_SHAPE", std::string(role) + ": expected [n, h, w, c], got " + formatType(type));
}

// x[n, h, w, ...] is the convolution's input (or its gradient), y[n, oh, ow, ...] its output; both of rank 4.
inline Geometry convolutionGeometry(const CallDescription& call, const TensorType& x, const TensorType& y,
                                    int64_t kernelHeight, int64_t kernelWidth) {
  expectRank4(call, "input", x);
  expectRank4(call, "output", y);
  const std::vector<int64_t> strides = expectList(call, "strides", 2), dilations = expectList(call, "dilations", 2),
                             padding = expectList(call, "padding", 4);
  for (int64_t value : {strides[0], strides[1], dilations[0], dilations[1], kernelHeight, kernelWidth})
    if (value < 1)
      fail(call, "ERR_ARGUMENT",
           "strides, dilations and kernel sizes must be at least 1, got " + std::to_string(value));
  for (int64_t value : padding)
    if (value < 0) fail(call, "ERR_ARGUMENT", "padding must be at least 0, got " + std::to_string(value));
  const auto outputs = [](int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t dilation,
                          int64_t stride) {
    const int64_t room = size + before + after - ((kernel - 1) * dilation + 1);
    return room < 0 ? 0 : room / stride + 1;
  };
  const int64_t outHeight = outputs(x.dim(1), padding[0], padding[1], kernelHeight, dilations[0], strides[0]);
  const int64_t outWidth = outputs(x.dim(2), padding[2], padding[3], kernelWidth, dilations[1], strides[1]);
  if (outHeight < 1 || outWidth < 1)
    fail(call, "ERR_SHAPE",
         "a window of " + formatShape({kernelHeight, kernelWidth}) + " with dilations " + formatShape(dilations) +
             " does not fit into " + formatType(x));
  expectShape(call, "output", y, {x.dim(0), outHeight, outWidth, y.dim(3)});
  return {x.dim(0),   x.dim(1),   x.dim(2),     outHeight,    outWidth,   kernelHeight, kernelWidth,
          strides[0], strides[1], dilations[0], dilations[1], padding[0], padding[2]};
}

}  // namespace sepconv::cpu
