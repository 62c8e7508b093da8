// separableConv2d: depthwise and pointwise as one kernel. The left operand of the product is computed where it is
// needed: d[row, c*m + j] = intermediateActivation(depthwise(prologue(x))[c*m + j] + depthwiseShift), from x through
// the caches straight into the shared-memory tile; it never exists in device memory. In training the gradient of the
// pointwise filter, d^T . dy, computes it again. Each tile of output columns does, so both pay where few tiles span
// them (src/graph/separableCost.ts); beyond that two kernels are faster, by wgmma above all.
#include "grid.cuh"
#include "separable.cuh"
#include "statistics.cuh"

namespace sepconv::cuda {
namespace {

// Taps known at compile time; single channels always take the general loop.
bool plain3x3(const Window& w, const MatrixConfig& config) {
  return config.vector == 4 && w.kernelHeight == 3 && w.kernelWidth == 3 && w.dilationHeight == 1 &&
         w.dilationWidth == 1;
}

const char* taps(const Window& w, const MatrixConfig& config) {
  return plain3x3(w, config) ? ", 3x3 taps" : ", any taps";
}

// The depthwise result; `prologue` and `shift`: inputs from this one on.
template <class Operand>
Operand operandOf(const SeparableProblem& problem, const Arguments& arguments, size_t prologue) {
  const DepthwiseProblem& d = problem.depthwise;
  const Window& w = d.window;
  const int depth = problem.pointwise.depth;
  Operand a{};
  a.x = view(arguments.inputs[0], int64_t{d.batch} * w.height * w.width * d.channels, d.dtype);
  a.filter = view(arguments.inputs[1], int64_t{w.kernelHeight} * w.kernelWidth * depth, d.dtype);
  a.shift = view(arguments.input(prologue + 2), depth);
  a.prologue = {view(arguments.input(prologue), d.channels), view(arguments.input(prologue + 1), d.channels),
                d.inputActivation};
  a.activation = d.activation;
  a.window = w;
  a.channels = d.channels;
  a.multiplier = d.multiplier;
  return a;
}

class Separable final : public Kernel {
 public:
  Separable(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkSeparable(call)),
        config_(chooseSeparable(problem_, device, tileOf(call))),
        statistics_(call.attributes.flag("statistics")) {
    if (problem_.pointwise.columns > 64 * 65535) refuse(call, "more than 4194240 output channels");
  }

  size_t workspaceBytes() const override {
    const MatrixProblem& m = problem_.pointwise;
    if (!statistics_) return 0;
    if (config_.precision == Precision::float32) return statisticsWorkspaceBytes(m.rows, m.columns);
    return static_cast<size_t>((m.rows + tileRows() - 1) / tileRows() * 2 * m.columns) * sizeof(float);
  }
  std::string describe() const override { return cuda::describe(config_) + taps(problem_.depthwise.window, config_); }
  std::vector<std::string> tiles() const override { return tilesOf(problem_); }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const bool plain = plain3x3(problem_.depthwise.window, config_);
    if (config_.tile == MatrixTile::tile64x128)
      plain ? start<Tile64x128, 3, 4>(device, arguments) : start<Tile64x128, 0, 4>(device, arguments);
    else if (config_.vector == 4)
      plain ? start<Tile32x64, 3, 4>(device, arguments) : start<Tile32x64, 0, 4>(device, arguments);
    else
      start<Tile32x64, 0, 1>(device, arguments);
  }

 private:
  // The tensor-core kernel leaves the moments of each tile.
  int tileRows() const { return sizeOf(config_.tile).rows; }

  template <class T, int KERNEL, int VECTOR>
  void start(DeviceInterface& device, const Arguments& arguments) const {
    const MatrixProblem& m = problem_.pointwise;
    const int64_t outElements = m.rows * m.columns;
    SeparableProduct<KERNEL> p{};
    p.a = operandOf<SeparableOperand<KERNEL, true>>(problem_, arguments, 3);
    p.b = filterOf(view(arguments.inputs[2], storedColumns(m) * m.depth, m.dtype), m.depth, m.columns, m.panel);
    p.store.y = view(arguments.outputs[0], outElements, m.dtype);
    p.store.epilogue = {view(arguments.input(6), m.columns), view(arguments.input(7), m.columns),
                        view(arguments.inputs[8], outElements, m.dtype), m.activation};
    p.store.rowStride = m.columns;
    p.rows = m.rows;
    p.columns = m.columns;
    p.depth = p.depthPerSplit = m.depth;
    p.splits = 1;
    if constexpr (VECTOR == 4) {
      if (config_.precision != Precision::float32) {
        auto* partial = static_cast<float*>(arguments.workspace);
        launchTensorCores(
            device, "separableConv2d", config_, p,
            statistics_ ? view(partial, static_cast<int64_t>(workspaceBytes() / sizeof(float))) : Output{});
        if (statistics_)
          launchMergeMoments(device, partial, m.rows, m.columns, tileRows(), arguments.output(1), arguments.output(2));
        return;
      }
    }
    launchSimt<T, VECTOR>(device, "separableConv2d", p, 1);
    if (statistics_)
      launchStatistics(device, view(static_cast<const void*>(arguments.outputs[0]), outElements, m.dtype), m.rows,
                       m.columns, arguments.workspace, arguments.output(1), arguments.output(2));
  }

  const SeparableProblem problem_;
  const MatrixConfig config_;
  const bool statistics_;
};

class PointwiseGradient final : public Kernel {
  static GemmShape shapeOf(const SeparableProblem& problem) {
    const MatrixProblem& m = problem.pointwise;
    const int lanes = m.precision == Precision::bfloat16 ? 8 : 4;
    const auto comeIn = [&](int vector) {
      return problem.depthwise.multiplier == 1 && m.depth % vector == 0 && m.columns % vector == 0;
    };
    return {m.depth, m.columns, static_cast<int>(m.rows), 1, comeIn(4), false, true, m.precision, comeIn(lanes)};
  }

 public:
  PointwiseGradient(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkSeparablePointwiseGradient(call)),
        shape_(shapeOf(problem_)),
        config_(chooseGemm(shape_, device, tileOf(call))) {
    if (problem_.pointwise.columns > 64 * 65535) refuse(call, "more than 4194240 output channels");
  }
  size_t workspaceBytes() const override {
    return config_.splits > 1 ? static_cast<size_t>(elements()) * static_cast<size_t>(config_.splits) * sizeof(float)
                              : 0;
  }
  std::string describe() const override { return cuda::describe(config_) + taps(problem_.depthwise.window, config_); }
  std::vector<std::string> tiles() const override { return tilesOf(shape_); }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const bool plain = plain3x3(problem_.depthwise.window, config_);
    if (config_.vector != 4)
      start<Tile32x64, 0, 1>(device, arguments);
    else if (config_.tile == MatrixTile::tile32x64)
      plain ? start<Tile32x64, 3, 4>(device, arguments) : start<Tile32x64, 0, 4>(device, arguments);
    else
      plain ? start<Tile64x64, 3, 4>(device, arguments) : start<Tile64x64, 0, 4>(device, arguments);
    if (config_.splits > 1)
      launchSumSplits(device, "separableConv2dPointwiseGradient (splits)", static_cast<float*>(arguments.workspace),
                      arguments.output(), elements(), config_.splits);
  }

 private:
  template <class T, int KERNEL, int VECTOR>
  void start(DeviceInterface& device, const Arguments& arguments) const {
    const MatrixProblem& m = problem_.pointwise;
    const bool split = config_.splits > 1;
    const char* name = "separableConv2dPointwiseGradient";
    SeparableFilterGradient<KERNEL> p{};
    p.a = operandOf<SeparableOperand<KERNEL, false>>(problem_, arguments, 3);
    p.b = columnsOf(view(arguments.inputs[2], m.rows * m.columns, m.dtype), m.columns);
    p.store.y = split ? view(arguments.workspace, elements() * config_.splits, DType::float32)
                      : view(arguments.outputs[0], elements(), DType::float32);
    p.store.rowStride = m.columns;
    p.store.splitStride = split ? elements() : 0;
    p.rows = m.depth;
    p.columns = m.columns;
    p.depth = static_cast<int>(m.rows);
    p.depthPerSplit = config_.depthPerSplit;
    p.splits = config_.splits;
    if constexpr (VECTOR == 4) {
      if (config_.precision != Precision::float32) return launchTensorCores(device, name, config_, p);
    }
    launchSimt<T, VECTOR>(device, name, p, 1);
  }
  int64_t elements() const { return int64_t{problem_.pointwise.depth} * problem_.pointwise.columns; }

  const SeparableProblem problem_;
  const GemmShape shape_;
  const MatrixConfig config_;
};

}  // namespace

void registerSeparableKernels(Registry& registry) {
  registry["separableConv2d"] = choose<Separable>;
  registry["separableConv2dPointwiseGradient"] = choose<PointwiseGradient>;
}

}  // namespace sepconv::cuda
