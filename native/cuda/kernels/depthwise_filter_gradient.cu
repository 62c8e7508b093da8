// depthwiseConv2dFilterGradient: dfilter[ky, kx, c, j] = sum over outputs of prologue(x)[n, iy, ix, c] * dy[n, oy, ox,
// c*m + j], deterministic in two stages: threads' sums are added in order through shared memory, chunks' by a second
// launch. 3x3 and 5x5 take one pass: a block walks over a chunk of tiles of x (with halo) and dy in shared memory, each
// read once from memory; a thread owns one row of taps of 4 channels, whose sums stay in registers for the whole chunk,
// since all taps would take 36 or 100 of them. Other windows take one tap per block: right for any, but x and dy are
// read once per tap.
#include "depthwise_tile.cuh"
#include "gemm.cuh"
#include "grid.cuh"

namespace sepconv::cuda {
namespace {

struct FilterGradientParameters {
  AnyInput x, dy;
  Prologue prologue;
  Output partial;  // [chunk][tap][c*m + j]
  Window window;
  int channels, multiplier;
  int length, chunkLength;    // tiles, or output rows of all images
  int tileHeight, tileWidth;  // outputs
  int inHeight, inWidth;
};

__device__ __forceinline__ int chunkStart(const FilterGradientParameters& p) { return arch::blockX() * p.chunkLength; }
__device__ __forceinline__ int chunkEnd(const FilterGradientParameters& p) {
  const int end = chunkStart(p) + p.chunkLength;
  return end < p.length ? end : p.length;
}

// Adds sums[group][TAPS][channels] over the groups in order and writes them as taps firstTap... of the chunk.
template <int TAPS, int GROUPS, int CHANNELS, int THREADS>
__device__ __forceinline__ void storeSums(const FilterGradientParameters& p, const arch::Shared<float>& sums,
                                          int firstTap) {
  arch::syncThreads();
  const int outChannels = p.channels * p.multiplier, taps = p.window.kernelHeight * p.window.kernelWidth;
  ARCH_NO_UNROLL
  for (int i = arch::threadIndex(); i < TAPS * CHANNELS; i += THREADS) {
    const int o = arch::blockY() * CHANNELS + i % CHANNELS;
    if (o >= outChannels) continue;
    float sum = 0.f;
    ARCH_NO_UNROLL
    for (int group = 0; group < GROUPS; ++group) sum += sums.load(group * TAPS * CHANNELS + i)[0];
    p.partial.store<1>((int64_t{arch::blockX()} * taps + firstTap + i / CHANNELS) * outChannels + o, {sum});
  }
}

// A thread owns tap row ky of VECTOR channels and, of every tile, each `groups`-th row of outputs.
template <int KERNEL, int VECTOR, class Element>
struct FilterGradientTiling {
  static constexpr int channels = tileChannels<Element>, lanes = channels / VECTOR;
  static constexpr int threads = KERNEL * 32 * (KERNEL == 3 ? 2 : 1), groups = threads / (lanes * KERNEL);
  static_assert(groups * lanes * KERNEL == threads, "all threads work");
  static constexpr int minBlocks = 4;  // 80 and 96 registers per thread
};

// STRIDE 1: neighbouring outputs share the window; 0: any stride and dilation.
template <int KERNEL, int STRIDE, int VECTOR, class Element>
__global__ void __launch_bounds__(FilterGradientTiling<KERNEL, VECTOR, Element>::threads,
                                  FilterGradientTiling<KERNEL, VECTOR, Element>::minBlocks)
    filterGradientTiled(const __grid_constant__ FilterGradientParameters p) {
  arch::beginLaunch();
  using T = FilterGradientTiling<KERNEL, VECTOR, Element>;
  constexpr int strip = 4;
  const Window& w = p.window;
  const int tilesX = (w.outWidth + p.tileWidth - 1) / p.tileWidth,
            tilesY = (w.outHeight + p.tileHeight - 1) / p.tileHeight;
  const int lane = arch::threadIndex() % T::lanes, run = arch::threadIndex() / T::lanes;
  const int ky = run % KERNEL, group = run / KERNEL;
  const TileSource x{p.x, w.height, w.width, p.channels}, dy{p.dy, w.outHeight, w.outWidth, p.channels};
  Floats<VECTOR> acc[KERNEL];
  ARCH_UNROLL
  for (int kx = 0; kx < KERNEL; ++kx) acc[kx] = filled<VECTOR>(0.f);
  ARCH_NO_UNROLL
  for (int index = chunkStart(p); index < chunkEnd(p); ++index) {
    const int n = index / (tilesX * tilesY), oy0 = index / tilesX % tilesY * p.tileHeight,
              ox0 = index % tilesX * p.tileWidth;
    arch::SharedMemory memory;
    const DepthwiseTile<Element, VECTOR, T::threads> window(memory, p.inHeight, p.inWidth);
    const DepthwiseTile<Element, VECTOR, T::threads> gradient(memory, p.tileHeight, p.tileWidth);
    const int channel = arch::blockY() * T::channels;
    const TilePlace place{n, oy0 * w.strideHeight - w.top, ox0 * w.strideWidth - w.left, channel};
    window.copy(x, place);
    gradient.copy(dy, {n, oy0, ox0, channel});
    arch::commitCopies();
    arch::waitCopies<0>();
    window.apply(x, place, p.prologue);
    arch::syncThreads();
    ARCH_NO_UNROLL
    for (int ty = group; ty < p.tileHeight && oy0 + ty < w.outHeight; ty += T::groups) {
      if constexpr (STRIDE == 1) {
        const int row = (ty + ky) * p.inWidth;
        Floats<VECTOR> values[KERNEL - 1 + strip];
        ARCH_UNROLL
        for (int i = 0; i < KERNEL - 1; ++i) values[i] = window.load(row + i);
        ARCH_NO_UNROLL
        for (int tx = 0; tx < p.tileWidth && ox0 + tx < w.outWidth; tx += strip) {
          ARCH_UNROLL
          for (int i = 0; i < strip; ++i) {
            values[KERNEL - 1 + i] = window.load(row + tx + KERNEL - 1 + i);
            const Floats<VECTOR> slope = gradient.load(ty * p.tileWidth + tx + i);
            ARCH_UNROLL
            for (int kx = 0; kx < KERNEL; ++kx) multiplyAdd(acc[kx], values[i + kx], slope);
          }
          ARCH_UNROLL
          for (int i = 0; i < KERNEL - 1; ++i) values[i] = values[strip + i];
        }
      } else {
        const int row = (ty * w.strideHeight + ky * w.dilationHeight) * p.inWidth;
        ARCH_NO_UNROLL
        for (int tx = 0; tx < p.tileWidth && ox0 + tx < w.outWidth; ++tx) {
          const Floats<VECTOR> slope = gradient.load(ty * p.tileWidth + tx);
          ARCH_UNROLL
          for (int kx = 0; kx < KERNEL; ++kx)
            multiplyAdd(acc[kx], window.load(row + tx * w.strideWidth + kx * w.dilationWidth), slope);
        }
      }
    }
    arch::syncThreads();  // the tiles become those of the next step, or the sums
  }
  arch::SharedMemory memory;
  const auto sums = memory.array<float>(T::groups * KERNEL * KERNEL * T::channels);
  ARCH_UNROLL
  for (int kx = 0; kx < KERNEL; ++kx)
    sums.template store<VECTOR>(((group * KERNEL + ky) * KERNEL + kx) * T::channels + lane * VECTOR, acc[kx]);
  storeSums<KERNEL * KERNEL, T::groups, T::channels, T::threads>(p, sums, 0);
}

constexpr int tapThreads = 128, tapChannels = tileChannels<float>;

template <int VECTOR>
__global__ void __launch_bounds__(tapThreads) filterGradientOfTap(const __grid_constant__ FilterGradientParameters p) {
  arch::beginLaunch();
  constexpr int lanes = tapChannels / VECTOR, runs = tapThreads / lanes;
  const int lane = arch::threadIndex() % lanes, run = arch::threadIndex() / lanes;
  const int o = arch::blockY() * tapChannels + lane * VECTOR, c = o / p.multiplier;
  const int outChannels = p.channels * p.multiplier;
  const Window& w = p.window;
  const int tap = arch::blockZ(), ky = tap / w.kernelWidth * w.dilationHeight,
            kx = tap % w.kernelWidth * w.dilationWidth;
  Floats<VECTOR> acc = filled<VECTOR>(0.f);
  if (o < outChannels) {
    const ChannelPrologue<VECTOR> prologue(p.prologue, c);
    ARCH_NO_UNROLL
    for (int row = chunkStart(p) + run; row < chunkEnd(p); row += runs) {
      const int n = row / w.outHeight, y = row % w.outHeight * w.strideHeight - w.top + ky;
      if (y < 0 || y >= w.height) continue;
      ARCH_NO_UNROLL
      for (int ox = 0; ox < w.outWidth; ++ox) {
        const int x = ox * w.strideWidth - w.left + kx;
        if (x < 0 || x >= w.width) continue;
        Floats<VECTOR> value = p.x.load<VECTOR>(((int64_t{n} * w.height + y) * w.width + x) * p.channels + c);
        prologue.apply(value);
        multiplyAdd(acc, value, p.dy.load<VECTOR>((int64_t{row} * w.outWidth + ox) * outChannels + o));
      }
    }
  }
  arch::SharedMemory memory;
  const auto sums = memory.array<float>(runs * tapChannels);
  sums.store<VECTOR>(run * tapChannels + lane * VECTOR, acc);
  storeSums<1, runs, tapChannels, tapThreads>(p, sums, tap);
}

using FilterGradientKernel = void (*)(FilterGradientParameters);

template <int KERNEL, int VECTOR, class Element>
FilterGradientKernel tiledKernel(const Window& w, int& threads) {
  threads = FilterGradientTiling<KERNEL, VECTOR, Element>::threads;
  const bool dense = w.strideHeight == 1 && w.strideWidth == 1 && w.dilationHeight == 1 && w.dilationWidth == 1;
  return dense ? filterGradientTiled<KERNEL, 1, VECTOR, Element> : filterGradientTiled<KERNEL, 0, VECTOR, Element>;
}

FilterGradientKernel kernelOf(const FilterGradientConfig& config, const Window& w, int& threads) {
  threads = tapThreads;
  if (!config.tiled) return config.vector == 4 ? filterGradientOfTap<4> : filterGradientOfTap<1>;
  if (w.kernelHeight == 5)
    return config.halfTile ? tiledKernel<5, 4, arch::Bfloat16>(w, threads) : tiledKernel<5, 4, float>(w, threads);
  if (config.halfTile) return tiledKernel<3, 4, arch::Bfloat16>(w, threads);
  return config.vector == 4 ? tiledKernel<3, 4, float>(w, threads) : tiledKernel<3, 1, float>(w, threads);
}

class FilterGradient final : public Kernel {
 public:
  FilterGradient(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkDepthwiseFilterGradient(call)), config_(chooseDepthwiseFilterGradient(problem_, device)) {
    const Window& w = problem_.window;
    outChannels_ = problem_.channels * problem_.multiplier;
    const int64_t taps = int64_t{w.kernelHeight} * w.kernelWidth;
    if (outChannels_ > 32 * 65535) refuse(call, "more than 2097120 channels");
    if (!config_.tiled && taps > 65535) refuse(call, "windows of more than 65535 taps");
    elements_ = taps * outChannels_;
  }
  size_t workspaceBytes() const override { return static_cast<size_t>(config_.chunks * elements_) * sizeof(float); }
  std::string describe() const override { return cuda::describe(config_); }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const Window& w = problem_.window;
    auto* partial = static_cast<float*>(arguments.workspace);
    FilterGradientParameters p{};
    p.x = view(arguments.inputs[0], int64_t{problem_.batch} * w.height * w.width * problem_.channels, problem_.dtype);
    p.dy = view(arguments.inputs[1], int64_t{problem_.batch} * w.outHeight * w.outWidth * outChannels_, problem_.dtype);
    p.prologue = {view(arguments.input(2), problem_.channels), view(arguments.input(3), problem_.channels),
                  problem_.inputActivation};
    p.partial = view(partial, config_.chunks * elements_);
    p.window = w;
    p.channels = problem_.channels;
    p.multiplier = problem_.multiplier;
    p.chunkLength = config_.chunkLength;
    size_t shared = tapThreads / (tapChannels / static_cast<size_t>(config_.vector)) * tapChannels * sizeof(float);
    p.length = problem_.batch * w.outHeight;
    if (config_.tiled) {
      shared = config_.sharedBytes;
      p.tileHeight = config_.tileHeight;
      p.tileWidth = config_.tileWidth;
      p.inHeight = (config_.tileHeight - 1) * w.strideHeight + (w.kernelHeight - 1) * w.dilationHeight + 1;
      p.inWidth = (config_.tileWidth - 1) * w.strideWidth + (w.kernelWidth - 1) * w.dilationWidth + 1;
      p.length = problem_.batch * ((w.outHeight + p.tileHeight - 1) / p.tileHeight) *
                 ((w.outWidth + p.tileWidth - 1) / p.tileWidth);
    }
    int threads;
    const FilterGradientKernel kernel = kernelOf(config_, w, threads);
    const int channels = config_.blockChannels();
    const Extent grid{static_cast<uint32_t>(config_.chunks),
                      static_cast<uint32_t>((outChannels_ + channels - 1) / channels),
                      static_cast<uint32_t>(config_.tiled ? 1 : w.kernelHeight * w.kernelWidth)};
    arch::launch(device, "depthwiseConv2dFilterGradient", kernel, grid, threads, shared, p);
    launchSumSplits(device, "depthwiseConv2dFilterGradient (chunks)", partial, arguments.output(), elements_,
                    config_.chunks);
  }

 private:
  const DepthwiseProblem problem_;
  const FilterGradientConfig config_;
  int outChannels_;
  int64_t elements_;
};

}  // namespace

void registerDepthwiseFilterGradient(Registry& registry) {
  registry["depthwiseConv2dFilterGradient"] = choose<FilterGradient>;
}

}  // namespace sepconv::cuda
