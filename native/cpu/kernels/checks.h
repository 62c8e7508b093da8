// What factories say when a call does not fit their kernel: the kernel, the layer, what was expected and what was
// given.
#pragma once
#include <cmath>
#include <string>

#include "../kernel.h"

namespace sepconv::cpu {

inline std::string formatShape(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

inline std::string formatType(const TensorType& type) {
  static const char* const names[] = {"float32", "bfloat16", "int32", "uint8"};
  return names[static_cast<int>(type.dtype)] + formatShape(type.shape);
}

[[noreturn]] inline void fail(const CallDescription& call, const char* code, const std::string& message) {
  throw Error(code, (call.scope.empty() ? "" : call.scope + ": ") + call.kernel + ": " + message);
}

// At least `inputs` inputs, all present, and exactly `outputs` outputs.
inline void expectOperands(const CallDescription& call, size_t inputs, size_t outputs) {
  for (size_t i = 0; i < inputs; ++i)
    if (!call.has(i)) fail(call, "ERR_SHAPE", "input " + std::to_string(i) + " is missing");
  if (call.outputs.size() != outputs)
    fail(call, "ERR_SHAPE",
         "expected " + std::to_string(outputs) + " outputs, got " + std::to_string(call.outputs.size()));
}

inline void expectDType(const CallDescription& call, const char* role, const TensorType& type, DType dtype) {
  if (type.dtype != dtype)
    fail(call, "ERR_DTYPE",
         std::string(role) + ": expected " + formatType({dtype, type.shape}) + ", got " + formatType(type));
}

inline void expectShape(const CallDescription& call, const char* role, const TensorType& type,
                        const std::vector<int64_t>& shape) {
  if (type.shape != shape)
    fail(call, "ERR_SHAPE", std::string(role) + ": expected shape " + formatShape(shape) + ", got " + formatType(type));
}

inline void expectType(const CallDescription& call, const char* role, const TensorType& type,
                       const TensorType& expected) {
  expectDType(call, role, type, expected.dtype);
  expectShape(call, role, type, expected.shape);
}

// Attribute lists with one entry per axis.
inline std::vector<int64_t> expectList(const CallDescription& call, const char* name, size_t length) {
  std::vector<int64_t> values = call.attributes.integers(name);
  if (values.size() != length)
    fail(call, "ERR_ARGUMENT",
         std::string(name) + ": expected " + std::to_string(length) + " entries, got " + formatShape(values));
  return values;
}

// Calls body(begin, count) for [0, n) in tasks of at most `chunk`: the same tasks whatever the number of threads.
template <class Body>
void forEachChunk(ThreadPool& pool, int64_t n, int64_t chunk, const Body& body) {
  pool.run((n + chunk - 1) / chunk, [&](int64_t task, int) {
    const int64_t begin = task * chunk;
    body(begin, n - begin < chunk ? n - begin : chunk);
  });
}

}  // namespace sepconv::cpu
