#include "problem.h"

namespace sepconv::cuda {
namespace {

constexpr int64_t maxElements = 0x7fffffff;

std::string describe(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

const char* describe(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::bfloat16:
      return "bfloat16";
    case DType::int32:
      return "int32";
    case DType::uint8:
      return "uint8";
  }
  return "unknown";
}

std::string subject(const CallDescription& call) {
  return call.scope.empty() ? call.kernel : call.scope + ": " + call.kernel;
}

void checkType(const CallDescription& call, const std::string& name, const TensorType& type, DType dtype) {
  if (type.dtype != dtype)
    throw Error("ERR_DTYPE", subject(call) + ": the CUDA kernel takes " + describe(dtype) + " for " + name + ", got " +
                                 describe(type.dtype));
  double elements = 1;
  for (int64_t size : type.shape) {
    if (size < 1) refuse(call, name + " has an empty axis: " + describe(type.shape));
    elements *= static_cast<double>(size);
  }
  if (elements > static_cast<double>(maxElements))
    throw Error("ERR_SHAPE",
                subject(call) + ": " + name + " " + describe(type.shape) +
                    " has more than 2147483647 elements, the most that the CUDA kernels index; use a smaller batch");
}

// `name` with `count` entries in [least, 2^30].
std::vector<int> integers(const CallDescription& call, const char* name, size_t count, int64_t least) {
  const std::vector<int64_t> values = call.attributes.integers(name);
  std::vector<int> result;
  for (int64_t value : values) {
    if (value < least || value > (1 << 30))
      refuse(call, std::string("attribute '") + name + "' is out of range: " + describe(values));
    result.push_back(static_cast<int>(value));
  }
  if (result.size() != count)
    refuse(call, std::string("attribute '") + name + "' must have " + std::to_string(count) + " entries, got " +
                     describe(values));
  return result;
}

int64_t outputs(int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t dilation, int64_t stride) {
  const int64_t room = size + before + after - ((kernel - 1) * dilation + 1);
  return room < 0 ? 0 : room / stride + 1;
}

// x[n, h, w, c] under a filter[kh, kw, c, m].
DepthwiseProblem depthwiseOf(const CallDescription& call, const char* filterName) {
  const auto& x = requireInput(call, 0, "x", 4).shape;
  const auto& filter = requireInput(call, 1, filterName, 4).shape;
  if (filter[2] != x[3])
    refuse(call, std::string(filterName) + " " + describe(filter) + " does not fit x " + describe(x));
  const auto strides = integers(call, "strides", 2, 1), dilations = integers(call, "dilations", 2, 1),
             padding = integers(call, "padding", 4, 0);
  DepthwiseProblem problem{};
  Window& w = problem.window;
  w.height = static_cast<int>(x[1]);
  w.width = static_cast<int>(x[2]);
  w.kernelHeight = static_cast<int>(filter[0]);
  w.kernelWidth = static_cast<int>(filter[1]);
  w.strideHeight = strides[0];
  w.strideWidth = strides[1];
  w.dilationHeight = dilations[0];
  w.dilationWidth = dilations[1];
  w.top = padding[0];
  w.left = padding[2];
  const int64_t outHeight = outputs(x[1], padding[0], padding[1], filter[0], dilations[0], strides[0]);
  const int64_t outWidth = outputs(x[2], padding[2], padding[3], filter[1], dilations[1], strides[1]);
  if (outHeight < 1 || outWidth < 1) refuse(call, "no window fits into x " + describe(x));
  // Coordinates of padded positions must stay within 32 bits.
  if (x[1] + padding[0] + padding[1] > maxElements || x[2] + padding[2] + padding[3] > maxElements)
    throw Error("ERR_SHAPE", subject(call) + ": padded x " + describe(x) + " is too large for the CUDA kernels");
  w.outHeight = static_cast<int>(outHeight);
  w.outWidth = static_cast<int>(outWidth);
  problem.batch = static_cast<int>(x[0]);
  problem.channels = static_cast<int>(x[3]);
  problem.multiplier = static_cast<int>(filter[3]);
  problem.inputActivation = activation(call.attributes, "inputActivation");
  return problem;
}

// A filter[depth, columns], packed or not, as input `index`.
void matrixFilterOf(const CallDescription& call, size_t index, const char* name, MatrixProblem& problem) {
  const bool packed = call.attributes.flag("packed");
  const auto& filter = requireInput(call, index, name, packed ? 3 : 2).shape;
  if (packed) {
    const int64_t columns = call.attributes.integer("cout");
    if (columns < 1 || filter[0] != (columns + filter[2] - 1) / filter[2])
      refuse(call,
             std::string("packed ") + name + " " + describe(filter) + " does not fit cout " + std::to_string(columns));
    problem.columns = static_cast<int>(columns);
    problem.panel = static_cast<int>(filter[2]);
    problem.depth = static_cast<int>(filter[1]);
  } else {
    problem.columns = static_cast<int>(filter[1]);
    problem.panel = 0;
    problem.depth = static_cast<int>(filter[0]);
  }
}

}  // namespace

void refuse(const CallDescription& call, const std::string& what) {
  throw Error("ERR_FORMAT", subject(call) + ": " + what);
}

const TensorType& requireInput(const CallDescription& call, size_t index, const char* name, size_t rank, DType dtype) {
  if (!call.has(index)) refuse(call, std::string("input '") + name + "' is missing");
  const TensorType& type = call.input(index);
  checkType(call, name, type, dtype);
  if (rank && type.shape.size() != rank)
    refuse(call, std::string(name) + " must have rank " + std::to_string(rank) + ", got " + describe(type.shape));
  return type;
}

void requireShape(const CallDescription& call, size_t input, const char* name, const std::vector<int64_t>& shape) {
  if (!call.has(input)) return;
  checkType(call, name, call.input(input), DType::float32);
  if (call.input(input).shape != shape)
    refuse(call, std::string(name) + " must be " + describe(shape) + ", got " + describe(call.input(input).shape));
}

void requireOutput(const CallDescription& call, size_t index, const std::vector<int64_t>& shape, DType dtype) {
  if (index >= call.outputs.size()) refuse(call, "output " + std::to_string(index) + " is missing");
  checkType(call, "output " + std::to_string(index), call.outputs[index], dtype);
  if (call.outputs[index].shape != shape)
    refuse(call, "output " + std::to_string(index) + " must be " + describe(shape) + ", got " +
                     describe(call.outputs[index].shape));
}

DepthwiseProblem checkDepthwise(const CallDescription& call) {
  DepthwiseProblem problem = depthwiseOf(call, "filter");
  problem.activation = activation(call.attributes, "activation");
  const int64_t channels = problem.channels, outChannels = channels * problem.multiplier;
  const std::vector<int64_t> y{problem.batch, problem.window.outHeight, problem.window.outWidth, outChannels};
  requireOutput(call, 0, y);
  requireShape(call, 2, "inputScale", {channels});
  requireShape(call, 3, "inputShift", {channels});
  requireShape(call, 4, "scale", {outChannels});
  requireShape(call, 5, "shift", {outChannels});
  requireShape(call, 6, "residual", y);
  return problem;
}

MatrixProblem checkPointwise(const CallDescription& call) {
  const TensorType& x = requireInput(call, 0, "x", 0);
  if (x.rank() < 2) refuse(call, "x must have rank 2 or more, got " + describe(x.shape));
  MatrixProblem problem{};
  matrixFilterOf(call, 1, "filter", problem);
  if (x.shape.back() != problem.depth)
    refuse(call, "filter of " + std::to_string(problem.depth) + " input channels does not fit x " + describe(x.shape));
  problem.rows = x.rows();
  problem.inputActivation = activation(call.attributes, "inputActivation");
  problem.activation = activation(call.attributes, "activation");
  std::vector<int64_t> y = x.shape;
  y.back() = problem.columns;
  requireOutput(call, 0, y);
  if (call.attributes.flag("statistics")) {
    requireOutput(call, 1, {problem.columns});
    requireOutput(call, 2, {problem.columns});
  }
  requireShape(call, 2, "scale", {problem.columns});
  requireShape(call, 3, "shift", {problem.columns});
  requireShape(call, 4, "residual", y);
  return problem;
}

SeparableProblem checkSeparable(const CallDescription& call) {
  SeparableProblem problem{};
  problem.depthwise = depthwiseOf(call, "depthwise");
  problem.depthwise.activation = activation(call.attributes, "intermediateActivation");
  const DepthwiseProblem& d = problem.depthwise;
  MatrixProblem& p = problem.pointwise;
  matrixFilterOf(call, 2, "pointwise", p);
  const int64_t channels = d.channels, depth = channels * d.multiplier;
  if (depth != p.depth)
    refuse(call, "pointwise of " + std::to_string(p.depth) + " input channels does not fit depthwise of " +
                     std::to_string(depth) + " output channels");
  p.rows = int64_t{d.batch} * d.window.outHeight * d.window.outWidth;
  p.inputActivation = Activation::none;
  p.activation = activation(call.attributes, "activation");
  const std::vector<int64_t> y{d.batch, d.window.outHeight, d.window.outWidth, p.columns};
  requireOutput(call, 0, y);
  requireShape(call, 3, "inputScale", {channels});
  requireShape(call, 4, "inputShift", {channels});
  requireShape(call, 5, "depthwiseShift", {depth});
  requireShape(call, 6, "scale", {p.columns});
  requireShape(call, 7, "shift", {p.columns});
  requireShape(call, 8, "residual", y);
  return problem;
}

}  // namespace sepconv::cuda
