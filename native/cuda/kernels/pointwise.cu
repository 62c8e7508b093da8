// pointwiseConv2d (and dense) and its gradients as products of matrices:
//   y[rows, cout] = inputActivation(x) . filter       depth cin
//   dx[rows, cin] = (dy . filter^T) * mask            depth cout
//   dfilter[cin, cout] = inputActivation(x)^T . dy    depth rows, split where few tiles would leave the device idle
#include "grid.cuh"
#include "statistics.cuh"
#include "tensor_cores.cuh"

namespace sepconv::cuda {
namespace {

template <class A, class B>
void start(DeviceInterface& device, const char* name, const MatrixConfig& config, const GemmParameters<A, B>& p) {
  switch (config.tile) {
    case MatrixTile::tile128x128:
      return launchSimt<Tile128x128, 4>(device, name, p, 1);
    case MatrixTile::tile64x128:
    case MatrixTile::tile64x64:
      return launchSimt<Tile64x64, 4>(device, name, p, 1);
    case MatrixTile::tile192x184:
    case MatrixTile::tile192x96:
    case MatrixTile::tile128x256:
    case MatrixTile::tile256x128:
    case MatrixTile::tile184x192:
      return;  // of tensor cores alone
    case MatrixTile::tile32x64:
      return config.vector == 4 ? launchSimt<Tile32x64, 4>(device, name, p, 1)
                                : launchSimt<Tile32x64, 1>(device, name, p, 1);
  }
}

// 16-byte accesses need every row of x, filter and y to start at a multiple of four elements.
bool vectorised(const MatrixProblem& problem) {
  return problem.depth % 4 == 0 && problem.columns % 4 == 0 && problem.panel % 4 == 0;
}

// What chooseGemm needs to know of one of the three products.
GemmShape shapeOf(const MatrixProblem& problem, Product product, const DeviceProperties& device) {
  const int64_t rows = product == Product::filterGradient ? problem.depth : problem.rows;
  const int columns = product == Product::inputGradient ? problem.depth : problem.columns;
  const int64_t depth = product == Product::forward         ? problem.depth
                        : product == Product::inputGradient ? problem.columns
                                                            : problem.rows;
  const int lanes = problem.precision == Precision::bfloat16 ? 8 : 4;
  const bool aligned = problem.depth % lanes == 0 && problem.columns % lanes == 0 && problem.panel % lanes == 0;
  return {rows,
          columns,
          static_cast<int>(depth),
          1,
          vectorised(problem),
          true,
          product == Product::filterGradient,
          problem.precision,
          aligned && problem.inputActivation != Activation::elu,
          warpgroupTiles(problem, product, device)};
}

class Pointwise final : public Kernel {
 public:
  Pointwise(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkPointwise(call)),
        shape_(shapeOf(problem_, Product::forward, device)),
        config_(chooseGemm(shape_, device, tileOf(call))),
        statistics_(call.attributes.flag("statistics")) {
    if (problem_.columns > 64 * 65535) refuse(call, "more than 4194240 output channels");
  }

  size_t workspaceBytes() const override {
    if (!statistics_) return 0;
    if (config_.precision == Precision::float32) return statisticsWorkspaceBytes(problem_.rows, problem_.columns);
    return static_cast<size_t>((problem_.rows + tileRows() - 1) / tileRows() * 2 * problem_.columns) * sizeof(float);
  }
  std::string describe() const override { return cuda::describe(config_); }
  std::vector<std::string> tiles() const override { return tilesOf(shape_); }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const MatrixProblem& m = problem_;
    const int64_t outElements = m.rows * m.columns;
    PointwiseProduct p{};
    p.a = rowsOf(view(arguments.inputs[0], m.rows * m.depth, m.dtype), m.depth, m.inputActivation);
    p.b = filterOf(view(arguments.inputs[1], storedColumns(m) * m.depth, m.dtype), m.depth, m.columns, m.panel);
    p.store.y = view(arguments.outputs[0], outElements, m.dtype);
    p.store.epilogue = {view(arguments.input(2), m.columns), view(arguments.input(3), m.columns),
                        view(arguments.inputs[4], outElements, m.dtype), m.activation};
    p.store.rowStride = m.columns;
    p.rows = m.rows;
    p.columns = m.columns;
    p.depth = p.depthPerSplit = m.depth;
    p.splits = 1;
    if (config_.precision == Precision::float32) {
      start(device, "pointwiseConv2d", config_, p);
      if (statistics_)
        launchStatistics(device, view(static_cast<const void*>(arguments.outputs[0]), outElements, m.dtype), m.rows,
                         m.columns, arguments.workspace, arguments.output(1), arguments.output(2));
      return;
    }
    auto* partial = static_cast<float*>(arguments.workspace);
    const Output statistics =
        statistics_ ? view(partial, static_cast<int64_t>(workspaceBytes() / sizeof(float))) : Output{};
    launchTensorCores(device, "pointwiseConv2d", config_, p, m.inputActivation, statistics);
    if (statistics_)
      launchMergeMoments(device, partial, m.rows, m.columns, tileRows(), arguments.output(1), arguments.output(2));
  }

 private:
  // The tensor-core kernel leaves the moments of each tile.
  int tileRows() const { return sizeOf(config_.tile).rows; }

  const MatrixProblem problem_;
  const GemmShape shape_;
  const MatrixConfig config_;
  const bool statistics_;
};

class InputGradient final : public Kernel {
  // The activation comes after this product, as a mask.
  static MatrixProblem withoutActivation(MatrixProblem problem) {
    problem.inputActivation = Activation::none;
    return problem;
  }

 public:
  InputGradient(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkPointwiseInputGradient(call)),
        shape_(shapeOf(withoutActivation(problem_), Product::inputGradient, device)),
        config_(chooseGemm(shape_, device, tileOf(call))) {
    if (problem_.depth > 64 * 65535) refuse(call, "more than 4194240 input channels");
  }
  std::string describe() const override { return cuda::describe(config_); }
  std::vector<std::string> tiles() const override { return tilesOf(shape_); }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const MatrixProblem& m = problem_;
    const int64_t elements = m.rows * m.depth;
    PointwiseInputGradient p{};
    p.a = rowsOf(view(arguments.inputs[0], m.rows * m.columns, m.dtype), m.columns);
    p.b = rowsOf(view(arguments.inputs[1], int64_t{m.depth} * m.columns, m.dtype), m.columns);
    p.store.y = view(arguments.outputs[0], elements, m.dtype);
    p.store.mask = {view(arguments.inputs[2], elements, m.dtype), {}, {}, m.inputActivation};
    p.store.rowStride = m.depth;
    p.rows = m.rows;
    p.columns = m.depth;
    p.depth = p.depthPerSplit = m.columns;
    p.splits = 1;
    if (config_.precision == Precision::float32)
      start(device, "pointwiseConv2dInputGradient", config_, p);
    else
      launchTensorCores(device, "pointwiseConv2dInputGradient", config_, p);
  }

 private:
  const MatrixProblem problem_;
  const GemmShape shape_;
  const MatrixConfig config_;
};

class FilterGradient final : public Kernel {
 public:
  FilterGradient(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkPointwiseFilterGradient(call)),
        shape_(shapeOf(problem_, Product::filterGradient, device)),
        config_(chooseGemm(shape_, device, tileOf(call))) {
    if (problem_.columns > 64 * 65535) refuse(call, "more than 4194240 output channels");
  }
  size_t workspaceBytes() const override {
    return config_.splits > 1 ? static_cast<size_t>(elements()) * static_cast<size_t>(config_.splits) * sizeof(float)
                              : 0;
  }
  std::string describe() const override { return cuda::describe(config_); }
  std::vector<std::string> tiles() const override { return tilesOf(shape_); }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const MatrixProblem& m = problem_;
    const bool split = config_.splits > 1;
    auto* partial = static_cast<float*>(arguments.workspace);
    PointwiseFilterGradient p{};
    p.a = columnsOf(view(arguments.inputs[0], m.rows * m.depth, m.dtype), m.depth, m.inputActivation);
    p.b = columnsOf(view(arguments.inputs[1], m.rows * m.columns, m.dtype), m.columns);
    p.store.y = split ? view(static_cast<void*>(partial), elements() * config_.splits, DType::float32)
                      : view(arguments.outputs[0], elements(), DType::float32);
    p.store.rowStride = m.columns;
    p.store.splitStride = split ? elements() : 0;
    p.rows = m.depth;
    p.columns = m.columns;
    p.depth = static_cast<int>(m.rows);
    p.depthPerSplit = config_.depthPerSplit;
    p.splits = config_.splits;
    if (config_.precision == Precision::float32)
      start(device, "pointwiseConv2dFilterGradient", config_, p);
    else
      launchTensorCores(device, "pointwiseConv2dFilterGradient", config_, p, m.inputActivation);
    if (split)
      launchSumSplits(device, "pointwiseConv2dFilterGradient (splits)", partial, arguments.output(), elements(),
                      config_.splits);
  }

 private:
  int64_t elements() const { return int64_t{problem_.depth} * problem_.columns; }
  const MatrixProblem problem_;
  const GemmShape shape_;
  const MatrixConfig config_;
};

}  // namespace

void registerPointwiseKernels(Registry& registry) {
  registry["pointwiseConv2d"] = choose<Pointwise>;
  registry["pointwiseConv2dInputGradient"] = choose<InputGradient>;
  registry["pointwiseConv2dFilterGradient"] = choose<FilterGradient>;
}

}  // namespace sepconv::cuda
