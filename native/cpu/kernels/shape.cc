// concat, slice, pad, transpose, broadcastTo and copy: elements are moved as 1, 2 or 4 bytes, never looked at. slice,
// transpose and broadcastTo are one strided copy into a dense output: axes that move alike are merged, then rows are
// copied, filled or gathered, or, where another axis than the last is contiguous in the input (NCHW <-> NHWC),
// transposed in blocks of one cache line by one cache line.
#include <algorithm>
#include <cstring>

#include "checks.h"

namespace sepconv::cpu {
namespace {

constexpr int64_t kTaskBytes = 1 << 16;

// One axis of a strided copy; the output is dense. Strides in elements.
struct CopyAxis {
  int64_t size, source, target;
};

#if defined(__clang__)
#define SEPCONV_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SEPCONV_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, Words{i, j, k, l})
#endif

// target[j * targetStride + i] = source[i * sourceStride + j] for 4 x 4 words.
inline void transpose4x4(const uint32_t* source, int64_t sourceStride, uint32_t* target, int64_t targetStride) {
  typedef uint32_t Words __attribute__((vector_size(16)));
  Words row[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&row[i], source + i * sourceStride, 16);
  const Words low01 = SEPCONV_SHUFFLE(row[0], row[1], 0, 4, 1, 5), high01 = SEPCONV_SHUFFLE(row[0], row[1], 2, 6, 3, 7);
  const Words low23 = SEPCONV_SHUFFLE(row[2], row[3], 0, 4, 1, 5), high23 = SEPCONV_SHUFFLE(row[2], row[3], 2, 6, 3, 7);
  const Words column[4] = {SEPCONV_SHUFFLE(low01, low23, 0, 1, 4, 5), SEPCONV_SHUFFLE(low01, low23, 2, 3, 6, 7),
                           SEPCONV_SHUFFLE(high01, high23, 0, 1, 4, 5), SEPCONV_SHUFFLE(high01, high23, 2, 3, 6, 7)};
  for (int j = 0; j < 4; ++j) std::memcpy(target + j * targetStride, &column[j], 16);
}
#undef SEPCONV_SHUFFLE

constexpr int64_t kBlock = 16;  // floats of a cache line

// target[j * targetStride + i] = source[i * sourceStride + j] for i < m, j < n.
template <class T>
void transposeTile(const T* source, int64_t sourceStride, T* target, int64_t targetStride, int64_t m, int64_t n) {
  for (int64_t j0 = 0; j0 < n; j0 += kBlock) {
    for (int64_t i0 = 0; i0 < m;
         i0 += kBlock) {  // along the output's rows: lines that blocks share are written close in time
      const int64_t iEnd = std::min(m, i0 + kBlock), jEnd = std::min(n, j0 + kBlock);
      if constexpr (sizeof(T) == 4) {
        if (iEnd - i0 == kBlock && jEnd - j0 == kBlock) {
          for (int64_t j = j0; j < jEnd; j += 4)
            for (int64_t i = i0; i < iEnd; i += 4)
              transpose4x4(source + i * sourceStride + j, sourceStride, target + j * targetStride + i, targetStride);
          continue;
        }
      }
      for (int64_t j = j0; j < jEnd; ++j)
        for (int64_t i = i0; i < iEnd; ++i) target[j * targetStride + i] = source[i * sourceStride + j];
    }
  }
}

// y[i0, i1, ...] = x[offset + sum of i * source stride].
template <class T>
class StridedCopy : public Kernel {
 public:
  // `shape` is the output's; `strides` are the input's along each of its axes.
  StridedCopy(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int64_t offset)
      : offset_(offset) {
    int64_t target = 1;
    for (size_t i = shape.size(); i-- > 0;) {
      const CopyAxis axis = {shape[i], strides[i], target};
      target *= shape[i];
      if (axis.size == 1) continue;
      if (!outer_.empty() && axis.source == outer_.back().source * outer_.back().size)
        outer_.back().size *= axis.size;
      else
        outer_.push_back(axis);
    }
    if (outer_.empty()) outer_.push_back({1, 1, 1});
    inner_ = outer_.front();
    outer_.erase(outer_.begin());
    const auto contiguous =
        std::find_if(outer_.begin(), outer_.end(), [](const CopyAxis& axis) { return axis.source == 1; });
    if (inner_.source > 1 && contiguous != outer_.end()) {
      across_ = *contiguous;
      outer_.erase(contiguous);
    }
    for (const CopyAxis& axis : outer_) count_ *= axis.size;
  }

  void run(const Arguments& arguments) const override {
    const T* x = static_cast<const T*>(arguments.inputs[0]) + offset_;
    T* y = static_cast<T*>(arguments.outputs[0]);
    if (across_.size > 1)
      transpose(arguments.pool, x, y);
    else
      copyRows(arguments.pool, x, y);
  }

 private:
  static constexpr int64_t kTask = kTaskBytes / static_cast<int64_t>(sizeof(T));

  void transpose(ThreadPool& pool, const T* x, T* y) const {
    // A tile is about one task; a short axis (three colours) makes the other one long.
    const int64_t wide =
        std::min<int64_t>(across_.size, std::max<int64_t>(64, kTask / 4 / inner_.size / kBlock * kBlock));
    const int64_t tall = std::min<int64_t>(inner_.size, std::max<int64_t>(64, kTask / 4 / wide / kBlock * kBlock));
    const int64_t across = (across_.size + wide - 1) / wide, along = (inner_.size + tall - 1) / tall;
    pool.run(count_ * across * along, [=](int64_t task, int) {
      const int64_t i = task % along * tall, j = task / along % across * wide;
      int64_t source, target;
      offsets(task / along / across, &source, &target);
      transposeTile(x + source + i * inner_.source + j, inner_.source, y + target + j * across_.target + i,
                    across_.target, std::min(tall, inner_.size - i), std::min(wide, across_.size - j));
    });
  }

  void copyRows(ThreadPool& pool, const T* x, T* y) const {
    const int64_t size = inner_.size, step = inner_.source;
    const int64_t pieces = size >= 2 * kTask ? (size + kTask - 1) / kTask : 1;
    const int64_t length = pieces > 1 ? kTask : size, rows = pieces > 1 ? 1 : std::max<int64_t>(1, kTask / size);
    pool.run((count_ + rows - 1) / rows * pieces, [=](int64_t task, int) {
      const int64_t begin = task % pieces * length, n = std::min(length, size - begin);
      const int64_t first = task / pieces * rows, end = std::min(count_, first + rows);
      for (int64_t row = first; row < end; ++row) {
        int64_t source, target;
        offsets(row, &source, &target);
        const T* from = x + source + begin * step;
        T* to = y + target + begin;
        if (step == 1)
          std::memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
        else if (step == 0)
          std::fill(to, to + n, *from);
        else
          for (int64_t i = 0; i < n; ++i) to[i] = from[i * step];
      }
    });
  }

  void offsets(int64_t index, int64_t* source, int64_t* target) const {
    *source = *target = 0;
    for (const CopyAxis& axis : outer_) {
      const int64_t position = index % axis.size;
      index /= axis.size;
      *source += position * axis.source;
      *target += position * axis.target;
    }
  }

  int64_t offset_;
  CopyAxis inner_;
  CopyAxis across_ = {1, 0, 0};  // contiguous in the input, where the innermost axis is not
  std::vector<CopyAxis> outer_;  // the others, innermost first
  int64_t count_ = 1;
};

std::unique_ptr<Kernel> makeStridedCopy(const CallDescription& call, const std::vector<int64_t>& strides,
                                        int64_t offset) {
  const std::vector<int64_t>& shape = call.outputs[0].shape;
  switch (bytesPerElement(call.outputs[0].dtype)) {
    case 1:
      return std::make_unique<StridedCopy<uint8_t>>(shape, strides, offset);
    case 2:
      return std::make_unique<StridedCopy<uint16_t>>(shape, strides, offset);
    default:
      return std::make_unique<StridedCopy<uint32_t>>(shape, strides, offset);
  }
}

std::vector<int64_t> denseStrides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0; stride *= shape[i]) strides[i] = stride;
  return strides;
}

std::unique_ptr<Kernel> makeSlice(const CallDescription& call) {
  expectOperands(call, 1, 1);
  const TensorType& x = call.input(0);
  const std::vector<int64_t> begin = expectList(call, "begin", x.shape.size()),
                             size = expectList(call, "size", x.shape.size());
  const std::vector<int64_t> steps = call.attributes.has("strides") ? expectList(call, "strides", x.shape.size())
                                                                    : std::vector<int64_t>(x.shape.size(), 1);
  expectType(call, "output", call.outputs[0], {x.dtype, size});
  std::vector<int64_t> strides = denseStrides(x.shape);
  int64_t offset = 0;
  for (size_t i = 0; i < size.size(); ++i) {
    if (begin[i] < 0 || size[i] < 1 || steps[i] < 1 || begin[i] + (size[i] - 1) * steps[i] >= x.shape[i])
      fail(call, "ERR_SHAPE",
           "begin " + formatShape(begin) + ", size " + formatShape(size) + ", strides " + formatShape(steps) +
               " leave " + formatType(x));
    offset += begin[i] * strides[i];
    strides[i] *= steps[i];
  }
  return makeStridedCopy(call, strides, offset);
}

std::unique_ptr<Kernel> makeTranspose(const CallDescription& call) {
  expectOperands(call, 1, 1);
  const TensorType& x = call.input(0);
  const std::vector<int64_t> permutation = expectList(call, "permutation", x.shape.size()),
                             dense = denseStrides(x.shape);
  std::vector<int64_t> shape, strides;
  std::vector<bool> seen(x.shape.size());
  for (const int64_t axis : permutation) {
    if (axis < 0 || axis >= x.rank() || seen[static_cast<size_t>(axis)])
      fail(call, "ERR_ARGUMENT",
           "permutation " + formatShape(permutation) + " does not name every axis of " + formatType(x) + " once");
    seen[static_cast<size_t>(axis)] = true;
    shape.push_back(x.shape[static_cast<size_t>(axis)]);
    strides.push_back(dense[static_cast<size_t>(axis)]);
  }
  expectType(call, "output", call.outputs[0], {x.dtype, shape});
  return makeStridedCopy(call, strides, 0);
}

std::unique_ptr<Kernel> makeBroadcastTo(const CallDescription& call) {
  expectOperands(call, 1, 1);
  const TensorType &x = call.input(0), &y = call.outputs[0];
  expectDType(call, "output", y, x.dtype);
  bool fits = x.rank() <= y.rank();
  const std::vector<int64_t> dense = denseStrides(x.shape);
  std::vector<int64_t> strides(y.shape.size(), 0);
  for (int64_t back = 1; fits && back <= x.rank(); ++back) {
    fits = x.dim(-back) == y.dim(-back) || x.dim(-back) == 1;
    if (x.dim(-back) > 1) strides[static_cast<size_t>(y.rank() - back)] = dense[static_cast<size_t>(x.rank() - back)];
  }
  if (!fits) fail(call, "ERR_SHAPE", formatType(x) + " does not broadcast to " + formatShape(y.shape));
  return makeStridedCopy(call, strides, 0);
}

class Copy : public Kernel {
 public:
  explicit Copy(const CallDescription& call) : bytes_(static_cast<int64_t>(call.input(0).bytes())) {}
  void run(const Arguments& arguments) const override {
    const uint8_t* x = arguments.input<uint8_t>(0);
    uint8_t* y = arguments.output<uint8_t>();
    if (x == y) return;
    forEachChunk(arguments.pool, bytes_, 4 * kTaskBytes,
                 [=](int64_t begin, int64_t n) { std::memcpy(y + begin, x + begin, static_cast<size_t>(n)); });
  }

 private:
  int64_t bytes_;
};

std::unique_ptr<Kernel> makeCopy(const CallDescription& call) {
  expectOperands(call, 1, 1);
  expectType(call, "output", call.outputs[0], call.input(0));
  return std::make_unique<Copy>(call);
}

// Every input is a matrix [outer, bytes], and the output holds their rows side by side.
class Concat : public Kernel {
 public:
  Concat(const CallDescription& call, int64_t axis) {
    const TensorType& y = call.outputs[0];
    for (int64_t i = 0; i < axis; ++i) outer_ *= y.dim(i);
    for (const auto& input : call.inputs) widths_.push_back(static_cast<int64_t>(input->bytes()) / outer_);
    for (const int64_t width : widths_) width_ += width;
  }
  void run(const Arguments& arguments) const override {
    uint8_t* y = arguments.output<uint8_t>();
    if (width_ >= 2 * kTaskBytes) {  // few long rows: by pieces of each input's row
      int64_t column = 0;
      for (size_t i = 0; i < widths_.size(); column += widths_[i++]) {
        const int64_t width = widths_[i], pieces = (width + kTaskBytes - 1) / kTaskBytes, target = column;
        const uint8_t* x = arguments.input<uint8_t>(i);
        arguments.pool.run(outer_ * pieces, [=](int64_t task, int) {
          const int64_t row = task / pieces, begin = task % pieces * kTaskBytes;
          std::memcpy(y + row * width_ + target + begin, x + row * width + begin,
                      static_cast<size_t>(std::min(kTaskBytes, width - begin)));
        });
      }
      return;
    }
    forEachChunk(arguments.pool, outer_, std::max<int64_t>(1, kTaskBytes / width_), [&](int64_t begin, int64_t rows) {
      int64_t column = 0;
      for (size_t i = 0; i < widths_.size(); column += widths_[i++]) {
        const uint8_t* x = arguments.input<uint8_t>(i);
        for (int64_t row = begin; row < begin + rows; ++row)
          std::memcpy(y + row * width_ + column, x + row * widths_[i], static_cast<size_t>(widths_[i]));
      }
    });
  }

 private:
  int64_t outer_ = 1, width_ = 0;  // rows, and bytes of an output row
  std::vector<int64_t> widths_;    // bytes of each input's row
};

std::unique_ptr<Kernel> makeConcat(const CallDescription& call) {
  expectOperands(call, std::max<size_t>(1, call.inputs.size()), 1);
  const TensorType& first = call.input(0);
  const int64_t axis = call.attributes.integer("axis");
  if (axis < 0 || axis >= first.rank())
    fail(call, "ERR_ARGUMENT", "axis " + std::to_string(axis) + " is not an axis of " + formatType(first));
  TensorType expected = first;
  expected.shape[static_cast<size_t>(axis)] = 0;
  for (size_t i = 0; i < call.inputs.size(); ++i) {
    TensorType same = first;
    same.shape[static_cast<size_t>(axis)] = call.input(i).rank() == first.rank() ? call.input(i).dim(axis) : 0;
    expectType(call, ("input " + std::to_string(i)).c_str(), call.input(i), same);
    expected.shape[static_cast<size_t>(axis)] += call.input(i).dim(axis);
  }
  expectType(call, "output", call.outputs[0], expected);
  return std::make_unique<Concat>(call, axis);
}

// Trailing axes without padding are merged into the one before, whose rows [before | input | after] are written in one
// go.
template <class T>
class Pad : public Kernel {
 public:
  Pad(std::vector<int64_t> shape, std::vector<int64_t> before, std::vector<int64_t> after, T value) : value_(value) {
    while (shape.size() > 1 && before.back() == 0 && after.back() == 0) {
      const int64_t size = shape.back();
      shape.pop_back();
      before.pop_back();
      after.pop_back();
      shape.back() *= size;
      before.back() *= size;
      after.back() *= size;
    }
    if (shape.empty()) {
      shape = {1};
      before = after = {0};
    }
    size_ = shape.back();
    left_ = before.back();
    right_ = after.back();
    for (size_t i = 0; i + 1 < shape.size(); ++i) {
      axes_.push_back({shape[i], before[i], shape[i] + before[i] + after[i]});
      rows_ *= axes_.back().padded;
    }
  }
  void run(const Arguments& arguments) const override {
    const T* x = static_cast<const T*>(arguments.inputs[0]);
    T* y = static_cast<T*>(arguments.outputs[0]);
    const int64_t width = left_ + size_ + right_;
    forEachChunk(arguments.pool, rows_, std::max<int64_t>(1, kTaskBytes / static_cast<int64_t>(sizeof(T)) / width),
                 [=](int64_t begin, int64_t n) {
                   for (int64_t row = begin; row < begin + n; ++row) {
                     T* to = y + row * width;
                     const int64_t source = sourceRow(row);
                     if (source < 0) {
                       std::fill(to, to + width, value_);
                       continue;
                     }
                     std::fill(to, to + left_, value_);
                     std::memcpy(to + left_, x + source * size_, static_cast<size_t>(size_) * sizeof(T));
                     std::fill(to + left_ + size_, to + width, value_);
                   }
                 });
  }

 private:
  struct Axis {
    int64_t size, before, padded;
  };
  // The input's row behind an output row; -1 where there is none.
  int64_t sourceRow(int64_t row) const {
    int64_t source = 0, stride = 1;
    for (size_t i = axes_.size(); i-- > 0;) {
      const int64_t position = row % axes_[i].padded - axes_[i].before;
      if (position < 0 || position >= axes_[i].size) return -1;
      row /= axes_[i].padded;
      source += position * stride;
      stride *= axes_[i].size;
    }
    return source;
  }

  T value_;
  int64_t size_, left_, right_, rows_ = 1;
  std::vector<Axis> axes_;
};

std::unique_ptr<Kernel> makePad(const CallDescription& call) {
  expectOperands(call, 1, 1);
  const TensorType& x = call.input(0);
  const std::vector<int64_t> before = expectList(call, "before", x.shape.size()),
                             after = expectList(call, "after", x.shape.size());
  TensorType expected = x;
  for (size_t i = 0; i < x.shape.size(); ++i) {
    if (before[i] < 0 || after[i] < 0)
      fail(call, "ERR_ARGUMENT", "padding must not be negative: " + formatShape(before) + ", " + formatShape(after));
    expected.shape[i] += before[i] + after[i];
  }
  expectType(call, "output", call.outputs[0], expected);
  const double value = call.attributes.number("value", 0.0);
  uint32_t word = 0;
  if (x.dtype == DType::float32 || x.dtype == DType::bfloat16) {
    const float single = static_cast<float>(value);
    std::memcpy(&word, &single, 4);
    if (x.dtype == DType::bfloat16) word = std::isnan(single) ? 0x7fc0u : (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  } else {
    const bool bytes = x.dtype == DType::uint8;
    if (value != std::floor(value) || value < (bytes ? 0.0 : -2147483648.0) || value > (bytes ? 255.0 : 2147483647.0))
      fail(call, "ERR_ARGUMENT", "value " + std::to_string(value) + " is not one of " + formatType(x));
    word = static_cast<uint32_t>(static_cast<int64_t>(value));
  }
  switch (bytesPerElement(x.dtype)) {
    case 1:
      return std::make_unique<Pad<uint8_t>>(x.shape, before, after, static_cast<uint8_t>(word));
    case 2:
      return std::make_unique<Pad<uint16_t>>(x.shape, before, after, static_cast<uint16_t>(word));
    default:
      return std::make_unique<Pad<uint32_t>>(x.shape, before, after, word);
  }
}

}  // namespace

void registerShapeKernels(Registry& registry) {
  registry["concat"] = makeConcat;
  registry["slice"] = makeSlice;
  registry["pad"] = makePad;
  registry["transpose"] = makeTranspose;
  registry["broadcastTo"] = makeBroadcastTo;
  registry["copy"] = makeCopy;
}

}  // namespace sepconv::cpu
