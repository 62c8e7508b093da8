// Calls become problems (problem.h): windows, depthwise, pointwise, separable and regular convolutions with their
// gradients.
#include "problem.h"

namespace sepconv::cuda {
namespace {

int64_t outputs(int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t dilation, int64_t stride) {
  const int64_t room = size + before + after - ((kernel - 1) * dilation + 1);
  return room < 0 ? 0 : room / stride + 1;
}

// A window of kernelHeight x kernelWidth over x[n, h, w, c].
Window windowOf(const CallDescription& call, const std::vector<int64_t>& x, int64_t kernelHeight, int64_t kernelWidth,
                bool dilated = true) {
  const auto strides = requireIntegers(call, "strides", 2, 1), padding = requireIntegers(call, "padding", 4, 0);
  const auto dilations = dilated ? requireIntegers(call, "dilations", 2, 1) : std::vector<int>{1, 1};
  Window w{};
  w.height = static_cast<int>(x[1]);
  w.width = static_cast<int>(x[2]);
  w.kernelHeight = static_cast<int>(kernelHeight);
  w.kernelWidth = static_cast<int>(kernelWidth);
  w.strideHeight = strides[0];
  w.strideWidth = strides[1];
  w.dilationHeight = dilations[0];
  w.dilationWidth = dilations[1];
  w.top = padding[0];
  w.left = padding[2];
  const int64_t outHeight = outputs(x[1], padding[0], padding[1], kernelHeight, dilations[0], strides[0]);
  const int64_t outWidth = outputs(x[2], padding[2], padding[3], kernelWidth, dilations[1], strides[1]);
  if (outHeight < 1 || outWidth < 1) refuse(call, "no window fits into x " + describe(x));
  // Coordinates of padded positions must stay within 32 bits.
  if (x[1] + padding[0] + padding[1] > maxElements || x[2] + padding[2] + padding[3] > maxElements)
    throw Error("ERR_SHAPE", subject(call) + ": padded x " + describe(x) + " is too large for the CUDA kernels");
  w.outHeight = static_cast<int>(outHeight);
  w.outWidth = static_cast<int>(outWidth);
  return w;
}

// x[n, h, w, c] under a filter[kh, kw, c, m].
DepthwiseProblem depthwiseOf(const CallDescription& call, const char* filterName) {
  const TensorType& type = requireFloating(call, 0, "x", 4);
  const auto& x = type.shape;
  const auto& filter = requireInput(call, 1, filterName, 4, type.dtype).shape;
  if (filter[2] != x[3])
    refuse(call, std::string(filterName) + " " + describe(filter) + " does not fit x " + describe(x));
  DepthwiseProblem problem{};
  problem.window = windowOf(call, x, filter[0], filter[1]);
  problem.dtype = type.dtype;
  problem.batch = static_cast<int>(x[0]);
  problem.channels = static_cast<int>(x[3]);
  problem.multiplier = static_cast<int>(filter[3]);
  problem.inputActivation = activation(call.attributes, "inputActivation");
  return problem;
}

Precision precisionOf(const CallDescription& call, DType dtype) {
  if (dtype == DType::bfloat16) return Precision::bfloat16;
  const std::string text = call.attributes.text("precision", "float32");
  if (text == "tf32") return Precision::tf32;
  if (text != "float32") refuse(call, "precision of float32 tensors must be float32 or tf32, got '" + text + "'");
  return Precision::float32;
}

// A filter[depth, columns], packed or not, as input `index`.
void matrixFilterOf(const CallDescription& call, size_t index, const char* name, DType dtype, MatrixProblem& problem) {
  const bool packed = call.attributes.flag("packed");
  problem.dtype = dtype;
  problem.precision = precisionOf(call, dtype);
  const auto& filter = requireInput(call, index, name, packed ? 3 : 2, dtype).shape;
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

// The forward input of a data gradient, which is there exactly where an activation came before the op.
void requireMask(const CallDescription& call, Activation activation, const TensorType& x) {
  if (call.has(2) != (activation != Activation::none))
    refuse(call, "x must be given exactly where inputActivation is set");
  requireLike(call, 2, "x", x);
}

Conv2dProblem conv2dOf(const CallDescription& call, const TensorType& x, int64_t kernelHeight, int64_t kernelWidth) {
  Conv2dProblem problem{};
  problem.window = windowOf(call, x.shape, kernelHeight, kernelWidth);
  problem.batch = static_cast<int>(x.dim(0));
  problem.cin = static_cast<int>(x.dim(3));
  problem.groups = static_cast<int>(call.attributes.integer("groups", 1));
  problem.inputActivation = activation(call.attributes, "inputActivation");
  problem.dtype = x.dtype;
  problem.precision = precisionOf(call, x.dtype);
  return problem;
}

void checkGroups(const CallDescription& call, const Conv2dProblem& problem) {
  if (problem.groups < 1 || problem.groups > 65535 || problem.cout < 1 || problem.cin % problem.groups ||
      problem.cout % problem.groups)
    refuse(call, "groups must divide both channel counts and be at most 65535, got " + std::to_string(problem.groups) +
                     " for " + std::to_string(problem.cin) + " and " + std::to_string(problem.cout));
}

// Mean and variance per column, where the product emits them.
void requireStatistics(const CallDescription& call, int columns) {
  if (!call.attributes.flag("statistics")) return;
  requireOutput(call, 1, {columns});
  requireOutput(call, 2, {columns});
}

// scale, shift, residual: optional inputs from `first` on.
void requireEpilogue(const CallDescription& call, size_t first, int64_t columns, const TensorType& y) {
  requireShape(call, first, "scale", {columns});
  requireShape(call, first + 1, "shift", {columns});
  requireLike(call, first + 2, "residual", y);
}
// inputScale, inputShift: optional inputs from `first` on.
void requirePrologue(const CallDescription& call, size_t first, int64_t channels) {
  requireShape(call, first, "inputScale", {channels});
  requireShape(call, first + 1, "inputShift", {channels});
}

// [n, outHeight, outWidth, channels]
TensorType outputOf(DType dtype, int64_t batch, const Window& window, int64_t channels) {
  return {dtype, {batch, window.outHeight, window.outWidth, channels}};
}

// What the data gradient of a convolution gives: the input, whose size is an attribute.
TensorType gradientOf(const CallDescription& call, const TensorType& gradient, int64_t channels) {
  const auto size = requireIntegers(call, "inputSize", 2, 1);
  return {gradient.dtype, {gradient.dim(0), size[0], size[1], channels}};
}

}  // namespace

Window poolWindow(const CallDescription& call, const TensorType& x) {
  const auto size = requireIntegers(call, "windowSize", 2, 1);
  return windowOf(call, x.shape, size[0], size[1], false);
}

DepthwiseProblem checkDepthwise(const CallDescription& call) {
  DepthwiseProblem problem = depthwiseOf(call, "filter");
  problem.activation = activation(call.attributes, "activation");
  const int64_t channels = problem.channels, outChannels = channels * problem.multiplier;
  const TensorType y = outputOf(problem.dtype, problem.batch, problem.window, outChannels);
  requireOutputLike(call, 0, y);
  requirePrologue(call, 2, channels);
  requireEpilogue(call, 4, outChannels, y);
  return problem;
}

DepthwiseProblem checkDepthwiseInputGradient(const CallDescription& call) {
  const TensorType& gradient = requireFloating(call, 0, "gradient", 4);
  const auto& filter = requireInput(call, 1, "filter", 4, gradient.dtype).shape;
  const TensorType dz = gradientOf(call, gradient, filter[2]);
  DepthwiseProblem problem{};
  problem.window = windowOf(call, dz.shape, filter[0], filter[1]);
  problem.dtype = gradient.dtype;
  problem.batch = static_cast<int>(gradient.dim(0));
  problem.channels = static_cast<int>(filter[2]);
  problem.multiplier = static_cast<int>(filter[3]);
  problem.inputActivation = activation(call.attributes, "inputActivation");
  requireLike(call, 0, "gradient", outputOf(gradient.dtype, dz.dim(0), problem.window, filter[2] * filter[3]));
  requireMask(call, problem.inputActivation, dz);
  requirePrologue(call, 3, filter[2]);
  requireOutputLike(call, 0, dz);
  return problem;
}

DepthwiseProblem checkDepthwiseGradients(const CallDescription& call) {
  const TensorType& x = requireFloating(call, 0, "x", 4);
  requireInput(call, 1, "gradient", 4, x.dtype);
  requireInput(call, 2, "filter", 4, x.dtype);
  const int64_t channels = x.dim(3);
  DepthwiseProblem problem{};
  problem.window = windowOf(call, x.shape, 3, 3);
  const Window& w = problem.window;
  if (w.strideHeight != 1 || w.strideWidth != 1 || w.dilationHeight != 1 || w.dilationWidth != 1)
    refuse(call, "strides and dilations must be 1");
  const int vector = x.dtype == DType::bfloat16 ? 8 : 4;
  if (channels % vector || channels > 32 * 65535)
    refuse(call, "channels must be a multiple of " + std::to_string(vector) + ", at most 2097120");
  problem.dtype = x.dtype;
  problem.batch = static_cast<int>(x.dim(0));
  problem.channels = static_cast<int>(channels);
  problem.multiplier = 1;
  problem.inputActivation = activation(call.attributes, "inputActivation");
  requireLike(call, 1, "gradient", outputOf(x.dtype, x.dim(0), w, channels));
  requireLike(call, 2, "filter", {x.dtype, {3, 3, channels, 1}});
  requirePrologue(call, 3, channels);
  requireLike(call, 5, "residual", x);
  if (call.has(6) != call.has(7)) refuse(call, "mean and variance come together");
  requireShape(call, 6, "mean", {channels});
  requireShape(call, 7, "variance", {channels});
  requireOutputLike(call, 0, x);
  requireOutput(call, 1, {3, 3, channels, 1});
  for (size_t i = 2; call.has(6) && i < 4; ++i) requireOutput(call, i, {channels});
  return problem;
}

DepthwiseProblem checkDepthwiseFilterGradient(const CallDescription& call) {
  const TensorType& x = requireFloating(call, 0, "x", 4);
  const TensorType& gradient = requireInput(call, 1, "gradient", 4, x.dtype);
  const auto kernel = requireIntegers(call, "kernelSize", 2, 1);
  if (gradient.dim(3) % x.dim(3)) refuse(call, "gradient's channels must be a multiple of those of x");
  DepthwiseProblem problem{};
  problem.window = windowOf(call, x.shape, kernel[0], kernel[1]);
  problem.dtype = x.dtype;
  problem.batch = static_cast<int>(x.dim(0));
  problem.channels = static_cast<int>(x.dim(3));
  problem.multiplier = static_cast<int>(gradient.dim(3) / x.dim(3));
  problem.inputActivation = activation(call.attributes, "inputActivation");
  requireLike(call, 1, "gradient", outputOf(x.dtype, x.dim(0), problem.window, gradient.dim(3)));
  requirePrologue(call, 2, x.dim(3));
  requireOutput(call, 0, {kernel[0], kernel[1], x.dim(3), problem.multiplier});
  return problem;
}

MatrixProblem checkPointwise(const CallDescription& call) {
  const TensorType& x = requireFloating(call, 0, "x", 0);
  if (x.rank() < 2) refuse(call, "x must have rank 2 or more, got " + describe(x.shape));
  MatrixProblem problem{};
  matrixFilterOf(call, 1, "filter", x.dtype, problem);
  if (x.shape.back() != problem.depth)
    refuse(call, "filter of " + std::to_string(problem.depth) + " input channels does not fit x " + describe(x.shape));
  problem.rows = x.rows();
  problem.inputActivation = activation(call.attributes, "inputActivation");
  problem.activation = activation(call.attributes, "activation");
  TensorType y = x;
  y.shape.back() = problem.columns;
  requireOutputLike(call, 0, y);
  requireStatistics(call, problem.columns);
  requireEpilogue(call, 2, problem.columns, y);
  return problem;
}

MatrixProblem checkPointwiseInputGradient(const CallDescription& call) {
  const TensorType& gradient = requireFloating(call, 0, "gradient", 0);
  if (gradient.rank() < 2) refuse(call, "gradient must have rank 2 or more");
  MatrixProblem problem{};
  matrixFilterOf(call, 1, "filter", gradient.dtype, problem);
  if (problem.panel) refuse(call, "the filter of a gradient is not packed");
  if (gradient.shape.back() != problem.columns)
    refuse(call, "filter does not fit gradient " + describe(gradient.shape));
  problem.rows = gradient.rows();
  problem.inputActivation = activation(call.attributes, "inputActivation");
  TensorType dx = gradient;
  dx.shape.back() = problem.depth;
  requireMask(call, problem.inputActivation, dx);
  requireOutputLike(call, 0, dx);
  return problem;
}

MatrixProblem checkPointwiseFilterGradient(const CallDescription& call) {
  const TensorType& x = requireFloating(call, 0, "x", 0);
  if (x.rank() < 2) refuse(call, "x must have rank 2 or more");
  const TensorType& gradient = requireInput(call, 1, "gradient", x.shape.size(), x.dtype);
  MatrixProblem problem{};
  problem.rows = x.rows();
  problem.depth = static_cast<int>(x.shape.back());
  problem.columns = static_cast<int>(gradient.shape.back());
  problem.dtype = x.dtype;
  problem.precision = precisionOf(call, x.dtype);
  problem.inputActivation = activation(call.attributes, "inputActivation");
  std::vector<int64_t> rows = x.shape;
  rows.back() = problem.columns;
  requireLike(call, 1, "gradient", {x.dtype, rows});
  requireOutput(call, 0, {problem.depth, problem.columns});
  return problem;
}

SeparableProblem checkSeparable(const CallDescription& call) {
  SeparableProblem problem{};
  problem.depthwise = depthwiseOf(call, "depthwise");
  problem.depthwise.activation = activation(call.attributes, "intermediateActivation");
  const DepthwiseProblem& d = problem.depthwise;
  MatrixProblem& p = problem.pointwise;
  matrixFilterOf(call, 2, "pointwise", d.dtype, p);
  const int64_t channels = d.channels, depth = channels * d.multiplier;
  if (depth != p.depth)
    refuse(call, "pointwise of " + std::to_string(p.depth) + " input channels does not fit depthwise of " +
                     std::to_string(depth) + " output channels");
  p.rows = int64_t{d.batch} * d.window.outHeight * d.window.outWidth;
  p.inputActivation = Activation::none;
  p.activation = activation(call.attributes, "activation");
  const TensorType y = outputOf(d.dtype, d.batch, d.window, p.columns);
  requireOutputLike(call, 0, y);
  requireStatistics(call, p.columns);
  requirePrologue(call, 3, channels);
  requireShape(call, 5, "depthwiseShift", {depth});
  requireEpilogue(call, 6, p.columns, y);
  return problem;
}

SeparableProblem checkSeparablePointwiseGradient(const CallDescription& call) {
  SeparableProblem problem{};
  problem.depthwise = depthwiseOf(call, "depthwise");
  problem.depthwise.activation = activation(call.attributes, "intermediateActivation");
  const DepthwiseProblem& d = problem.depthwise;
  const TensorType& gradient = requireInput(call, 2, "gradient", 4, d.dtype);
  requireLike(call, 2, "gradient", outputOf(d.dtype, d.batch, d.window, gradient.dim(3)));
  MatrixProblem& p = problem.pointwise;
  p.rows = int64_t{d.batch} * d.window.outHeight * d.window.outWidth;
  p.depth = d.channels * d.multiplier;
  p.columns = static_cast<int>(gradient.dim(3));
  p.inputActivation = p.activation = Activation::none;
  p.dtype = d.dtype;
  p.precision = precisionOf(call, d.dtype);
  requirePrologue(call, 3, d.channels);
  requireShape(call, 5, "depthwiseShift", {p.depth});
  requireOutput(call, 0, {p.depth, p.columns});
  return problem;
}

Conv2dProblem checkConv2d(const CallDescription& call) {
  const TensorType& x = requireFloating(call, 0, "x", 4);
  const auto kernel = requireIntegers(call, "kernelSize", 2, 1);
  Conv2dProblem problem = conv2dOf(call, x, kernel[0], kernel[1]);
  problem.cout = static_cast<int>(call.attributes.integer("cout"));
  problem.activation = activation(call.attributes, "activation");
  checkGroups(call, problem);
  if (call.attributes.flag("packed")) {
    MatrixProblem packed{};
    matrixFilterOf(call, 1, "filter", x.dtype, packed);
    if (problem.groups != 1 || packed.columns != problem.cout || packed.depth != kernel[0] * kernel[1] * problem.cin)
      refuse(call, "packed filter does not fit x " + describe(x.shape));
    problem.panel = packed.panel;
  } else {
    requireInput(call, 1, "filter", 4, x.dtype);
    requireLike(call, 1, "filter", {x.dtype, {kernel[0], kernel[1], problem.cin / problem.groups, problem.cout}});
  }
  const TensorType y = outputOf(x.dtype, x.dim(0), problem.window, problem.cout);
  requireOutputLike(call, 0, y);
  requireEpilogue(call, 2, problem.cout, y);
  return problem;
}

Conv2dProblem checkConv2dInputGradient(const CallDescription& call) {
  const TensorType& gradient = requireFloating(call, 0, "gradient", 4);
  const auto& filter = requireInput(call, 1, "filter", 4, gradient.dtype).shape;
  const TensorType dx = gradientOf(call, gradient, filter[2] * call.attributes.integer("groups", 1));
  Conv2dProblem problem = conv2dOf(call, dx, filter[0], filter[1]);
  problem.cout = static_cast<int>(filter[3]);
  checkGroups(call, problem);
  requireLike(call, 0, "gradient", outputOf(gradient.dtype, dx.dim(0), problem.window, filter[3]));
  requireMask(call, problem.inputActivation, dx);
  requireOutputLike(call, 0, dx);
  return problem;
}

Conv2dProblem checkConv2dFilterGradient(const CallDescription& call) {
  const TensorType& x = requireFloating(call, 0, "x", 4);
  const TensorType& gradient = requireInput(call, 1, "gradient", 4, x.dtype);
  const auto kernel = requireIntegers(call, "kernelSize", 2, 1);
  Conv2dProblem problem = conv2dOf(call, x, kernel[0], kernel[1]);
  problem.cout = static_cast<int>(gradient.dim(3));
  checkGroups(call, problem);
  requireLike(call, 1, "gradient", outputOf(x.dtype, x.dim(0), problem.window, problem.cout));
  requireOutput(call, 0, {kernel[0], kernel[1], problem.cin / problem.groups, problem.cout});
  return problem;
}

}  // namespace sepconv::cuda
