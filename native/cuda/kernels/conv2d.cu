// conv2d, regular or grouped, and its gradients as implicit matrix products: the window is gathered while operand tiles
// are loaded, no im2col matrix exists.
//   y[pixel, cout] = window(x) . filter                   depth taps * cin
//   dx[pixel of x, cin] = window^T(dy) . filter^T * mask  depth taps * cout
//   dfilter[taps * cin, cout] = window(x)^T . dy          depth pixels, split over the device
// Each group of a grouped convolution is a product of its own, of cin / groups and cout / groups channels.
#include "grid.cuh"
#include "tensor_cores.cuh"

namespace sepconv::cuda {
namespace {

template <class A, class B>
void start(DeviceInterface& device, const char* name, const MatrixConfig& config, int groups,
           const GemmParameters<A, B>& p) {
  if (config.vector == 4)
    launchSimt<Tile64x64, 4>(device, name, p, groups);
  else
    launchSimt<Tile32x64, 1>(device, name, p, groups);
}

class Conv2dKernel : public Kernel {
 public:
  std::string describe() const override { return cuda::describe(config_); }
  std::vector<std::string> tiles() const override { return tiles_; }

 protected:
  explicit Conv2dKernel(const Conv2dProblem& problem) : problem_(problem) {}
  // Of one group's product.
  void choose(const CallDescription& call, const DeviceProperties& device, int64_t rows, int columns, int64_t depth,
              Activation before, bool splits) {
    if (columns > 32 * 65535 || depth > 0x7fffffff) refuse(call, "too many channels");
    const bool vectorised = cinGroup() % 4 == 0 && coutGroup() % 4 == 0 && problem_.panel % 4 == 0;
    const int lanes = problem_.precision == Precision::bfloat16 ? 8 : 4;
    const bool aligned = cinGroup() % lanes == 0 && coutGroup() % lanes == 0 && problem_.panel % lanes == 0;
    const GemmShape shape{rows,
                          columns,
                          static_cast<int>(depth),
                          problem_.groups,
                          vectorised,
                          false,
                          splits,
                          problem_.precision,
                          aligned && before != Activation::elu};
    tiles_ = tilesOf(shape);
    config_ = chooseGemm(shape, device, tileOf(call));
    if (config_.precision == Precision::float32 && vectorised) config_.tile = MatrixTile::tile64x64;
  }
  template <class A, class B>
  void fill(GemmParameters<A, B>& p, int64_t rows, int columns, int64_t depth) const {
    p.rows = rows;
    p.columns = columns;
    p.depth = static_cast<int>(depth);
    p.depthPerSplit = config_.depthPerSplit;
    p.splits = config_.splits;
  }
  int cinGroup() const { return problem_.cin / problem_.groups; }
  int coutGroup() const { return problem_.cout / problem_.groups; }
  int taps() const { return problem_.window.kernelHeight * problem_.window.kernelWidth; }
  int64_t inPixels() const { return int64_t{problem_.batch} * problem_.window.height * problem_.window.width; }
  int64_t outPixels() const { return int64_t{problem_.batch} * problem_.window.outHeight * problem_.window.outWidth; }
  int64_t filterElements() const {
    const int64_t columns = problem_.panel
                                ? (int64_t{problem_.cout} + problem_.panel - 1) / problem_.panel * problem_.panel
                                : problem_.cout;
    return int64_t{taps()} * cinGroup() * columns;
  }

  const Conv2dProblem problem_;
  std::vector<std::string> tiles_;
  MatrixConfig config_{};
};

class Conv2d final : public Conv2dKernel {
 public:
  Conv2d(const CallDescription& call, const DeviceProperties& device) : Conv2dKernel(checkConv2d(call)) {
    choose(call, device, outPixels(), coutGroup(), int64_t{taps()} * cinGroup(), problem_.inputActivation, false);
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const Conv2dProblem& c = problem_;
    const int depth = taps() * cinGroup();
    ConvolutionProduct p{};
    p.a = {view(arguments.inputs[0], inPixels() * c.cin, c.dtype), c.inputActivation, c.window, c.cin, cinGroup()};
    p.b = filterOf(view(arguments.inputs[1], filterElements(), c.dtype), depth, c.cout, c.panel);
    p.b.groupStride = coutGroup();
    const int64_t elements = outPixels() * c.cout;
    p.store.y = view(arguments.outputs[0], elements, c.dtype);
    p.store.epilogue = {view(arguments.input(2), c.cout), view(arguments.input(3), c.cout),
                        view(arguments.inputs[4], elements, c.dtype), c.activation};
    p.store.rowStride = c.cout;
    fill(p, outPixels(), coutGroup(), depth);
    if (config_.precision == Precision::float32)
      start(device, "conv2d", config_, c.groups, p);
    else
      launchTensorCores(device, "conv2d", config_, c.groups, p, c.inputActivation);
  }
};

class InputGradient final : public Conv2dKernel {
 public:
  InputGradient(const CallDescription& call, const DeviceProperties& device)
      : Conv2dKernel(checkConv2dInputGradient(call)) {
    choose(call, device, inPixels(), cinGroup(), int64_t{taps()} * coutGroup(), Activation::none, false);
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const Conv2dProblem& c = problem_;
    ConvolutionInputGradient p{};
    p.a = {view(arguments.inputs[0], outPixels() * c.cout, c.dtype), Activation::none, c.window, c.cout, coutGroup()};
    // Line ci, depth (tap, co): filter[tap][ci][group * coutGroup + co].
    p.b = {view(arguments.inputs[1], filterElements(), c.dtype),
           Activation::none,
           c.cout,
           1,
           0,
           0,
           coutGroup(),
           cinGroup() * c.cout,
           coutGroup()};
    const int64_t elements = inPixels() * c.cin;
    p.store.y = view(arguments.outputs[0], elements, c.dtype);
    p.store.mask = {view(arguments.inputs[2], elements, c.dtype), {}, {}, c.inputActivation};
    p.store.rowStride = c.cin;
    fill(p, inPixels(), cinGroup(), int64_t{taps()} * coutGroup());
    if (config_.precision == Precision::float32)
      start(device, "conv2dInputGradient", config_, c.groups, p);
    else
      launchTensorCores(device, "conv2dInputGradient", config_, c.groups, p);
  }
};

class FilterGradient final : public Conv2dKernel {
 public:
  FilterGradient(const CallDescription& call, const DeviceProperties& device)
      : Conv2dKernel(checkConv2dFilterGradient(call)) {
    choose(call, device, int64_t{taps()} * cinGroup(), coutGroup(), outPixels(), problem_.inputActivation, true);
  }
  size_t workspaceBytes() const override {
    return config_.splits > 1
               ? static_cast<size_t>(filterElements()) * static_cast<size_t>(config_.splits) * sizeof(float)
               : 0;
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const Conv2dProblem& c = problem_;
    const bool split = config_.splits > 1;
    auto* partial = static_cast<float*>(arguments.workspace);
    ConvolutionFilterGradient p{};
    p.a = {view(arguments.inputs[0], inPixels() * c.cin, c.dtype), c.inputActivation, c.window, c.cin, cinGroup()};
    p.b = columnsOf(view(arguments.inputs[1], outPixels() * c.cout, c.dtype), c.cout);
    p.b.groupStride = coutGroup();
    p.store.y = split ? view(static_cast<void*>(partial), filterElements() * config_.splits, DType::float32)
                      : view(arguments.outputs[0], filterElements(), DType::float32);
    p.store.rowStride = c.cout;
    p.store.splitStride = split ? filterElements() : 0;
    fill(p, int64_t{taps()} * cinGroup(), coutGroup(), outPixels());
    if (config_.precision == Precision::float32)
      start(device, "conv2dFilterGradient", config_, c.groups, p);
    else
      launchTensorCores(device, "conv2dFilterGradient", config_, c.groups, p, c.inputActivation);
    if (split)
      launchSumSplits(device, "conv2dFilterGradient (splits)", partial, arguments.output(), filterElements(),
                      config_.splits);
  }
};

}  // namespace

void registerConv2dKernels(Registry& registry) {
  registry["conv2d"] = cuda::choose<Conv2d>;
  registry["conv2dInputGradient"] = cuda::choose<InputGradient>;
  registry["conv2dFilterGradient"] = cuda::choose<FilterGradient>;
}

}  // namespace sepconv::cuda
