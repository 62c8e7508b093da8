// separableConv2d: depthwise and pointwise as one kernel. The left operand of the product is computed where it is
// needed: d[row, c*m + j] = intermediateActivation(depthwise(prologue(x))[c*m + j] + depthwiseShift), from x through
// the caches straight into the shared-memory tile; it never exists in device memory. Each tile of output columns
// computes it again, so this pays where few tiles span them (up to 256 output channels); beyond that two kernels are as
// fast.
#include "grid.cuh"
#include "separable.cuh"

namespace sepconv::cuda {
namespace {

class Separable final : public Kernel {
 public:
  Separable(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkSeparable(call)), config_(chooseSeparable(problem_, device, tileOf(call))) {
    if (problem_.pointwise.columns > 64 * 65535) refuse(call, "more than 4194240 output channels");
  }

  std::string describe() const override { return cuda::describe(config_) + (plain3x3() ? ", 3x3 taps" : ", any taps"); }

  std::vector<std::string> tiles() const override { return tilesOf(problem_); }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    if (config_.tile == MatrixTile::tile64x128)
      plain3x3() ? start<Tile64x128, 3, 4>(device, arguments) : start<Tile64x128, 0, 4>(device, arguments);
    else if (config_.vector == 4)
      plain3x3() ? start<Tile32x64, 3, 4>(device, arguments) : start<Tile32x64, 0, 4>(device, arguments);
    else
      start<Tile32x64, 0, 1>(device, arguments);
  }

 private:
  // Taps known at compile time; single channels always take the general loop.
  bool plain3x3() const {
    const Window& w = problem_.depthwise.window;
    return config_.vector == 4 && w.kernelHeight == 3 && w.kernelWidth == 3 && w.dilationHeight == 1 &&
           w.dilationWidth == 1;
  }

  template <class T, int KERNEL, int VECTOR>
  void start(DeviceInterface& device, const Arguments& arguments) const {
    const DepthwiseProblem& d = problem_.depthwise;
    const MatrixProblem& m = problem_.pointwise;
    const Window& w = d.window;
    const int64_t outElements = m.rows * m.columns;
    SeparableProduct<KERNEL> p{};
    p.a.x = view(arguments.inputs[0], int64_t{d.batch} * w.height * w.width * d.channels, d.dtype);
    p.a.filter = view(arguments.inputs[1], int64_t{w.kernelHeight} * w.kernelWidth * m.depth, d.dtype);
    p.a.shift = view(arguments.input(5), m.depth);
    p.a.prologue = {view(arguments.input(3), d.channels), view(arguments.input(4), d.channels), d.inputActivation};
    p.a.activation = d.activation;
    p.a.window = w;
    p.a.channels = d.channels;
    p.a.multiplier = d.multiplier;
    p.b = filterOf(view(arguments.inputs[2], storedColumns(m) * m.depth, d.dtype), m.depth, m.columns, m.panel);
    p.store.y = view(arguments.outputs[0], outElements, d.dtype);
    p.store.epilogue = {view(arguments.input(6), m.columns), view(arguments.input(7), m.columns),
                        view(arguments.inputs[8], outElements, d.dtype), m.activation};
    p.store.rowStride = m.columns;
    p.rows = m.rows;
    p.columns = m.columns;
    p.depth = p.depthPerSplit = m.depth;
    p.splits = 1;
    if constexpr (VECTOR == 4) {
      if (config_.precision != Precision::float32) return launchTensorCores(device, "separableConv2d", config_, p);
    }
    launchSimt<T, VECTOR>(device, "separableConv2d", p, 1);
  }

  const SeparableProblem problem_;
  const MatrixConfig config_;
};

}  // namespace

void registerSeparableKernels(Registry& registry) { registry["separableConv2d"] = choose<Separable>; }

}  // namespace sepconv::cuda
