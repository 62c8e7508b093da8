// separableConv2d: depthwise and pointwise as one kernel. The left operand of the product is computed where it is
// needed: d[row, c*m + j] = intermediateActivation(depthwise(prologue(x))[c*m + j] + depthwiseShift), from x through
// the caches straight into the shared-memory tile; it never exists in device memory. Each tile of output columns
// computes it again, so this pays where few tiles span them (up to 256 output channels); beyond that two kernels are as
// fast.
#include "../arch/launch.h"
#include "../choose.h"
#include "../kernel.h"
#include "matrix.cuh"

namespace sepconv::cuda {
namespace {

// KERNEL 3: 3x3 taps without dilation, unrolled; 0: any window, at run time.
template <int KERNEL>
struct SeparableSource {
  Input x, filter, shift;  // filter[kh, kw, c, m], shift[c*m]
  Prologue prologue;
  Activation activation;
  Window window;
  int channels, multiplier;

  struct Row {
    int n, iy, ix;  // the window's first position
    __device__ __forceinline__ bool inside() const { return n >= 0; }
  };
  __device__ __forceinline__ Row open(int64_t row, bool inside) const {
    if (!inside) return {-1, 0, 0};
    const int pixel = static_cast<int>(row);  // tensors have less than 2^31 elements
    const int ox = pixel % window.outWidth, oy = pixel / window.outWidth % window.outHeight;
    return {pixel / window.outWidth / window.outHeight, oy * window.strideHeight - window.top,
            ox * window.strideWidth - window.left};
  }

  template <int N>
  __device__ __forceinline__ void tap(Floats<N>& acc, const Row& row, int iy, int ix, int tapIndex, int k, int c,
                                      const ChannelPrologue<N>& channel) const {
    if (static_cast<unsigned>(iy) >= static_cast<unsigned>(window.height) ||
        static_cast<unsigned>(ix) >= static_cast<unsigned>(window.width))
      return;
    Floats<N> value = x.load<N>(((int64_t{row.n} * window.height + iy) * window.width + ix) * channels + c);
    channel.apply(value);
    multiplyAdd(acc, value, filter.load<N>(int64_t{tapIndex} * channels * multiplier + k));
  }

  template <int N>
  __device__ __forceinline__ Floats<N> load(const Row& row, int k) const {
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
    MatrixParameters<SeparableSource<KERNEL>> p{};
    SeparableSource<KERNEL>& source = p.source;
    source.x = view(arguments.input(0), int64_t{d.batch} * w.height * w.width * d.channels);
    source.filter = view(arguments.input(1), int64_t{w.kernelHeight} * w.kernelWidth * m.depth);
    source.shift = view(arguments.input(5), m.depth);
    source.prologue = {view(arguments.input(3), d.channels), view(arguments.input(4), d.channels), d.inputActivation};
    source.activation = d.activation;
    source.window = w;
    source.channels = d.channels;
    source.multiplier = d.multiplier;
    p.filter = filterView(arguments.input(2), m);
    p.epilogue = {view(arguments.input(6), m.columns), view(arguments.input(7), m.columns),
                  view(arguments.input(8), outElements), m.activation};
    p.y = view(arguments.output(), outElements);
    p.rows = m.rows;
    arch::launch(device, "separableConv2d", matrixKernel<T, SeparableSource<KERNEL>, VECTOR>, matrixGrid<T>(m),
                 T::threads, T::sharedBytes, p);
  }

  const SeparableProblem problem_;
  const MatrixConfig config_;
};

}  // namespace

void registerSeparableKernels(Registry& registry) {
  registry["separableConv2d"] = [](const CallDescription& call,
                                   const DeviceProperties& device) -> std::unique_ptr<Kernel> {
    return std::make_unique<Separable>(call, device);
  };
}

}  // namespace sepconv::cuda
