// depthwiseConv2dFilterGradient: dfilter[ky, kx, c, j] = sum over outputs of prologue(x)[n, iy, ix, c] * dy[n, oy, ox,
// c*m + j], deterministic in two stages. A block takes 32 channels and a chunk of output rows; its threads walk along
// rows of their own, so that a 3x3 window slides through registers and x and dy are read once each; the threads' sums
// are added in order through shared memory, the chunks' by a second launch. Other windows take one tap per block: right
// for any, but x and dy are read once per tap.
#include <algorithm>

#include "gemm.cuh"
#include "grid.cuh"

namespace sepconv::cuda {
namespace {

constexpr int filterThreads = 128;

struct FilterGradientParameters {
  AnyInput x, dy;
  Prologue prologue;
  Output partial;  // [chunk][tap][c*m + j]
  Window window;
  int channels, multiplier;
  int rows, chunkRows;  // rows: batch * outHeight
};

template <int VECTOR>
struct FilterLane {
  static constexpr int lanes = depthwiseChannels / VECTOR, runs = filterThreads / lanes;
  const FilterGradientParameters& p;
  const int run, o, c;  // o: output channel, c: the channel of x that it reads
  const ChannelPrologue<VECTOR> prologue;

  __device__ __forceinline__ explicit FilterLane(const FilterGradientParameters& parameters)
      : p(parameters),
        run(arch::threadIndex() / lanes),
        o(arch::blockY() * depthwiseChannels + arch::threadIndex() % lanes * VECTOR),
        c(o / p.multiplier),
        prologue(p.prologue, inside() ? c : 0) {}
  __device__ __forceinline__ bool inside() const { return o < p.channels * p.multiplier; }
  // x at a position that may lie in the padding.
  __device__ __forceinline__ Floats<VECTOR> at(int n, int y, int x) const {
    if (static_cast<unsigned>(y) >= static_cast<unsigned>(p.window.height) ||
        static_cast<unsigned>(x) >= static_cast<unsigned>(p.window.width))
      return filled<VECTOR>(0.f);
    Floats<VECTOR> value = p.x.load<VECTOR>(((int64_t{n} * p.window.height + y) * p.window.width + x) * p.channels + c);
    prologue.apply(value);
    return value;
  }
  __device__ __forceinline__ Floats<VECTOR> gradientAt(int row, int ox) const {
    return p.dy.load<VECTOR>((int64_t{row} * p.window.outWidth + ox) * p.channels * p.multiplier + o);
  }
};

// Adds the runs' sums of TAPS taps in order and writes them as taps firstTap... of the chunk.
template <int TAPS, int VECTOR>
__device__ __forceinline__ void storeSums(const FilterLane<VECTOR>& lane, const Floats<VECTOR> (&acc)[TAPS],
                                          int firstTap) {
  const FilterGradientParameters& p = lane.p;
  constexpr int runs = FilterLane<VECTOR>::runs;
  arch::SharedMemory memory;
  const auto shared = memory.array<float>(runs * TAPS * depthwiseChannels);
  const int place = arch::threadIndex() % FilterLane<VECTOR>::lanes * VECTOR;
  ARCH_UNROLL
  for (int t = 0; t < TAPS; ++t) shared.store<VECTOR>((lane.run * TAPS + t) * depthwiseChannels + place, acc[t]);
  arch::syncThreads();
  const int outChannels = p.channels * p.multiplier, taps = p.window.kernelHeight * p.window.kernelWidth;
  ARCH_NO_UNROLL
  for (int i = arch::threadIndex(); i < TAPS * depthwiseChannels; i += filterThreads) {
    const int o = arch::blockY() * depthwiseChannels + i % depthwiseChannels;
    if (o >= outChannels) continue;
    float sum = 0.f;
    ARCH_NO_UNROLL
    for (int run = 0; run < runs; ++run) sum += shared.load(run * TAPS * depthwiseChannels + i)[0];
    p.partial.store<1>((int64_t{arch::blockX()} * taps + firstTap + i / depthwiseChannels) * outChannels + o, {sum});
  }
}

template <int VECTOR>
__global__ void __launch_bounds__(filterThreads, 4)
    filterGradient3x3(const __grid_constant__ FilterGradientParameters p) {
  const FilterLane<VECTOR> lane(p);
  const Window& w = p.window;
  const int first = arch::blockX() * p.chunkRows, end = first + p.chunkRows < p.rows ? first + p.chunkRows : p.rows;
  Floats<VECTOR> acc[9];
  ARCH_UNROLL
  for (int t = 0; t < 9; ++t) acc[t] = filled<VECTOR>(0.f);
  if (lane.inside()) {
    ARCH_NO_UNROLL
    for (int row = first + lane.run; row < end; row += FilterLane<VECTOR>::runs) {
      const int n = row / w.outHeight, y = row % w.outHeight * w.strideHeight - w.top;
      Floats<VECTOR> window[3][3];  // [column][row]
      const auto column = [&](int i, int x) {
        ARCH_UNROLL
        for (int ky = 0; ky < 3; ++ky) window[i][ky] = lane.at(n, y + ky, x);
      };
      ARCH_NO_UNROLL
      for (int ox = 0; ox < w.outWidth; ++ox) {
        const int x = ox * w.strideWidth - w.left;
        if (ox == 0 || w.strideWidth > 2) {
          column(0, x);
          column(1, x + 1);
        } else if (w.strideWidth == 2) {
          ARCH_UNROLL
          for (int ky = 0; ky < 3; ++ky) window[0][ky] = window[2][ky];
          column(1, x + 1);
        } else {
          ARCH_UNROLL
          for (int ky = 0; ky < 3; ++ky) {
            window[0][ky] = window[1][ky];
            window[1][ky] = window[2][ky];
          }
        }
        column(2, x + 2);
        const Floats<VECTOR> dy = lane.gradientAt(row, ox);
        ARCH_UNROLL
        for (int ky = 0; ky < 3; ++ky) {
          ARCH_UNROLL
          for (int kx = 0; kx < 3; ++kx) multiplyAdd(acc[ky * 3 + kx], window[kx][ky], dy);
        }
      }
    }
  }
  storeSums<9>(lane, acc, 0);
}

template <int VECTOR>
__global__ void __launch_bounds__(filterThreads)
    filterGradientOfTap(const __grid_constant__ FilterGradientParameters p) {
  const FilterLane<VECTOR> lane(p);
  const Window& w = p.window;
  const int tap = arch::blockZ(), ky = tap / w.kernelWidth * w.dilationHeight,
            kx = tap % w.kernelWidth * w.dilationWidth;
  const int first = arch::blockX() * p.chunkRows, end = first + p.chunkRows < p.rows ? first + p.chunkRows : p.rows;
  Floats<VECTOR> acc[1] = {filled<VECTOR>(0.f)};
  if (lane.inside()) {
    ARCH_NO_UNROLL
    for (int row = first + lane.run; row < end; row += FilterLane<VECTOR>::runs) {
      const int n = row / w.outHeight, y = row % w.outHeight * w.strideHeight - w.top + ky;
      if (y < 0 || y >= w.height) continue;
      ARCH_NO_UNROLL
      for (int ox = 0; ox < w.outWidth; ++ox)
        multiplyAdd(acc[0], lane.at(n, y, ox * w.strideWidth - w.left + kx), lane.gradientAt(row, ox));
    }
  }
  storeSums<1>(lane, acc, tap);
}

class FilterGradient final : public Kernel {
 public:
  explicit FilterGradient(const CallDescription& call) : problem_(checkDepthwiseFilterGradient(call)) {
    const Window& w = problem_.window;
    outChannels_ = problem_.channels * problem_.multiplier;
    vector_ = problem_.multiplier == 1 && problem_.channels % 4 == 0 ? 4 : 1;
    plain3x3_ = w.kernelHeight == 3 && w.kernelWidth == 3 && w.dilationHeight == 1 && w.dilationWidth == 1 &&
                problem_.multiplier == 1;
    rows_ = problem_.batch * w.outHeight;
    const int64_t groups = (outChannels_ + depthwiseChannels - 1) / depthwiseChannels;
    const int64_t taps = int64_t{w.kernelHeight} * w.kernelWidth;
    if (groups > 65535) refuse(call, "more than 2097120 channels");
    if (!plain3x3_ && taps > 65535) refuse(call, "windows of more than 65535 taps");
    const int64_t runs = filterThreads / (depthwiseChannels / vector_);
    // A thousand blocks fill any device several times over.
    const int64_t wanted = std::max<int64_t>(1, 1024 / (groups * (plain3x3_ ? 1 : taps)));
    chunks_ = std::min(wanted, (rows_ + runs - 1) / runs);
    chunkRows_ = static_cast<int>((rows_ + chunks_ - 1) / chunks_);
    chunks_ = (rows_ + chunkRows_ - 1) / chunkRows_;
    elements_ = taps * outChannels_;
  }
  size_t workspaceBytes() const override { return static_cast<size_t>(chunks_ * elements_) * sizeof(float); }
  std::string describe() const override {
    return std::string(plain3x3_ ? "3x3" : "a tap per block") + (vector_ == 4 ? ", 4 channels" : ", 1 channel") +
           " per access";
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const Window& w = problem_.window;
    auto* partial = static_cast<float*>(arguments.workspace);
    FilterGradientParameters p{};
    p.x = view(arguments.inputs[0], int64_t{problem_.batch} * w.height * w.width * problem_.channels, problem_.dtype);
    p.dy = view(arguments.inputs[1], rows_ * w.outWidth * outChannels_, problem_.dtype);
    p.prologue = {view(arguments.input(2), problem_.channels), view(arguments.input(3), problem_.channels),
                  problem_.inputActivation};
    p.partial = view(partial, chunks_ * elements_);
    p.window = w;
    p.channels = problem_.channels;
    p.multiplier = problem_.multiplier;
    p.rows = static_cast<int>(rows_);
    p.chunkRows = chunkRows_;
    const int runs = filterThreads / (depthwiseChannels / vector_), taps = plain3x3_ ? 9 : 1;
    const Extent grid{static_cast<uint32_t>(chunks_),
                      static_cast<uint32_t>((outChannels_ + depthwiseChannels - 1) / depthwiseChannels),
                      static_cast<uint32_t>(plain3x3_ ? 1 : w.kernelHeight * w.kernelWidth)};
    void (*const kernel)(FilterGradientParameters) =
        plain3x3_ ? (vector_ == 4 ? filterGradient3x3<4> : filterGradient3x3<1>)
                  : (vector_ == 4 ? filterGradientOfTap<4> : filterGradientOfTap<1>);
    arch::launch(device, "depthwiseConv2dFilterGradient", kernel, grid, filterThreads,
                 static_cast<size_t>(runs) * static_cast<size_t>(taps) * depthwiseChannels * sizeof(float), p);
    launchSumSplits(device, "depthwiseConv2dFilterGradient (chunks)", partial, arguments.output(), elements_,
                    static_cast<int>(chunks_));
  }

 private:
  const DepthwiseProblem problem_;
  bool plain3x3_;
  int outChannels_, vector_, chunkRows_;
  int64_t rows_, chunks_, elements_;
};

}  // namespace

void registerDepthwiseFilterGradient(Registry& registry) {
  registry["depthwiseConv2dFilterGradient"] = make<FilterGradient>;
}

}  // namespace sepconv::cuda
