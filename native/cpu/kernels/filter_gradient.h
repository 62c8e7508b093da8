// Filter gradient of a convolution as a product over pixels:
//   dfilter[kh, kw, ci, co] = sum over output pixels of inputActivation(x)[pixel under tap (kh, kw), ci] *
//   gradient[pixel, co]
// with x[n, h, w, cin], gradient[n, oh, ow, cout], ci < cin / groups. Rows of the result are (tap, ci), columns co of
// one group.
#pragma once
#include "gemm.h"

namespace sepconv::cpu {

class FilterGradient {
 public:
  FilterGradient() = default;
  FilterGradient(const GemmTable& gemm, const Geometry& geometry, int64_t cin, int64_t cout, int64_t groups,
                 Activation inputActivation);
  size_t workspaceBytes() const {
    return splits_.parts > 1 ? static_cast<size_t>(splits_.parts * floats_) * sizeof(float) : 0;
  }
  void run(ThreadPool& pool, const float* x, const float* gradient, float* dfilter, float* workspace) const;

 private:
  void runTask(ThreadPool& pool, int thread, int64_t task, const float* x, const float* gradient, float* target) const;
  void stage(const float* x, int64_t firstPixel, int64_t pixels, int64_t firstRow, int64_t rows, int64_t targetRow,
             float* target) const;
  void gather(const float* x, int64_t firstPixel, int64_t pixels, int64_t firstRow, int64_t rows, int64_t targetRow,
              float* target) const;

  const GemmTable* gemm_ = nullptr;
  Geometry geometry_{};
  int64_t cin_ = 0, cout_ = 0, groups_ = 1;
  int activation_ = 0;
  bool plain_ = false;   // pixel p of the output reads pixel p of the input
  bool staged_ = false;  // the left operand is copied into cache first
  int64_t m_ = 0, n_ = 0, floats_ = 0, depth_ = 1;
  RowBlocks rows_;
  Split splits_, columns_;  // of pixels, of panels of columns
};

}  // namespace sepconv::cpu
