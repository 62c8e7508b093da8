// What every native executor implements: a kernel per op name, made once per call of a program and run any number of
// times. Nothing here knows of Node. The ops' meaning, shapes and attributes are specified by the reference loops in
// src/ops.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace sepconv {

enum class DType : uint8_t { float32, bfloat16, int32, uint8 };

inline size_t bytesPerElement(DType dtype) {
  switch (dtype) {
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::bfloat16:
      return 2;
    case DType::uint8:
      return 1;
  }
  return 0;
}

struct TensorType {
  DType dtype = DType::float32;
  std::vector<int64_t> shape;

  int64_t elements() const {
    int64_t product = 1;
    for (int64_t size : shape) product *= size;
    return product;
  }
  int64_t rank() const { return static_cast<int64_t>(shape.size()); }
  int64_t dim(int64_t axis) const { return shape[static_cast<size_t>(axis < 0 ? axis + rank() : axis)]; }
  // Rows of the matrix [rows, last axis] that the tensor is when all leading axes are merged.
  int64_t rows() const { return shape.empty() ? 1 : elements() / shape.back(); }
  size_t bytes() const { return static_cast<size_t>(elements()) * bytesPerElement(dtype); }
};

// Fails loading or running a program; reaches JavaScript as a SepconvError with this code.
struct Error : std::runtime_error {
  Error(const char* code, const std::string& message) : std::runtime_error(message), code(code) {}
  const char* code;  // one of the stable codes of src/errors.ts
};

// The attributes of one call: numbers, texts, flags (numbers 0 and 1) and lists of numbers, as they stand in the
// program.
class Attributes {
 public:
  void set(const std::string& name, double value) { numbers_[name] = {value}; }
  void set(const std::string& name, std::vector<double> values) { numbers_[name] = std::move(values); }
  void set(const std::string& name, std::string value) { texts_[name] = std::move(value); }

  bool has(const std::string& name) const { return numbers_.count(name) || texts_.count(name); }
  double number(const std::string& name, std::optional<double> fallback = {}) const;
  int64_t integer(const std::string& name, std::optional<int64_t> fallback = {}) const;
  bool flag(const std::string& name) const { return number(name, 0.0) != 0; }  // absent: false
  std::vector<int64_t> integers(const std::string& name) const;
  std::vector<double> numbers(const std::string& name) const;
  std::string text(const std::string& name, std::string_view fallback = {}) const;

 private:
  std::map<std::string, std::vector<double>> numbers_;
  std::map<std::string, std::string> texts_;
};

enum class Activation : uint8_t { none, relu, elu };
Activation activation(const Attributes& attributes, const char* name);  // absent: none

struct CallDescription {
  std::string kernel, scope;
  std::vector<std::optional<TensorType>> inputs;  // empty for an absent optional input
  std::vector<TensorType> outputs;
  Attributes attributes;

  bool has(size_t input) const { return input < inputs.size() && inputs[input].has_value(); }
  const TensorType& input(size_t index) const { return *inputs[index]; }
};

// Resolved geometry of a two-dimensional window: all that a convolution or pooling kernel needs to know of strides and
// padding.
struct Geometry {
  int64_t batch, height, width;  // input
  int64_t outHeight, outWidth;   // output
  int64_t kernelHeight, kernelWidth;
  int64_t strideHeight, strideWidth;
  int64_t dilationHeight, dilationWidth;
  int64_t top, left;  // padding before; what is after follows from the output size
};

}  // namespace sepconv
