// A stand-in for libcudnn.so.9 on the emulated device, whose memory is the host's: the calls of its legacy API that
// native/cuda/vendor declares, by plain loops over what the descriptors say. Every call is written to the file that
// FAKE_LIBRARY_LOG names. Algorithm 0 only takes convolutions without groups, 1 takes all, 2 and more are refused, so
// that a caller must look for one that fits.
#include "fake.h"

namespace {
struct Tensor {
  int format, type, n, c, h, w;
};
struct Filter {
  int type, format, k, c, h, w;
};
struct Convolution {
  int padH, padW, strideH, strideW, dilationH, dilationW, mode, compute, groups, math;
};
struct Handle {
  void* stream;
};

// Calls body(x's element, filter's element, y's element) for every product of the convolution.
template <class Body>
void each(const Tensor& x, const Filter& f, const Tensor& y, const Convolution& o, const Body& body) {
  const int cin = x.c / o.groups, cout = y.c / o.groups;
  for (int n = 0; n < y.n; ++n)
    for (int oy = 0; oy < y.h; ++oy)
      for (int ox = 0; ox < y.w; ++ox)
        for (int k = 0; k < y.c; ++k)
          for (int ky = 0; ky < f.h; ++ky)
            for (int kx = 0; kx < f.w; ++kx) {
              const int iy = oy * o.strideH - o.padH + ky * o.dilationH,
                        ix = ox * o.strideW - o.padW + kx * o.dilationW;
              if (iy < 0 || ix < 0 || iy >= x.h || ix >= x.w) continue;
              for (int c = 0; c < cin; ++c)
                body(((n * static_cast<uint64_t>(x.h) + iy) * x.w + ix) * x.c + k / cout * cin + c,
                     ((k * static_cast<uint64_t>(f.h) + ky) * f.w + kx) * f.c + c,
                     ((n * static_cast<uint64_t>(y.h) + oy) * y.w + ox) * y.c + k);
            }
}
uint64_t count(const Tensor& t) { return static_cast<uint64_t>(t.n) * t.c * t.h * t.w; }
uint64_t count(const Filter& t) { return static_cast<uint64_t>(t.k) * t.c * t.h * t.w; }

constexpr int badParameter = 2000, notSupported = 3000;
int algorithmStatus(const Convolution& o, int algorithm) {
  return algorithm > 1 || (algorithm == 0 && o.groups > 1) ? notSupported : 0;
}
int workspace(const Convolution& o, int algorithm, size_t* bytes) {
  *bytes = 64;
  return algorithmStatus(o, algorithm);
}
bool valid(const Tensor& x, const Filter& f, const Tensor& y, const Convolution& o, const void* scratch, size_t bytes) {
  return x.format == 1 && y.format == 1 && f.format == 1 && o.mode == 1 && o.compute == 0 && scratch && bytes == 64 &&
         f.c * o.groups == x.c && f.k == y.c;
}
}  // namespace

extern "C" {
size_t cudnnGetVersion() { return 91002; }
const char* cudnnGetErrorString(int status) {
  return status == notSupported ? "CUDNN_STATUS_NOT_SUPPORTED" : "CUDNN_STATUS_BAD_PARAM";
}
int cudnnCreate(Handle** handle) { return log("cudnnCreate"), *handle = new Handle{}, 0; }
int cudnnSetStream(Handle* handle, void* stream) { return handle->stream = stream, 0; }
int cudnnCreateTensorDescriptor(Tensor** d) { return *d = new Tensor{}, 0; }
int cudnnDestroyTensorDescriptor(Tensor* d) { return delete d, 0; }
int cudnnSetTensor4dDescriptor(Tensor* d, int format, int type, int n, int c, int h, int w) {
  return *d = {format, type, n, c, h, w}, 0;
}
int cudnnCreateFilterDescriptor(Filter** d) { return *d = new Filter{}, 0; }
int cudnnDestroyFilterDescriptor(Filter* d) { return delete d, 0; }
int cudnnSetFilter4dDescriptor(Filter* d, int type, int format, int k, int c, int h, int w) {
  return *d = {type, format, k, c, h, w}, 0;
}
int cudnnCreateConvolutionDescriptor(Convolution** d) { return *d = new Convolution{}, 0; }
int cudnnDestroyConvolutionDescriptor(Convolution* d) { return delete d, 0; }
int cudnnSetConvolution2dDescriptor(Convolution* d, int padH, int padW, int strideH, int strideW, int dilationH,
                                    int dilationW, int mode, int compute) {
  return *d = {padH, padW, strideH, strideW, dilationH, dilationW, mode, compute, 1, 0}, 0;
}
int cudnnSetConvolutionGroupCount(Convolution* d, int groups) { return d->groups = groups, 0; }
int cudnnSetConvolutionMathType(Convolution* d, int math) {
  char text[64];
  std::snprintf(text, sizeof text, "math %d groups %d", d->math = math, d->groups);
  return log(text), 0;
}
int cudnnGetConvolutionForwardWorkspaceSize(Handle*, Tensor*, Filter*, Convolution* o, Tensor*, int a, size_t* bytes) {
  return workspace(*o, a, bytes);
}
int cudnnGetConvolutionBackwardDataWorkspaceSize(Handle*, Filter*, Tensor*, Convolution* o, Tensor*, int a,
                                                 size_t* bytes) {
  return workspace(*o, a, bytes);
}
int cudnnGetConvolutionBackwardFilterWorkspaceSize(Handle*, Tensor*, Tensor*, Convolution* o, Filter*, int a,
                                                   size_t* bytes) {
  return workspace(*o, a, bytes);
}
int cudnnConvolutionForward(Handle*, const void*, Tensor* xd, const void* x, Filter* fd, const void* f, Convolution* o,
                            int algorithm, void* scratch, size_t bytes, const void*, Tensor* yd, void* y) {
  log("cudnnConvolutionForward");
  if (!valid(*xd, *fd, *yd, *o, scratch, bytes) || algorithmStatus(*o, algorithm)) return badParameter;
  float* sums = new float[static_cast<size_t>(count(*yd))]();
  each(*xd, *fd, *yd, *o,
       [&](uint64_t xi, uint64_t fi, uint64_t yi) { sums[yi] += read(x, xd->type, xi) * read(f, fd->type, fi); });
  for (uint64_t i = 0; i < count(*yd); ++i) write(y, yd->type, i, sums[i]);
  return delete[] sums, 0;
}
int cudnnConvolutionBackwardData(Handle*, const void*, Filter* fd, const void* f, Tensor* yd, const void* dy,
                                 Convolution* o, int algorithm, void* scratch, size_t bytes, const void*, Tensor* xd,
                                 void* dx) {
  log("cudnnConvolutionBackwardData");
  if (!valid(*xd, *fd, *yd, *o, scratch, bytes) || algorithmStatus(*o, algorithm)) return badParameter;
  float* sums = new float[static_cast<size_t>(count(*xd))]();
  each(*xd, *fd, *yd, *o,
       [&](uint64_t xi, uint64_t fi, uint64_t yi) { sums[xi] += read(dy, yd->type, yi) * read(f, fd->type, fi); });
  for (uint64_t i = 0; i < count(*xd); ++i) write(dx, xd->type, i, sums[i]);
  return delete[] sums, 0;
}
int cudnnConvolutionBackwardFilter(Handle*, const void*, Tensor* xd, const void* x, Tensor* yd, const void* dy,
                                   Convolution* o, int algorithm, void* scratch, size_t bytes, const void*, Filter* fd,
                                   void* df) {
  log("cudnnConvolutionBackwardFilter");
  if (!valid(*xd, *fd, *yd, *o, scratch, bytes) || algorithmStatus(*o, algorithm)) return badParameter;
  float* sums = new float[static_cast<size_t>(count(*fd))]();
  each(*xd, *fd, *yd, *o,
       [&](uint64_t xi, uint64_t fi, uint64_t yi) { sums[fi] += read(x, xd->type, xi) * read(dy, yd->type, yi); });
  for (uint64_t i = 0; i < count(*fd); ++i) write(df, fd->type, i, sums[i]);
  return delete[] sums, 0;
}
}
