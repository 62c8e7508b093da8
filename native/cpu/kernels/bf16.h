// Kernels on bfloat16 storage (float32 arithmetic, one rounding per result): what they share, and their factories. An
// op without a factory here runs through float32 (via_float32.cc).
#pragma once
#include <functional>

#include "../kernel.h"
#include "../simd/table.h"
#include "gemm.h"

namespace sepconv::cpu::bf16 {

// Elements between the rows of a block in cache: whole lines, an odd number of them, so that the rows of a tile fall
// into different sets of L1.
inline int64_t stagedRow(int64_t elements) { return (quotientUp(elements, 32) | 1) * 32; }
// Rows this many elements apart share so few sets of L1 that a tile of 14 evicts its own lines.
inline bool collidingRows(int64_t elements) { return elements % 2048 == 0; }
inline size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// A right operand [k, n] as packFilter lays it out: [ceil(n / panel)][ceil(k / 2)][panel][2], zeros beyond n and k.
struct Panels {
  int64_t k = 0, n = 0, panel = 1;
  int64_t count() const { return quotientUp(n, panel); }
  int64_t pairs() const { return quotientUp(k, 2); }
  int64_t elements() const { return count() * pairs() * panel * 2; }
  size_t bytes() const { return aligned(static_cast<size_t>(elements()) * 2); }
};
void packPanels(ThreadPool& pool, const Bf16Table& table, const uint16_t* filter, const Panels& panels,
                uint16_t* packed);
void packTransposedPanels(ThreadPool& pool, const Bf16Table& table, const uint16_t* filter, const Panels& panels,
                          uint16_t* packed);

// A filter [k, n] that a call takes as it is, or packed if the attribute says so.
class FilterInput {
 public:
  FilterInput() = default;
  // shape: of the filter that is not packed.
  FilterInput(const CallDescription& call, size_t index, const SimdTable& simd, const std::vector<int64_t>& shape);
  size_t workspaceBytes() const { return packed_ ? 0 : panels_.bytes(); }
  const uint16_t* at(const Arguments& arguments, const Bf16Table& table, void* workspace) const;

 private:
  size_t index_ = 0;
  bool packed_ = false;
  Panels panels_;
};

// Inputs `first`, `first + 1`, `first + 2` of a call, each optional: scale[n], shift[n] and residual, of y's shape.
class EpilogueInputs {
 public:
  EpilogueInputs() = default;
  EpilogueInputs(const CallDescription& call, size_t first, int64_t n, const TensorType& y);
  Bf16Epilogue at(const Arguments& arguments) const;

 private:
  size_t first_ = 0;
  bool present_[3] = {};
  int activation_ = 0;
};

// y[rows, n] = epilogue(left[rows, k] right[k, n]): MatrixProduct's blocks (gemm.cc) at half the bytes.
class MatrixProduct {
 public:
  // Writes rows [begin, end) of the left operand at target, stagedRow(k) elements apart; where k is odd, MatrixProduct
  // puts a zero behind each.
  using Fill = std::function<void(int64_t begin, int64_t end, uint16_t* target)>;

  MatrixProduct() = default;
  MatrixProduct(const SimdTable& simd, int64_t rows, int64_t k, int64_t n, bool staged, bool statistics = false);
  // Whether rows of k elements can be multiplied where they lie.
  static bool readsInPlace(int64_t k) { return k % 2 == 0 && !collidingRows(k); }
  Panels panels() const { return {k_, n_, simd_->gemm.panel}; }
  // With statistics: the moments of the blocks.
  size_t workspaceBytes() const {
    return statistics_ ? aligned(static_cast<size_t>(2 * blocks_.count() * n_) * sizeof(float)) : 0;
  }
  void run(ThreadPool& pool, const uint16_t* left, const Fill& fill, const uint16_t* packed, uint16_t* y,
           const Bf16Epilogue& epilogue, float* mean = nullptr, float* variance = nullptr,
           void* workspace = nullptr) const;

 private:
  RowBlocks blocksFor(int threads) const;

  const SimdTable* simd_ = nullptr;
  int64_t rows_ = 0, k_ = 0, n_ = 0;
  bool staged_ = false, statistics_ = false;
  RowBlocks blocks_;
  Split columns_;  // of panels
};

// Null where a call is for via_float32.cc.
std::unique_ptr<Kernel> makePackFilter(const CallDescription& call);
std::unique_ptr<Kernel> makePointwise(const CallDescription& call);
std::unique_ptr<Kernel> makeConv2d(const CallDescription& call);
std::unique_ptr<Kernel> makeSeparable(const CallDescription& call);
std::unique_ptr<Kernel> makeDepthwise(const CallDescription& call);
std::unique_ptr<Kernel> makeMaxPool2d(const CallDescription& call);
std::unique_ptr<Kernel> makePointwiseInputGradient(const CallDescription& call);
std::unique_ptr<Kernel> makePointwiseFilterGradient(const CallDescription& call);
std::unique_ptr<Kernel> makeDepthwiseInputGradient(const CallDescription& call);
std::unique_ptr<Kernel> makeDepthwiseFilterGradient(const CallDescription& call);

// The kernel of a call that has bfloat16 operands.
std::unique_ptr<Kernel> makeKernel(const CallDescription& call, const Registry& kernels);

}  // namespace sepconv::cpu::bf16
