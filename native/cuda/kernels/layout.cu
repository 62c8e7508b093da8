// Ops that move elements without computing, any dtype: slice, transpose, broadcastTo and pad gather (a thread per
// element of y, whose place in x follows from its index along each axis), concat scatters one input per launch. Axes
// that stay neighbours in x are one. Not fast: a transpose whose last axis changes reads 4 bytes per 32-byte sector.
#include <algorithm>
#include <cstring>

#include "grid.cuh"
#include "tensor.cuh"

namespace sepconv::cuda {
namespace {

constexpr int maxAxes = 12;

// Calls body with an integer of the elements' size: nothing is computed with them.
template <class Body>
void bySize(DType dtype, const Body& body) {
  switch (bytesPerElement(dtype)) {
    case 1:
      return body(uint8_t{});
    case 2:
      return body(uint16_t{});
    default:
      return body(uint32_t{});
  }
}

// y[i...] = x[offset + sum of i * stride], or `value` where i leaves [first, end) along an axis (pad).
template <class T>
struct GatherParameters {
  arch::Global<const T> x;
  arch::Global<T> y;
  T value;
  bool bounded;
  int axes;
  int64_t offset;
  int sizes[maxAxes], strides[maxAxes], first[maxAxes], end[maxAxes];  // last axis first
};

template <class T>
__global__ void __launch_bounds__(gridThreads) gather(const __grid_constant__ GatherParameters<T> p) {
  arch::beginLaunch();
  const int64_t i = taskIndex();
  if (i >= p.y.count) return;
  int rest = static_cast<int>(i);
  int64_t from = p.offset;
  bool inside = true;
  ARCH_NO_UNROLL
  for (int axis = 0; axis < p.axes; ++axis) {
    const int at = rest % p.sizes[axis];
    rest /= p.sizes[axis];
    from += int64_t{at} * p.strides[axis];
    if (p.bounded) inside = inside && at >= p.first[axis] && at < p.end[axis];
  }
  p.y.store(i, {inside ? p.x.load(from)[0] : p.value});
}

class Gather final : public Kernel {
 public:
  explicit Gather(const CallDescription& call) : name_(call.kernel) {
    if (!call.has(0)) refuse(call, "input 'x' is missing");
    x_ = requireInput(call, 0, "x", 0, call.input(0).dtype);
    strides_.assign(x_.shape.size(), 1);
    for (size_t axis = x_.shape.size(); axis-- > 1;) strides_[axis - 1] = strides_[axis] * x_.shape[axis];
    y_ = {x_.dtype, {}};
    if (name_ == "slice") slice(call);
    if (name_ == "transpose") transpose(call);
    if (name_ == "broadcastTo") broadcast(call);
    if (name_ == "pad") pad(call);
    requireOutputLike(call, 0, y_);
    collapse(call);
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    bySize(x_.dtype, [&](auto element) { start<decltype(element)>(device, arguments); });
  }

 private:
  struct Axis {
    int64_t size, stride, first, end;
  };

  void add(int64_t size, int64_t stride, int64_t first = 0, int64_t end = -1) {
    y_.shape.push_back(size);
    axes_.push_back({size, stride, first, end < 0 ? size : end});
  }
  void slice(const CallDescription& call) {
    const auto begin = requireIntegers(call, "begin", x_.shape.size(), 0),
               size = requireIntegers(call, "size", x_.shape.size(), 1),
               steps = requireIntegers(call, "strides", x_.shape.size(), 1);
    for (size_t i = 0; i < x_.shape.size(); ++i) {
      if (begin[i] + int64_t{size[i] - 1} * steps[i] >= x_.shape[i]) refuse(call, "the box reaches outside x");
      offset_ += begin[i] * strides_[i];
      add(size[i], steps[i] * strides_[i]);
    }
  }
  void transpose(const CallDescription& call) {
    const auto permutation = requireIntegers(call, "permutation", x_.shape.size(), 0);
    std::vector<bool> seen(x_.shape.size());
    for (int axis : permutation) {
      if (static_cast<size_t>(axis) >= seen.size() || seen[static_cast<size_t>(axis)])
        refuse(call, "permutation must name every axis once");
      seen[static_cast<size_t>(axis)] = true;
      add(x_.shape[static_cast<size_t>(axis)], strides_[static_cast<size_t>(axis)]);
    }
  }
  void broadcast(const CallDescription& call) {
    const std::vector<int64_t> shape = call.attributes.integers("shape");
    if (shape.size() < x_.shape.size()) refuse(call, "shape has fewer axes than x");
    const size_t missing = shape.size() - x_.shape.size();
    for (size_t i = 0; i < shape.size(); ++i) {
      const int64_t size = i < missing ? 1 : x_.shape[i - missing];
      if (size != 1 && size != shape[i])
        refuse(call, "x " + cuda::describe(x_.shape) + " does not broadcast to " + cuda::describe(shape));
      add(shape[i], size == 1 ? 0 : strides_[i - missing]);
    }
  }
  void pad(const CallDescription& call) {
    const auto before = requireIntegers(call, "before", x_.shape.size(), 0),
               after = requireIntegers(call, "after", x_.shape.size(), 0);
    bounded_ = true;
    value_ = call.attributes.number("value");
    for (size_t i = 0; i < x_.shape.size(); ++i) {
      offset_ -= before[i] * strides_[i];
      add(before[i] + x_.shape[i] + after[i], strides_[i], before[i], before[i] + x_.shape[i]);
    }
  }
  // Last axis first; axes of size 1 go, and neighbours that move as one become one.
  void collapse(const CallDescription& call) {
    std::vector<Axis> merged;
    for (size_t i = axes_.size(); i-- > 0;) {
      const Axis& axis = axes_[i];
      const bool whole = axis.first == 0 && axis.end == axis.size;
      if (axis.size == 1 && whole) continue;
      if (!merged.empty() && whole && merged.back().first == 0 && merged.back().end == merged.back().size &&
          axis.stride == merged.back().stride * merged.back().size) {
        merged.back().size *= axis.size;
        merged.back().end = merged.back().size;
      } else {
        merged.push_back(axis);
      }
    }
    if (merged.size() > maxAxes) refuse(call, "more than 12 axes that cannot be merged");
    axes_ = std::move(merged);
  }

  template <class T>
  static T encode(double value, DType dtype) {
    if (dtype == DType::uint8) return static_cast<T>(value);
    if (dtype == DType::int32) return static_cast<T>(static_cast<int64_t>(value));
    const auto number = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &number, 4);
    return static_cast<T>(dtype == DType::float32 ? bits : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }

  template <class T>
  void start(DeviceInterface& device, const Arguments& arguments) const {
    GatherParameters<T> p{};
    p.x = {arguments.input<T>(0), x_.elements()};
    p.y = {arguments.output<T>(), y_.elements()};
    p.value = encode<T>(value_, x_.dtype);
    p.bounded = bounded_;
    p.offset = offset_;
    p.axes = static_cast<int>(axes_.size());
    for (size_t i = 0; i < axes_.size(); ++i) {
      p.sizes[i] = static_cast<int>(axes_[i].size);
      p.strides[i] = static_cast<int>(axes_[i].stride);
      p.first[i] = static_cast<int>(axes_[i].first);
      p.end[i] = static_cast<int>(axes_[i].end);
    }
    launchTasks(device, name_.c_str(), gather<T>, p.y.count, p);
  }

  const std::string name_;
  TensorType x_, y_;
  std::vector<int64_t> strides_;
  std::vector<Axis> axes_;
  int64_t offset_ = 0;
  bool bounded_ = false;
  double value_ = 0;
};

template <class T>
struct ConcatParameters {
  arch::Global<const T> x;
  arch::Global<T> y;
  int part, row, at;  // elements per step of the axes before: of this input, of y, and where this input begins
};

template <class T>
__global__ void __launch_bounds__(gridThreads) place(const __grid_constant__ ConcatParameters<T> p) {
  arch::beginLaunch();
  const int64_t i = taskIndex();
  if (i >= p.x.count) return;
  const int at = static_cast<int>(i);  // 64-bit divisions are function calls
  p.y.store(int64_t{at / p.part} * p.row + p.at + at % p.part, {p.x.load(i)[0]});
}

class Concat final : public Kernel {
 public:
  explicit Concat(const CallDescription& call) {
    if (!call.has(0)) refuse(call, "input 0 is missing");
    y_ = requireInput(call, 0, "x", 0, call.input(0).dtype);
    const int64_t axis = call.attributes.integer("axis");
    if (axis < 0 || axis >= y_.rank()) refuse(call, "axis " + std::to_string(axis) + " does not exist");
    const auto tail = [&](const TensorType& type) {
      int64_t product = 1;
      for (int64_t i = axis; i < type.rank(); ++i) product *= type.dim(i);
      return static_cast<int>(product);
    };
    int64_t size = 0;
    for (size_t i = 0; i < call.inputs.size(); ++i) {
      const TensorType& x = requireInput(call, i, "x", y_.shape.size(), y_.dtype);
      for (int64_t j = 0; j < x.rank(); ++j)
        if (j != axis && x.dim(j) != y_.dim(j)) refuse(call, "tensor " + std::to_string(i) + " does not fit the first");
      size += x.dim(axis);
      parts_.push_back(tail(x));
      counts_.push_back(x.elements());
    }
    y_.shape[static_cast<size_t>(axis)] = size;
    row_ = tail(y_);
    requireOutputLike(call, 0, y_);
  }
  void launch(DeviceInterface& device, const Arguments& arguments) const override {
    bySize(y_.dtype, [&](auto element) { start<decltype(element)>(device, arguments); });
  }

 private:
  template <class T>
  void start(DeviceInterface& device, const Arguments& arguments) const {
    int at = 0;
    for (size_t i = 0; i < parts_.size(); ++i) {
      const ConcatParameters<T> p{
          {arguments.input<T>(i), counts_[i]}, {arguments.output<T>(), y_.elements()}, parts_[i], row_, at};
      launchTasks(device, "concat", place<T>, counts_[i], p);
      at += parts_[i];
    }
  }

  TensorType y_;
  std::vector<int> parts_;
  std::vector<int64_t> counts_;
  int row_;
};

}  // namespace

void registerLayoutKernels(Registry& registry) {
  registry["slice"] = registry["transpose"] = registry["broadcastTo"] = registry["pad"] = make<Gather>;
  registry["concat"] = make<Concat>;
}

}  // namespace sepconv::cuda
