#include "problem.h"

namespace sepconv::cuda {

std::string subject(const CallDescription& call) {
  return call.scope.empty() ? call.kernel : call.scope + ": " + call.kernel;
}

namespace {

const char* nameOf(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::bfloat16:
      return "bfloat16";
    case DType::int32:
      return "int32";
    case DType::uint8:
      return "uint8";
  }
  return "unknown";
}

void checkType(const CallDescription& call, const std::string& name, const TensorType& type, DType dtype) {
  if (type.dtype != dtype)
    throw Error("ERR_DTYPE", subject(call) + ": the CUDA kernel takes " + nameOf(dtype) + " for " + name + ", got " +
                                 nameOf(type.dtype));
  double elements = 1;
  for (int64_t size : type.shape) {
    if (size < 1) refuse(call, name + " has an empty axis: " + describe(type.shape));
    elements *= static_cast<double>(size);
  }
  if (elements > static_cast<double>(maxElements))
    throw Error("ERR_SHAPE",
                subject(call) + ": " + name + " " + describe(type.shape) +
                    " has more than 2147483647 elements, the most that the CUDA kernels index; use a smaller batch");
}

}  // namespace

std::string describe(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::vector<int> requireIntegers(const CallDescription& call, const char* name, size_t count, int64_t least) {
  const std::vector<int64_t> values = call.attributes.integers(name);
  std::vector<int> result;
  for (int64_t value : values) {
    if (value < least || value > (1 << 30))
      refuse(call, std::string("attribute '") + name + "' is out of range: " + describe(values));
    result.push_back(static_cast<int>(value));
  }
  if (result.size() != count)
    refuse(call, std::string("attribute '") + name + "' must have " + std::to_string(count) + " entries, got " +
                     describe(values));
  return result;
}

void refuse(const CallDescription& call, const std::string& what) {
  throw Error("ERR_FORMAT", subject(call) + ": " + what);
}

const TensorType& requireInput(const CallDescription& call, size_t index, const char* name, size_t rank, DType dtype) {
  if (!call.has(index)) refuse(call, std::string("input '") + name + "' is missing");
  const TensorType& type = call.input(index);
  checkType(call, name, type, dtype);
  if (rank && type.shape.size() != rank)
    refuse(call, std::string(name) + " must have rank " + std::to_string(rank) + ", got " + describe(type.shape));
  return type;
}

const TensorType& requireFloating(const CallDescription& call, size_t index, const char* name, size_t rank) {
  const bool half = call.has(index) && call.input(index).dtype == DType::bfloat16;
  return requireInput(call, index, name, rank, half ? DType::bfloat16 : DType::float32);
}

void requireLike(const CallDescription& call, size_t input, const char* name, const TensorType& type) {
  if (!call.has(input)) return;
  checkType(call, name, call.input(input), type.dtype);
  if (call.input(input).shape != type.shape)
    refuse(call, std::string(name) + " must be " + describe(type.shape) + ", got " + describe(call.input(input).shape));
}

void requireShape(const CallDescription& call, size_t input, const char* name, const std::vector<int64_t>& shape) {
  requireLike(call, input, name, {DType::float32, shape});
}

void requireOutput(const CallDescription& call, size_t index, const std::vector<int64_t>& shape, DType dtype) {
  if (index >= call.outputs.size()) refuse(call, "output " + std::to_string(index) + " is missing");
  checkType(call, "output " + std::to_string(index), call.outputs[index], dtype);
  if (call.outputs[index].shape != shape)
    refuse(call, "output " + std::to_string(index) + " must be " + describe(shape) + ", got " +
                     describe(call.outputs[index].shape));
}

}  // namespace sepconv::cuda
