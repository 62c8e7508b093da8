// pointwiseConv2d and dense: a matrix product whose left operand passes through inputActivation. Statistics of y, where
// asked for, are two more launches over the stored y (statistics.cuh).
#include "../arch/launch.h"
#include "../choose.h"
#include "../kernel.h"
#include "matrix.cuh"

namespace sepconv::cuda {
namespace {

struct PointwiseSource {
  Input x;
  int depth;
  Activation activation;

  struct Row {
    int64_t start;
    __device__ __forceinline__ bool inside() const { return start >= 0; }
  };
  __device__ __forceinline__ Row open(int64_t row, bool inside) const { return {inside ? row * depth : -1}; }
  template <int N>
  __device__ __forceinline__ Floats<N> load(const Row& row, int k) const {
    Floats<N> value = x.load<N>(row.start + k);
    activate(value, activation);
    return value;
  }
};

class Pointwise final : public Kernel {
 public:
  Pointwise(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkPointwise(call)),
        config_(chooseMatrix(problem_, device)),
        statistics_(call.attributes.flag("statistics")) {
    if (problem_.columns > 64 * 65535) refuse(call, "more than 4194240 output channels");
  }

  size_t workspaceBytes() const override {
    return statistics_ ? statisticsWorkspaceBytes(problem_.rows, problem_.columns) : 0;
  }

  std::string describe() const override { return cuda::describe(config_); }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const int64_t outElements = problem_.rows * problem_.columns;
    MatrixParameters<PointwiseSource> p{};
    p.source = {view(arguments.input(0), problem_.rows * problem_.depth), problem_.depth, problem_.inputActivation};
    p.filter = filterView(arguments.input(1), problem_);
    p.epilogue = {view(arguments.input(2), problem_.columns), view(arguments.input(3), problem_.columns),
                  view(arguments.input(4), outElements), problem_.activation};
    p.y = view(arguments.output(), outElements);
    p.rows = problem_.rows;
    const bool vector = config_.vector == 4;
    switch (config_.tile) {
      case MatrixTile::tile128x128:
        start<Tile128x128, 4>(device, p);
        break;
      case MatrixTile::tile64x128:
      case MatrixTile::tile64x64:
        vector ? start<Tile64x64, 4>(device, p) : start<Tile64x64, 1>(device, p);
        break;
      case MatrixTile::tile32x64:
        vector ? start<Tile32x64, 4>(device, p) : start<Tile32x64, 1>(device, p);
        break;
    }
    if (statistics_)
      launchStatistics(device, arguments.output(), problem_.rows, problem_.columns, arguments.workspace,
                       arguments.output(1), arguments.output(2));
  }

 private:
  template <class T, int VECTOR>
  void start(DeviceInterface& device, const MatrixParameters<PointwiseSource>& p) const {
    arch::launch(device, "pointwiseConv2d", matrixKernel<T, PointwiseSource, VECTOR>, matrixGrid<T>(problem_),
                 T::threads, T::sharedBytes, p);
  }

  const MatrixProblem problem_;
  const MatrixConfig config_;
  const bool statistics_;
};

}  // namespace

void registerPointwiseKernels(Registry& registry) {
  registry["pointwiseConv2d"] = [](const CallDescription& call,
                                   const DeviceProperties& device) -> std::unique_ptr<Kernel> {
    return std::make_unique<Pointwise>(call, device);
  };
}

}  // namespace sepconv::cuda
