#include "convert.h"

#include <cmath>

namespace sepconv::addon {

namespace {

[[noreturn]] void malformed(const std::string& what, const char* expected) {
  throw Error("ERR_FORMAT", "program: " + what + " must be " + expected);
}

Napi::Object toObject(const Napi::Value& value, const std::string& what) {
  if (!value.IsObject()) malformed(what, "an object");
  return value.As<Napi::Object>();
}

Napi::Array toArray(const Napi::Value& value, const std::string& what) {
  if (!value.IsArray()) malformed(what, "an array");
  return value.As<Napi::Array>();
}

std::string toText(const Napi::Value& value, const std::string& what) {
  if (!value.IsString()) malformed(what, "a string");
  return value.As<Napi::String>().Utf8Value();
}

double toNumber(const Napi::Value& value, const std::string& what) {
  if (!value.IsNumber()) malformed(what, "a number");
  return value.As<Napi::Number>().DoubleValue();
}

size_t toWhole(const Napi::Value& value, const std::string& what) {
  const double number = toNumber(value, what);
  if (!(number >= 0 && number <= 9007199254740991.0) || number != std::floor(number))
    malformed(what, "a whole number of at least 0");
  return static_cast<size_t>(number);
}

DType toDType(const Napi::Value& value, const std::string& what) {
  const std::string name = toText(value, what);
  if (name == "float32") return DType::float32;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "int32") return DType::int32;
  if (name == "uint8") return DType::uint8;
  malformed(what, "float32, bfloat16, int32 or uint8");
}

Place toPlace(const Napi::Value& value, const std::string& what) {
  const std::string name = toText(value, what);
  if (name == "arena") return Place::arena;
  if (name == "input") return Place::input;
  if (name == "output") return Place::output;
  if (name == "state") return Place::state;
  if (name == "prepared") return Place::prepared;
  if (name == "constant") return Place::constant;
  malformed(what, "arena, input, output, state, prepared or constant");
}

TensorType toType(const Napi::Object& object, const std::string& what) {
  TensorType type;
  type.dtype = toDType(object.Get("dtype"), what + ".dtype");
  const Napi::Array shape = toArray(object.Get("shape"), what + ".shape");
  const uint32_t rank = shape.Length();
  for (uint32_t i = 0; i < rank; ++i) {
    const size_t size = toWhole(shape[i], what + ".shape");
    if (size == 0) malformed(what + ".shape", "made of sizes of at least 1");  // kernels divide by sizes
    type.shape.push_back(static_cast<int64_t>(size));
  }
  return type;
}

// Booleans are the numbers 0 and 1; lists of texts mean nothing to any kernel and are left out.
Attributes toAttributes(const Napi::Value& value, const std::string& what) {
  const Napi::Object object = toObject(value, what);
  const Napi::Array names = object.GetPropertyNames();
  Attributes attributes;
  for (uint32_t i = 0; i < names.Length(); ++i) {
    const Napi::Value key = names[i];
    const std::string name = key.As<Napi::String>().Utf8Value();
    const Napi::Value entry = object.Get(key);
    if (entry.IsNumber()) {
      attributes.set(name, entry.As<Napi::Number>().DoubleValue());
    } else if (entry.IsBoolean()) {
      attributes.set(name, entry.As<Napi::Boolean>().Value() ? 1.0 : 0.0);
    } else if (entry.IsString()) {
      attributes.set(name, entry.As<Napi::String>().Utf8Value());
    } else if (entry.IsArray()) {
      const Napi::Array list = entry.As<Napi::Array>();
      std::vector<double> numbers;
      for (uint32_t j = 0; j < list.Length(); ++j) {
        const Napi::Value element = list[j];
        if (element.IsNumber()) numbers.push_back(element.As<Napi::Number>().DoubleValue());
      }
      if (numbers.size() == list.Length()) attributes.set(name, std::move(numbers));
    } else {
      malformed(what + "." + name, "a number, a text, a flag or a list");
    }
  }
  return attributes;
}

BufferDescription toBuffer(const Napi::Value& value, const std::string& what) {
  const Napi::Object object = toObject(value, what);
  BufferDescription buffer;
  buffer.place = toPlace(object.Get("place"), what + ".place");
  buffer.type = toType(object, what);
  buffer.bytes = toWhole(object.Get("bytes"), what + ".bytes");
  const Napi::Value view = object.Get("view");
  if (!view.IsUndefined()) {
    const size_t index = toWhole(view, what + ".view");
    if (index > INT32_MAX) malformed(what + ".view", "an index into buffers");
    buffer.view = static_cast<int32_t>(index);
    return buffer;
  }
  if (buffer.place == Place::arena) buffer.offset = toWhole(object.Get("offset"), what + ".offset");
  const Napi::Value name = object.Get("name");
  if (name.IsString()) buffer.name = name.As<Napi::String>().Utf8Value();
  if (buffer.place == Place::constant) {
    const Napi::Value data = object.Get("data");
    if (!data.IsTypedArray() || data.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
      malformed(what + ".data", "a Uint8Array");
    const Napi::Uint8Array bytes = data.As<Napi::Uint8Array>();
    buffer.data.assign(bytes.Data(), bytes.Data() + bytes.ByteLength());
  }
  return buffer;
}

std::vector<int32_t> toIndices(const Napi::Value& value, const std::string& what, bool optional) {
  const Napi::Array array = toArray(value, what);
  std::vector<int32_t> list;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Value entry = array[i];
    if (optional && entry.IsNull()) {
      list.push_back(-1);
      continue;
    }
    const size_t index = toWhole(entry, what);
    if (index > INT32_MAX) malformed(what, "an index into buffers");
    list.push_back(static_cast<int32_t>(index));
  }
  return list;
}

ProgramCall toProgramCall(const Napi::Value& value, const std::vector<BufferDescription>& buffers,
                          const std::string& what) {
  const Napi::Object object = toObject(value, what);
  ProgramCall call;
  call.kernel = toText(object.Get("kernel"), what + ".kernel");
  call.scope = toText(object.Get("scope"), what + ".scope");
  call.inputBuffers = toIndices(object.Get("inputs"), what + ".inputs", true);
  call.outputBuffers = toIndices(object.Get("outputs"), what + ".outputs", false);
  call.attributes = toAttributes(object.Get("attributes"), what + ".attributes");
  const Napi::Value workspace = object.Get("workspace");
  if (!workspace.IsUndefined()) {
    const Napi::Object place = toObject(workspace, what + ".workspace");
    call.workspaceOffset = toWhole(place.Get("offset"), what + ".workspace.offset");
    call.workspaceBytes = toWhole(place.Get("bytes"), what + ".workspace.bytes");
  }
  const auto typeOf = [&](int32_t index) {
    if (static_cast<size_t>(index) >= buffers.size()) malformed(what, "made of indices into buffers");
    return buffers[static_cast<size_t>(index)].type;
  };
  for (int32_t index : call.inputBuffers)
    call.inputs.push_back(index < 0 ? std::optional<TensorType>() : typeOf(index));
  for (int32_t index : call.outputBuffers) call.outputs.push_back(typeOf(index));
  return call;
}

}  // namespace

size_t toSize(const Napi::Value& value, const char* what) {
  if (value.IsNumber()) {
    const double number = value.As<Napi::Number>().DoubleValue();
    if (number >= 0 && number <= 9007199254740991.0 && number == std::floor(number)) return static_cast<size_t>(number);
  }
  throw Error("ERR_ARGUMENT",
              std::string(what) + " must be a whole number of at least 0, got " + value.ToString().Utf8Value());
}

ProgramDescription toProgram(const Napi::Value& value) {
  const Napi::Object object = toObject(value, "program");
  const Napi::Env env = value.Env();
  ProgramDescription program;
  const Napi::Array buffers = toArray(object.Get("buffers"), "buffers");
  for (uint32_t i = 0; i < buffers.Length(); ++i) {
    const Napi::HandleScope scope(env);
    program.buffers.push_back(toBuffer(buffers[i], "buffers[" + std::to_string(i) + "]"));
  }
  const Napi::Array calls = toArray(object.Get("calls"), "calls");
  for (uint32_t i = 0; i < calls.Length(); ++i) {
    const Napi::HandleScope scope(env);
    program.calls.push_back(toProgramCall(calls[i], program.buffers, "calls[" + std::to_string(i) + "]"));
  }
  program.inputs = toIndices(object.Get("inputs"), "inputs", false);
  program.outputs = toIndices(object.Get("outputs"), "outputs", false);
  program.arenaBytes = toWhole(object.Get("arenaBytes"), "arenaBytes");
  program.updateStart = toWhole(object.Get("updateStart"), "updateStart");
  return program;
}

CallDescription toCall(const Napi::Value& kernel, const Napi::Value& inputs, const Napi::Value& outputs,
                       const Napi::Value& attributes) {
  CallDescription call;
  call.kernel = toText(kernel, "kernel");
  const Napi::Array inputTypes = toArray(inputs, "inputs"), outputTypes = toArray(outputs, "outputs");
  for (uint32_t i = 0; i < inputTypes.Length(); ++i) {
    const Napi::Value type = inputTypes[i];
    call.inputs.push_back(type.IsNull() ? std::optional<TensorType>() : toType(toObject(type, "inputs"), "inputs"));
  }
  for (uint32_t i = 0; i < outputTypes.Length(); ++i)
    call.outputs.push_back(toType(toObject(outputTypes[i], "outputs"), "outputs"));
  call.attributes = toAttributes(attributes, "attributes");
  return call;
}

Napi::Array fromLibraries(Napi::Env env, const std::vector<LibraryVersion>& libraries) {
  Napi::Array array = Napi::Array::New(env, libraries.size());
  for (size_t i = 0; i < libraries.size(); ++i) {
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("name", libraries[i].name);
    if (libraries[i].version.empty())
      entry.Set("reason", libraries[i].reason);
    else
      entry.Set("version", libraries[i].version);
    array.Set(static_cast<uint32_t>(i), entry);
  }
  return array;
}

Napi::Object fromInfo(Napi::Env env, const ExecutorInfo& info) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("name", info.name);
  object.Set("available", info.available);
  if (!info.available) {
    object.Set("code", info.code);
    object.Set("reason", info.reason);
  }
  for (const auto& [key, property] : info.properties) {
    if (const double* number = std::get_if<double>(&property)) {
      object.Set(key, *number);
    } else if (const std::string* text = std::get_if<std::string>(&property)) {
      object.Set(key, *text);
    } else {
      const auto& list = std::get<std::vector<std::string>>(property);
      Napi::Array array = Napi::Array::New(env, list.size());
      for (size_t i = 0; i < list.size(); ++i) array.Set(static_cast<uint32_t>(i), list[i]);
      object.Set(key, array);
    }
  }
  return object;
}

}  // namespace sepconv::addon
