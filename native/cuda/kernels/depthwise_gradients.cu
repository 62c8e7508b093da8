// depthwiseConv2dGradients, 3x3, stride 1: dz[n, iy, ix, c] = sum over taps of dy * filter, masked, plus a residual,
// and dfilter[ky, kx, c] = sum over pixels of prologue(x) * dy, from one pass over dy and x. A block walks over a chunk
// of tiles of x; dy's tile with its halo lies in shared memory, and a thread's window of it, four pixels wide in
// registers, serves both: 9 x 4 multiply-adds for dz and as many for the filter per 18 reads. x, which needs no halo,
// goes from memory to registers once and is prologue, mask and factor at the same time. The filter's sums stay in
// registers over the chunk and are added in two stages, in order: the same bits every time.
// With statistics, also the sums of dz and dz * (x - mean) / deviation, which batch norm's gradient needs: a thread
// adds four pixels at a time to eight floats of its own in shared memory, since registers are short.
#include "depthwise_tile.cuh"
#include "grid.cuh"

namespace sepconv::cuda {
namespace {

// What is multiplied by the activation's derivative: nothing, the convolution's gradient, or its sum with the residual.
enum class Masked : uint8_t { none, own, sum };

struct GradientsParameters {
  AnyInput x, dy, filter, residual;
  Prologue prologue;
  Masked masked;
  Input mean, variance;  // absent: no sums for batch norm
  float epsilon;
  AnyOutput dz;
  Output partial;  // [chunk][9 taps, sum of dz * xhat, sum of dz][c]
  Window window;   // from dy to dz by the taps in reverse
  int channels, tiles, chunkLength;
  int rows;                   // of `partial` per chunk: 9 or 11
  int tileHeight, tileWidth;  // pixels of dz
};

constexpr int gradientsThreads = 128, gradientsMinBlocks = 3;  // 168 registers: 72 of them taps and their sums

// The derivative of an activation by its result.
__device__ __forceinline__ float slopeOfResult(float z, Activation activation) {
  if (activation == Activation::relu) return z > 0.f ? 1.f : 0.f;
  if (activation == Activation::elu) return z > 0.f ? 1.f : z + 1.f;
  return 1.f;
}

template <class Element>
__global__ void __launch_bounds__(gradientsThreads, gradientsMinBlocks)
    depthwiseGradients(const __grid_constant__ GradientsParameters p) {
  arch::beginLaunch();
  constexpr int vector = 4, strip = 4, blockChannels = tileChannels<Element>, lanes = blockChannels / vector,
                groups = gradientsThreads / lanes;
  const Window& w = p.window;
  const int tilesX = (w.outWidth + p.tileWidth - 1) / p.tileWidth,
            tilesY = (w.outHeight + p.tileHeight - 1) / p.tileHeight;
  const int lane = arch::threadIndex() % lanes, group = arch::threadIndex() / lanes;
  const int channel = arch::blockY() * blockChannels, c = channel + lane * vector;
  const bool own = c < p.channels;
  const TileSource source{p.dy, w.height, w.width, p.channels};
  Floats<vector> taps[9], sums[9];
  ARCH_UNROLL
  for (int i = 0; i < 9; ++i) {
    taps[i] = own ? p.filter.load<vector>(int64_t{8 - i} * p.channels + c) : filled<vector>(0.f);
    sums[i] = filled<vector>(0.f);
  }
  const ChannelPrologue<vector> prologue(p.prologue, own ? c : 0);
  const bool statistics = p.mean.present();
  arch::SharedMemory outer;
  const auto moments = outer.array<float>(2 * gradientsThreads * vector);
  const int products = arch::threadIndex() * vector, totals = products + gradientsThreads * vector;
  moments.template store<vector>(products, filled<vector>(0.f));
  moments.template store<vector>(totals, filled<vector>(0.f));
  const int first = arch::blockX() * p.chunkLength, strips = p.tileWidth / strip;
  const int end = first + p.chunkLength < p.tiles ? first + p.chunkLength : p.tiles;
  ARCH_NO_UNROLL
  for (int index = first; index < end; ++index) {
    const int n = index / (tilesX * tilesY), oy0 = index / tilesX % tilesY * p.tileHeight,
              ox0 = index % tilesX * p.tileWidth;
    const int inWidth = p.tileWidth + 2;
    arch::SharedMemory memory = outer;
    const DepthwiseTile<Element, vector, gradientsThreads> tile(memory, p.tileHeight + 2, inWidth);
    tile.copy(source, {n, oy0 - w.top, ox0 - w.left, channel});
    arch::commitCopies();
    arch::waitCopies<0>();
    arch::syncThreads();
    ARCH_NO_UNROLL
    for (int task = group; own && task < strips * p.tileHeight; task += groups) {
      const int ty = task / strips, tx = task % strips * strip, oy = oy0 + ty, ox = ox0 + tx;
      if (oy >= w.outHeight || ox >= w.outWidth) continue;
      const int64_t at = ((int64_t{n} * w.outHeight + oy) * w.outWidth + ox) * p.channels + c;
      Floats<vector> z[strip], acc[strip];
      ARCH_UNROLL
      for (int i = 0; i < strip; ++i) {
        acc[i] = filled<vector>(0.f);
        z[i] = filled<vector>(0.f);
        if (ox + i >= w.outWidth) continue;
        z[i] = p.x.load<vector>(at + int64_t{i} * p.channels);
        prologue.apply(z[i]);
      }
      ARCH_UNROLL
      for (int ky = 0; ky < 3; ++ky) {
        Floats<vector> window[strip + 2];
        ARCH_UNROLL
        for (int i = 0; i < strip + 2; ++i) window[i] = tile.load((ty + ky) * inWidth + tx + i);
        ARCH_UNROLL
        for (int kx = 0; kx < 3; ++kx) {
          ARCH_UNROLL
          for (int i = 0; i < strip; ++i) {
            multiplyAdd(acc[i], window[i + kx], taps[ky * 3 + kx]);
            multiplyAdd(sums[ky * 3 + kx], window[i + kx], z[i]);
          }
        }
      }
      ARCH_UNROLL
      for (int i = 0; i < strip; ++i) {
        if (ox + i >= w.outWidth) continue;
        const int64_t to = at + int64_t{i} * p.channels;
        const auto mask = [&](Masked when) {
          if (p.masked != when) return;
          ARCH_UNROLL
          for (int e = 0; e < vector; ++e) acc[i][e] *= slopeOfResult(z[i][e], p.prologue.activation);
        };
        mask(Masked::own);
        if (p.residual.present()) {
          const Floats<vector> residual = p.residual.load<vector>(to);
          ARCH_UNROLL
          for (int e = 0; e < vector; ++e) acc[i][e] += residual[e];
        }
        mask(Masked::sum);
        p.dz.store<vector>(to, acc[i]);
      }
      if (!statistics) continue;
      const Floats<vector> mean = p.mean.load<vector>(c);
      Floats<vector> product = moments.template load<vector>(products), total = moments.template load<vector>(totals);
      ARCH_UNROLL
      for (int i = 0; i < strip; ++i) {
        if (ox + i >= w.outWidth) continue;
        const Floats<vector> x = p.x.load<vector>(at + int64_t{i} * p.channels);  // again, out of the first cache
        ARCH_UNROLL
        for (int e = 0; e < vector; ++e) {
          total[e] += acc[i][e];
          product[e] = arch::fma(acc[i][e], x[e] - mean[e], product[e]);
        }
      }
      moments.template store<vector>(products, product);
      moments.template store<vector>(totals, total);
    }
    arch::syncThreads();  // the tile becomes that of the next step, or the sums
  }
  arch::SharedMemory memory = outer;
  const auto shared = memory.array<float>(groups * 9 * blockChannels);
  ARCH_UNROLL
  for (int i = 0; i < 9; ++i) shared.template store<vector>((group * 9 + i) * blockChannels + lane * vector, sums[i]);
  arch::syncThreads();
  ARCH_NO_UNROLL
  for (int i = arch::threadIndex(); i < 9 * blockChannels; i += gradientsThreads) {
    const int o = channel + i % blockChannels;
    if (o >= p.channels) continue;
    float sum = 0.f;
    ARCH_NO_UNROLL
    for (int other = 0; other < groups; ++other) sum += shared.load(other * 9 * blockChannels + i)[0];
    // The window of dz's pixel (iy, ix) reads dy through the taps in reverse.
    p.partial.store<1>((int64_t{arch::blockX()} * p.rows + 8 - i / blockChannels) * p.channels + o, {sum});
  }
  if (!statistics) return;
  ARCH_NO_UNROLL
  for (int i = arch::threadIndex(); i < 2 * blockChannels; i += gradientsThreads) {
    const int o = channel + i % blockChannels, row = i / blockChannels;
    if (o >= p.channels) continue;
    float sum = 0.f;
    ARCH_NO_UNROLL
    for (int other = 0; other < groups; ++other)
      sum += moments.load((row * groups + other) * blockChannels + i % blockChannels)[0];
    if (row == 0) sum /= sqrtf(p.variance.load(o)[0] + p.epsilon);
    p.partial.store<1>((int64_t{arch::blockX()} * p.rows + 9 + row) * p.channels + o, {sum});
  }
}

struct GradientsMergeParameters {
  Input partial;
  Output dfilter, dgamma, dbeta;
  int channels, rows, chunks;
};

// The chunks in order: a thread per sum.
__global__ void __launch_bounds__(gridThreads) mergeGradients(const __grid_constant__ GradientsMergeParameters p) {
  arch::beginLaunch();
  const int64_t i = taskIndex(), perChunk = int64_t{p.rows} * p.channels;
  if (i >= perChunk) return;
  float sum = 0.f;
  ARCH_NO_UNROLL
  for (int chunk = 0; chunk < p.chunks; ++chunk) sum += p.partial.load(chunk * perChunk + i)[0];
  const int row = static_cast<int>(i) / p.channels, c = static_cast<int>(i) % p.channels;
  if (row < 9)
    p.dfilter.store<1>(i, {sum});
  else
    (row == 9 ? p.dgamma : p.dbeta).store<1>(c, {sum});
}

class DepthwiseGradients final : public Kernel {
 public:
  DepthwiseGradients(const CallDescription& call, const DeviceProperties& device)
      : problem_(checkDepthwiseGradients(call)),
        config_(chooseDepthwiseGradients(problem_, device)),
        masked_(maskedOf(call)),
        rows_(call.has(6) ? 11 : 9),
        epsilon_(call.has(6) ? static_cast<float>(call.attributes.number("epsilon")) : 0.f) {
    const Window& w = problem_.window;
    elements_ = int64_t{problem_.batch} * w.height * w.width * problem_.channels;
    outElements_ = int64_t{problem_.batch} * w.outHeight * w.outWidth * problem_.channels;
    filterElements_ = int64_t{9} * problem_.channels;
    partials_ = int64_t{config_.chunks} * rows_ * problem_.channels;
  }
  size_t workspaceBytes() const override { return static_cast<size_t>(partials_) * sizeof(float); }
  std::string describe() const override { return cuda::describe(config_); }

  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    const DType dtype = problem_.dtype;
    const int channels = problem_.channels;
    auto* partial = static_cast<float*>(arguments.workspace);
    GradientsParameters p{};
    p.x = view(arguments.inputs[0], elements_, dtype);
    p.dy = view(arguments.inputs[1], outElements_, dtype);
    p.filter = view(arguments.inputs[2], filterElements_, dtype);
    p.prologue = {view(arguments.input(3), channels), view(arguments.input(4), channels), problem_.inputActivation};
    p.residual = view(arguments.inputs[5], elements_, dtype);
    p.masked = masked_;
    p.dz = view(arguments.outputs[0], elements_, dtype);
    p.mean = view(arguments.input(6), channels);
    p.variance = view(arguments.input(7), channels);
    p.epsilon = epsilon_;
    p.rows = rows_;
    p.partial = view(partial, partials_);
    p.window = problem_.window;
    std::swap(p.window.height, p.window.outHeight);
    std::swap(p.window.width, p.window.outWidth);
    p.window.top = 2 - p.window.top;
    p.window.left = 2 - p.window.left;
    p.channels = channels;
    p.tileHeight = config_.tileHeight;
    p.tileWidth = config_.tileWidth;
    p.tiles = problem_.batch * ((problem_.window.height + p.tileHeight - 1) / p.tileHeight) *
              ((problem_.window.width + p.tileWidth - 1) / p.tileWidth);
    p.chunkLength = config_.chunkLength;
    const int blockChannels = config_.blockChannels();
    const Extent grid{static_cast<uint32_t>(config_.chunks),
                      static_cast<uint32_t>((channels + blockChannels - 1) / blockChannels), 1};
    arch::launch(device, "depthwiseConv2dGradients",
                 config_.halfTile ? depthwiseGradients<arch::Bfloat16> : depthwiseGradients<float>, grid,
                 gradientsThreads, config_.sharedBytes, p);
    GradientsMergeParameters merge{};
    merge.partial = view(static_cast<const float*>(partial), partials_);
    merge.dfilter = view(arguments.output(1), filterElements_);
    if (rows_ > 9) {
      merge.dgamma = view(arguments.output(2), channels);
      merge.dbeta = view(arguments.output(3), channels);
    }
    merge.channels = channels;
    merge.rows = rows_;
    merge.chunks = config_.chunks;
    launchTasks(device, "depthwiseConv2dGradients (chunks)", mergeGradients, int64_t{rows_} * channels, merge);
  }

 private:
  static Masked maskedOf(const CallDescription& call) {
    const std::string name = call.attributes.text("masked", "none");
    if (name == "own") return Masked::own;
    if (name == "sum") return Masked::sum;
    if (name != "none") refuse(call, "masked must be none, own or sum, got '" + name + "'");
    return Masked::none;
  }

  const DepthwiseProblem problem_;
  const FilterGradientConfig config_;
  const Masked masked_;
  const int rows_;
  const float epsilon_;
  int64_t elements_, outElements_, filterElements_, partials_;
};

}  // namespace

void registerDepthwiseGradients(Registry& registry) {
  registry["depthwiseConv2dGradients"] = choose<DepthwiseGradients>;
}

}  // namespace sepconv::cuda
