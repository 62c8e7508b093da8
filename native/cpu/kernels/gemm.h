// What the matrix-product kernels share: how work is cut into tasks, packing of right operands, and the product
// y[rows, n] = epilogue(left[rows, k] right[k, n]) itself, whose left operand is read where it lies or filled into
// cache block by block.
#pragma once
#include <functional>

#include "../kernel.h"
#include "../simd/table.h"

namespace sepconv::cpu {

inline int64_t quotientUp(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline size_t alignedFloats(int64_t floats) {
  return static_cast<size_t>(quotientUp(floats, 16) * 16);
}  // whole cache lines

// Enough tasks that 2, 3, 4, 6, 8, 12, 16 or 24 threads finish together.
constexpr int64_t kTasks = 48;

// [0, size) as `parts` ranges of nearly equal length.
struct Split {
  int64_t size = 0, parts = 1;
  int64_t begin(int64_t part) const { return part * size / parts; }
  int64_t end(int64_t part) const { return begin(part + 1); }
};

// Rows as blocks of whole register tiles, so that no block ends in a thin tile.
struct RowBlocks {
  RowBlocks() = default;
  RowBlocks(int64_t rows, int64_t tileRows, int64_t blocks) : rows(rows), tiles{quotientUp(rows, tileRows), blocks} {}
  // The same tiles in another number of blocks.
  RowBlocks in(int64_t blocks) const {
    RowBlocks others = *this;
    others.tiles.parts = blocks;
    return others;
  }
  int64_t count() const { return tiles.parts; }
  int64_t begin(int64_t block) const { return tiles.begin(block) * rows / tiles.size; }
  int64_t end(int64_t block) const { return tiles.end(block) * rows / tiles.size; }
  int64_t largest() const { return quotientUp(quotientUp(tiles.size, tiles.parts) * rows, tiles.size); }

  int64_t rows = 0;
  Split tiles;
};

// A right operand [k, n] in panels, as packFilter lays it out.
struct Panels {
  int64_t k = 0, n = 0, panel = 1;
  int64_t count() const { return quotientUp(n, panel); }
  int64_t floats() const { return count() * k * panel; }
};

// filter[k][n], its rows `row` floats apart.
void packPanels(ThreadPool& pool, const GemmTable& gemm, const float* filter, int64_t row, const Panels& panels,
                float* packed);
// filter[n][k]: the transposed operand.
void packTransposedPanels(ThreadPool& pool, const GemmTable& gemm, const float* filter, int64_t row,
                          const Panels& panels, float* packed);

// Floats between the rows of a block in cache: whole lines, an odd number of them, so that the rows of a tile fall into
// different sets of L1.
inline int64_t stagedRow(int64_t floats) { return (quotientUp(floats, 16) | 1) * 16; }
// Rows this many floats apart share so few sets of L1 that a tile of 14 evicts its own lines; such operands are staged.
inline bool collidingRows(const GemmTable& gemm, int64_t floats) { return gemm.rows > 8 && floats % 1024 == 0; }

inline int activationValue(Activation activation) { return static_cast<int>(activation); }

// Inputs `first`, `first + 1`, `first + 2` of a call, each optional: scale[n], shift[n] and residual, of y's shape.
class EpilogueInputs {
 public:
  EpilogueInputs() = default;
  EpilogueInputs(const CallDescription& call, size_t first, int64_t n, const TensorType& y);
  Epilogue at(const Arguments& arguments) const;

 private:
  size_t first_ = 0;
  bool present_[3] = {};
  int activation_ = 0;
};

// The optional input x of an input gradient, dx's shape: dx = sum * inputActivation'(x).
class GateInput {
 public:
  GateInput() = default;
  GateInput(const CallDescription& call, size_t index, const TensorType& dx);
  Epilogue at(const Arguments& arguments) const;

 private:
  size_t index_ = 0;
  int activation_ = 0;
};

// Epilogue's pointers moved on by `columns` columns and `elements` elements of y.
Epilogue advance(const Epilogue& epilogue, int64_t elements, int64_t columns);

// A filter [k, n] that a call takes as it is, or packed if the attribute says so.
class FilterInput {
 public:
  FilterInput() = default;
  // shape: of the filter that is not packed.
  FilterInput(const CallDescription& call, size_t index, const GemmTable& gemm, const std::vector<int64_t>& shape);
  const Panels& panels() const { return panels_; }
  int64_t workspaceFloats() const { return packed_ ? 0 : panels_.floats(); }
  // The panels: the input itself, or packed into the workspace now.
  const float* at(const Arguments& arguments, const GemmTable& gemm, float* workspace) const;

 private:
  size_t index_ = 0;
  bool packed_ = false;
  Panels panels_;
};

// The attribute `strassen`: the product may be computed by one level of Strassen's algorithm.
bool strassenFlag(const CallDescription& call, int64_t k);

// Column means and variances of y[rows, n] from those of its blocks, [block][mean, sum of squared deviations][n].
void combineMoments(ThreadPool& pool, const RowBlocks& blocks, int64_t n, const float* moments, float* mean,
                    float* variance);

class MatrixProduct {
 public:
  // Writes rows [begin, end) of the left operand at target, stagedRow(k) floats apart; may fetch what is read first
  // afterwards meanwhile.
  using Fill = std::function<void(int64_t begin, int64_t end, float* target, Upcoming first)>;
  // What a Fill of the rows behind those of this block will read besides what it reads for them.
  using Ahead = std::function<Upcoming(int64_t begin, int64_t end)>;

  MatrixProduct() = default;
  // staged: the left operand comes from a Fill. statistics: column means and variances of y are wanted. strassen: by
  // one level of Strassen's algorithm; the operand is staged then, k even, and no statistics are wanted.
  MatrixProduct(const GemmTable& gemm, int64_t rows, int64_t k, int64_t n, bool staged, bool statistics,
                bool strassen = false);

  Panels panels() const { return {k_, n_, gemm_->panel}; }
  // Moments of the blocks: [block][mean, deviations][n].
  int64_t workspaceFloats() const {
    return statistics_ ? static_cast<int64_t>(alignedFloats(2 * blocks_.count() * n_)) : 0;
  }
  // Where the rows of the left operand come from: they lie one behind the other, or `fill` writes them.
  struct Left {
    const float* rows = nullptr;  // null where the operand is staged
    Fill fill;
    Ahead ahead;  // empty: nothing is fetched for `fill`
  };
  // mean and variance are null without statistics.
  void run(ThreadPool& pool, const Left& left, const float* packed, float* y, const Epilogue& epilogue, float* mean,
           float* variance, float* workspace) const;

 private:
  RowBlocks blocksFor(int threads) const;
  // work(first row, rows) of every group of two register tiles of a block.
  template <class Work>
  static void forEachGroup(const RowBlocks& blocks, int64_t block, const Work& work) {
    const Split& groups = blocks.tiles;
    for (int64_t group = groups.begin(block); group < groups.end(block); ++group) {
      const int64_t row = group * blocks.rows / groups.size;
      work(row, (group + 1) * blocks.rows / groups.size - row);
    }
  }
  void runStrassen(ThreadPool& pool, const Left& left, const float* packed, float* y, const Epilogue& epilogue) const;
  // What a block will read and write: operand, residual, gate, result; nothing of a negative one. While the block
  // before it is multiplied, each part fetches its share.
  struct Coming {
    Upcoming pieces[4];
    Coming part(int64_t part, int64_t parts) const;
  };
  Coming coming(const RowBlocks& blocks, int64_t block, const Left& left, const float* y,
                const Epilogue& epilogue) const;

  const GemmTable* gemm_ = nullptr;
  int64_t rows_ = 0, k_ = 0, n_ = 0;
  bool staged_ = false, statistics_ = false, strassen_ = false;
  RowBlocks blocks_;
  Split columns_;  // of panels
};

// Factories that others build on: a 1x1 convolution is a product, a convolution with one channel per group is
// depthwise.
std::unique_ptr<Kernel> makePointwise(const CallDescription& call);
std::unique_ptr<Kernel> makePointwiseInputGradient(const CallDescription& call);
std::unique_ptr<Kernel> makePointwiseFilterGradient(const CallDescription& call);
std::unique_ptr<Kernel> makeConv2d(const CallDescription& call);
std::unique_ptr<Kernel> makeConv2dInputGradient(const CallDescription& call);
std::unique_ptr<Kernel> makeConv2dFilterGradient(const CallDescription& call);
std::unique_ptr<Kernel> makeSeparable(const CallDescription& call);

}  // namespace sepconv::cpu
