// Gradients of pointwiseConv2d and depthwiseConv2d on bfloat16. Filter gradients are float32 and summed in float32:
// shares of the pixels, cut by shape, add up in order.
#include <algorithm>
#include <numeric>

#include "bf16.h"
#include "checks.h"
#include "geometry.h"

namespace sepconv::cpu::bf16 {
namespace {

TensorType half(std::vector<int64_t> shape) { return {DType::bfloat16, std::move(shape)}; }

const TensorType& matrix(const CallDescription& call, const char* role, const TensorType& type) {
  expectDType(call, role, type, DType::bfloat16);
  if (type.rank() < 2)
    fail(call, "ERR_SHAPE", std::string(role) + ": expected rank 2 or more, got " + formatType(type));
  return type;
}

TensorType withChannels(TensorType type, int64_t channels) {
  type.shape.back() = channels;
  return type;
}

// The optional input x of an input gradient: dx = sum * inputActivation'(x).
int checkedGate(const CallDescription& call, const TensorType& dx) {
  const Activation kind = activation(call.attributes, "inputActivation");
  if (kind != Activation::none) {
    if (!call.has(2)) fail(call, "ERR_SHAPE", "x is missing, which inputActivation needs");
    expectType(call, "x", call.input(2), dx);
  }
  return activationValue(kind);
}

class PointwiseInputGradient final : public Kernel {
 public:
  explicit PointwiseInputGradient(const CallDescription& call) : table_(*simd().bf16) {
    expectOperands(call, 2, 1);
    const TensorType& gradient = matrix(call, "gradient", call.input(0));
    const TensorType& dx = matrix(call, "dx", call.outputs[0]);
    k_ = gradient.dim(-1);
    const int64_t n = dx.dim(-1);
    expectType(call, "filter", call.input(1), half({n, k_}));
    expectType(call, "dx", dx, withChannels(gradient, n));
    gate_ = checkedGate(call, dx);
    product_ = MatrixProduct(simd(), gradient.rows(), k_, n, !MatrixProduct::readsInPlace(k_));
  }
  size_t workspaceBytes() const override { return product_.panels().bytes(); }
  void run(const Arguments& arguments) const override {
    auto* packed = static_cast<uint16_t*>(arguments.workspace);
    packTransposedPanels(arguments.pool, table_, arguments.input<uint16_t>(1), product_.panels(), packed);
    const uint16_t* gradient = arguments.input<uint16_t>(0);
    const int none = activationValue(Activation::none);
    const auto fill = [&](int64_t begin, int64_t end, uint16_t* target) {
      for (int64_t row = begin; row < end; ++row, target += stagedRow(k_)) std::copy_n(gradient + row * k_, k_, target);
    };
    product_.run(arguments.pool, gradient, fill, packed, arguments.output<uint16_t>(),
                 {nullptr, nullptr, nullptr, gate_ == none ? nullptr : arguments.input<uint16_t>(2), none, gate_});
  }

 private:
  const Bf16Table& table_;
  int64_t k_ = 0;
  int gate_ = 0;
  MatrixProduct product_;
};

// dfilter[m, n] = sum over pixels of x[pixel, m] * gradient[pixel, n]: FilterGradient's blocks (filter_gradient.cc) in
// pairs of pixels.
class PointwiseFilterGradient final : public Kernel {
 public:
  explicit PointwiseFilterGradient(const CallDescription& call) : simd_(simd()), table_(*simd().bf16) {
    expectOperands(call, 2, 1);
    const TensorType& x = matrix(call, "x", call.input(0));
    m_ = x.dim(-1);
    n_ = call.input(1).dim(-1);
    expectType(call, "gradient", matrix(call, "gradient", call.input(1)), withChannels(x, n_));
    expectType(call, "dfilter", call.outputs[0], {DType::float32, {m_, n_}});
    activation_ = activationValue(activation(call.attributes, "inputActivation"));
    const int64_t rowPanels = quotientUp(m_, table_.rows), columnPanels = quotientUp(n_, simd_.gemm.panel);
    aPanel_ = quotientUp(m_, rowPanels);
    rows_ = {quotientUp(m_, aPanel_), quotientUp(rowPanels, std::max<int64_t>(1, kBlockRows / aPanel_))};
    columns_ = {columnPanels, quotientUp(columnPanels, std::max<int64_t>(1, kBlockColumns / simd_.gemm.panel))};
    const int64_t pixels = x.rows(),
                  most = std::max<int64_t>(1, std::min(pixels / kSplitPixels, kPartialFloats / (m_ * n_)));
    const int64_t parts = std::clamp(quotientUp(kTasks, rows_.parts * columns_.parts), int64_t{1}, most);
    splits_ = {pixels, parts};
  }
  size_t workspaceBytes() const override {
    return splits_.parts > 1 ? static_cast<size_t>(splits_.parts * m_ * n_) * sizeof(float) : 0;
  }
  void run(const Arguments& a) const override {
    float* target = splits_.parts > 1 ? static_cast<float*>(a.workspace) : a.output();
    a.pool.run(splits_.parts * rows_.parts * columns_.parts, [&](int64_t task, int thread) {
      runTask(a.pool, thread, task, a.input<uint16_t>(0), a.input<uint16_t>(1), target);
    });
    if (splits_.parts == 1) return;
    const int64_t floats = m_ * n_;
    const Split pieces{floats, std::clamp(floats / 2048, int64_t{1}, kTasks)};
    a.pool.run(pieces.parts, [&](int64_t piece, int) {
      const int64_t begin = pieces.begin(piece);
      simd_.gemm.sum(target + begin, floats, splits_.parts, pieces.end(piece) - begin, a.output() + begin);
    });
  }

 private:
  static constexpr int64_t kDepth = 384, kBlockRows = 256, kBlockColumns = 384;
  static constexpr int64_t kSplitPixels = 512;                 // fewest pixels that are worth a partial result
  static constexpr int64_t kPartialFloats = int64_t{8} << 20;  // most floats of all partial results

  void runTask(ThreadPool& pool, int thread, int64_t task, const uint16_t* x, const uint16_t* gradient,
               float* target) const {
    const int64_t panel = simd_.gemm.panel;
    const int64_t block = task / splits_.parts, split = task % splits_.parts;
    const int64_t rowBlock = block % rows_.parts, columnBlock = block / rows_.parts;
    const int64_t firstRow = rows_.begin(rowBlock) * aPanel_, rowPanels = rows_.end(rowBlock) - rows_.begin(rowBlock);
    const int64_t firstColumn = columns_.begin(columnBlock) * panel,
                  columnPanels = columns_.end(columnBlock) - columns_.begin(columnBlock);
    const int64_t aElements = quotientUp(rowPanels * aPanel_ * kDepth, 32) * 32;
    auto* a = static_cast<uint16_t*>(
        pool.scratch(thread, static_cast<size_t>(aElements + columnPanels * panel * kDepth) * sizeof(uint16_t)));
    uint16_t* const b = a + aElements;
    Bf16OuterProduct product;
    product.a = a;
    product.aPanel = aPanel_;
    product.b = b;
    product.c = target + (splits_.parts > 1 ? split * m_ * n_ : 0) + firstRow * n_ + firstColumn;
    product.cRow = n_;
    product.rows = std::min(m_ - firstRow, rowPanels * aPanel_);
    product.columns = std::min(n_ - firstColumn, columnPanels * panel);
    product.accumulate = false;
    for (int64_t pixel = splits_.begin(split); pixel < splits_.end(split); pixel += kDepth) {
      const int64_t depth = std::min(kDepth, splits_.end(split) - pixel);
      product.pairs = quotientUp(depth, 2);
      for (int64_t p = 0; p < rowPanels; ++p)
        table_.packColumns(x + pixel * m_ + firstRow + p * aPanel_, m_, depth,
                           std::min(aPanel_, product.rows - p * aPanel_), aPanel_, activation_,
                           a + 2 * p * aPanel_ * product.pairs);
      for (int64_t p = 0; p < columnPanels; ++p)
        table_.packColumns(gradient + pixel * n_ + firstColumn + p * panel, n_, depth,
                           std::min(panel, product.columns - p * panel), panel, activationValue(Activation::none),
                           b + 2 * p * panel * product.pairs);
      table_.outerProduct(product);
      product.accumulate = true;
    }
  }

  const SimdTable& simd_;
  const Bf16Table& table_;
  int64_t m_ = 0, n_ = 0, aPanel_ = 1;
  int activation_ = 0;
  Split splits_, rows_, columns_;  // of pixels, of panels of rows, of panels of columns
};

struct Depthwise {
  Geometry g;
  int64_t channels;
};

// One filter per channel; others run through float32.
bool single(const TensorType& filter) { return filter.rank() == 4 && filter.dim(3) == 1; }

Depthwise depthwiseOf(const CallDescription& call, const TensorType& x, const TensorType& y, const TensorType& filter,
                      DType filterType) {
  expectDType(call, "x", x, DType::bfloat16);
  expectRank4(call, "x", x);
  const Geometry g = convolutionGeometry(call, x, y, filter.dim(0), filter.dim(1));
  expectType(call, "gradient", y, half({g.batch, g.outHeight, g.outWidth, x.dim(3)}));
  expectType(call, "filter", filter, {filterType, {filter.dim(0), filter.dim(1), x.dim(3), 1}});
  return {g, x.dim(3)};
}

void expectVector(const CallDescription& call, size_t input, const char* role, int64_t size) {
  if (call.has(input)) expectType(call, role, call.input(input), {DType::float32, {size}});
}

// At stride 1, a convolution of the gradient with the rotated filter.
class DepthwiseInputGradient final : public Kernel {
 public:
  explicit DepthwiseInputGradient(const CallDescription& call)
      : table_(*simd().bf16),
        shape_(depthwiseOf(call, call.outputs[0], call.input(0), call.input(1), DType::bfloat16)),
        gate_(checkedGate(call, call.outputs[0])) {
    expectVector(call, 3, "inputScale", shape_.channels);
    expectVector(call, 4, "inputShift", shape_.channels);
  }
  void run(const Arguments& a) const override {
    const Geometry& g = shape_.g;
    const int64_t c = shape_.channels, taps = g.kernelHeight * g.kernelWidth;
    const DepthwiseWindow window = {g.outHeight,
                                    g.outWidth,
                                    g.outWidth * c,
                                    c,
                                    g.kernelHeight,
                                    g.kernelWidth,
                                    1,
                                    1,
                                    g.dilationHeight,
                                    g.dilationWidth,
                                    (g.kernelHeight - 1) * g.dilationHeight - g.top,
                                    (g.kernelWidth - 1) * g.dilationWidth - g.left,
                                    1,
                                    -g.kernelWidth * c,
                                    -c};
    Bf16DepthwiseOperands operands{};
    operands.filter = a.input<uint16_t>(1) + (taps - 1) * c;
    operands.gateActivation = gate_;
    operands.gateScale = a.input(3);
    operands.gateShift = a.input(4);
    const uint16_t* x = gate_ == activationValue(Activation::none) ? nullptr : a.input<uint16_t>(2);
    a.pool.run(g.batch * g.height, [&](int64_t task, int) {
      const int64_t at = task * g.width * c;
      Bf16DepthwiseRun run{};
      run.x = a.input<uint16_t>(0) + task / g.height * g.outHeight * g.outWidth * c;
      run.y = a.output<uint16_t>() + at;
      run.gate = x ? x + at : nullptr;
      run.yDistance = run.gateDistance = c;
      run.row = task % g.height;
      run.pixels = g.width;
      run.channels = c;
      table_.depthwise(window, operands, run);
    });
  }

 private:
  const Bf16Table& table_;
  const Depthwise shape_;
  const int gate_;
};

class DepthwiseFilterGradient final : public Kernel {
 public:
  explicit DepthwiseFilterGradient(const CallDescription& call)
      : table_(*simd().bf16),
        shape_(depthwiseOf(call, call.input(0), call.input(1), call.outputs[0], DType::float32)),
        activation_(activationValue(activation(call.attributes, "inputActivation"))) {
    const std::vector<int64_t> kernel = expectList(call, "kernelSize", 2);
    expectShape(call, "filter", call.outputs[0], {kernel[0], kernel[1], shape_.channels, 1});
    expectVector(call, 2, "inputScale", shape_.channels);
    expectVector(call, 3, "inputShift", shape_.channels);
    const Geometry& g = shape_.g;
    const int64_t rows = g.batch * g.outHeight;
    // A block is worth a task when it reads some ten times what its partial sums take.
    rowsPerBlock_ = std::max<int64_t>(1, std::max((rows + 31) / 32, 10 * g.kernelHeight * g.kernelWidth / g.outWidth));
    blocks_ = quotientUp(rows, rowsPerBlock_);
  }
  size_t workspaceBytes() const override { return static_cast<size_t>(blocks_ * filterSize()) * sizeof(float); }
  void run(const Arguments& a) const override {
    const Geometry& g = shape_.g;
    const int64_t c = shape_.channels, size = filterSize();
    const DepthwiseWindow window = {g.height,
                                    g.width,
                                    g.width * c,
                                    c,
                                    g.kernelHeight,
                                    g.kernelWidth,
                                    g.strideHeight,
                                    g.strideWidth,
                                    g.dilationHeight,
                                    g.dilationWidth,
                                    g.top,
                                    g.left,
                                    1,
                                    g.kernelWidth * c,
                                    c};
    Bf16DepthwiseOperands operands{};
    operands.inputScale = a.input(2);
    operands.inputShift = a.input(3);
    operands.inputActivation = activation_;
    auto* partial = static_cast<float*>(a.workspace);
    a.pool.run(blocks_, [&](int64_t block, int) {
      float* sums = partial + block * size;
      std::fill(sums, sums + size, 0.0f);
      const int64_t end = std::min((block + 1) * rowsPerBlock_, g.batch * g.outHeight);
      for (int64_t row = block * rowsPerBlock_; row < end; ++row)
        table_.depthwiseFilterGradient(
            window, operands,
            {a.input<uint16_t>(0) + row / g.outHeight * g.height * g.width * c,
             a.input<uint16_t>(1) + row * g.outWidth * c, sums, c, c, row % g.outHeight, 0, g.outWidth, c});
    });
    forEachChunk(a.pool, size, 1024, [&](int64_t begin, int64_t count) {
      for (int64_t i = begin; i < begin + count; ++i) {
        double sum = 0;
        for (int64_t block = 0; block < blocks_; ++block) sum += partial[block * size + i];
        a.output()[i] = static_cast<float>(sum);
      }
    });
  }

 private:
  int64_t filterSize() const { return shape_.g.kernelHeight * shape_.g.kernelWidth * shape_.channels; }
  const Bf16Table& table_;
  const Depthwise shape_;
  const int activation_;
  int64_t rowsPerBlock_ = 1, blocks_ = 1;
};

}  // namespace

std::unique_ptr<Kernel> makePointwiseInputGradient(const CallDescription& call) {
  return std::make_unique<PointwiseInputGradient>(call);
}

std::unique_ptr<Kernel> makePointwiseFilterGradient(const CallDescription& call) {
  return std::make_unique<PointwiseFilterGradient>(call);
}

std::unique_ptr<Kernel> makeDepthwiseInputGradient(const CallDescription& call) {
  expectOperands(call, 2, 1);
  const std::vector<int64_t> strides = expectList(call, "strides", 2);
  if (strides[0] != 1 || strides[1] != 1 || !single(call.input(1))) return nullptr;
  return std::make_unique<DepthwiseInputGradient>(call);
}

std::unique_ptr<Kernel> makeDepthwiseFilterGradient(const CallDescription& call) {
  expectOperands(call, 2, 1);
  if (!single(call.outputs[0])) return nullptr;
  return std::make_unique<DepthwiseFilterGradient>(call);
}

}  // namespace sepconv::cpu::bf16
