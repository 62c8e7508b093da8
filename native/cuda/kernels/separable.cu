// separableConv2d: depthwise and pointwise as one kernel. The left operand of the product is computed where it is
// needed: d[row, c*m + j] = intermediateActivation(depthwise(prologue(x))[c*m + j] + depthwiseShift), from x through
// the caches straight into the shared-memory tile; it never exists in device memory. Each tile of output columns
// computes it again, so this pays where few tiles span them (up to 256 output channels); beyond that two kernels are as
// fast.
#include "gemm.cuh"
#include "grid.cuh"

namespace sepconv::cuda {
namespace {

// KERNEL 3: 3x3 taps without dilation, unrolled; 0: any window, at run time.
template <int KERNEL>
struct SeparableOperand {
  static constexpr bool depthContiguous = true, inMemory = false;
  AnyInput x, filter;  // filter[kh, kw, c, m]
  Input shift;         // [c*m]
  Prologue prologue;
  Activation activation;
  Window window;
  int channels, multiplier;

  struct Line {
    int n, iy, ix;  // the window's first position; n -1: none
  };
  struct Depth {
    int k;
    bool inside;
  };
  __device__ __forceinline__ Line line(int64_t index, bool inside, int) const {
    if (!inside) return {-1, 0, 0};
    const int pixel = static_cast<int>(index);  // tensors have less than 2^31 elements
    const int ox = pixel % window.outWidth, oy = pixel / window.outWidth % window.outHeight;
    return {pixel / window.outWidth / window.outHeight, oy * window.strideHeight - window.top,
            ox * window.strideWidth - window.left};
  }

  __device__ __forceinline__ Depth depth(int k, bool inside) const { return {k, inside}; }

  template <int N>
  __device__ __forceinline__ void tap(Floats<N>& acc, const Line& row, int iy, int ix, int tapIndex, int k, int c,
                                      const ChannelPrologue<N>& channel) const {
    if (static_cast<unsigned>(iy) >= static_cast<unsigned>(window.height) ||
        static_cast<unsigned>(ix) >= static_cast<unsigned>(window.width))
      return;
    Floats<N> value = x.load<N>(((int64_t{row.n} * window.height + iy) * window.width + ix) * channels + c);
    channel.apply(value);
    multiplyAdd(acc, value, filter.load<N>(int64_t{tapIndex} * channels * multiplier + k));
  }

  template <int N>
  __device__ __forceinline__ Floats<N> compute(const Line& row, const Depth& depth) const {
    if (row.n < 0 || !depth.inside) return filled<N>(0.f);
    const int k = depth.k;
    const int c = k / multiplier;  // N is 1 unless the multiplier is
    const ChannelPrologue<N> channel(prologue, c);
    Floats<N> acc = filled<N>(0.f);
    if constexpr (KERNEL != 0) {
      ARCH_UNROLL
      for (int t = 0; t < KERNEL * KERNEL; ++t)
        tap(acc, row, row.iy + t / KERNEL, row.ix + t % KERNEL, t, k, c, channel);
    } else {
      ARCH_NO_UNROLL
      for (int ky = 0; ky < window.kernelHeight; ++ky) {
        ARCH_NO_UNROLL
        for (int kx = 0; kx < window.kernelWidth; ++kx)
          tap(acc, row, row.iy + ky * window.dilationHeight, row.ix + kx * window.dilationWidth,
              ky * window.kernelWidth + kx, k, c, channel);
      }
    }
    if (shift.present()) {
      const Floats<N> s = shift.load<N>(k);
      ARCH_UNROLL
      for (int i = 0; i < N; ++i) acc[i] += s[i];
    }
    activate(acc, activation);
    return acc;
  }
};

class Separable final : public Kernel {
 public:
  Separable(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkSeparable(call)), config_(chooseSeparable(problem_, device)) {
    if (problem_.pointwise.columns > 64 * 65535) refuse(call, "more than 4194240 output channels");
  }

  std::string describe() const override { return cuda::describe(config_) + (plain3x3() ? ", 3x3 taps" : ", any taps"); }

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
    GemmParameters<SeparableOperand<KERNEL>, MatrixOperand<false>> p{};
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
    launchSimt<T, VECTOR>(device, "separableConv2d", p, 1);
  }

  const SeparableProblem problem_;
  const MatrixConfig config_;
};

}  // namespace

void registerSeparableKernels(Registry& registry) {
  registry["separableConv2d"] = choose<Separable>;
}

}  // namespace sepconv::cuda
