// The addon's exports: version, executors(), openExecutor(name, {threads, isa, oversubscribe}), openCommunicator(shim),
// mapFile(path), describeKernel(…) of describe.cc, and for benchmarks cudaLibraries(), peakGflops(isa, threads,
// bfloat16) and copyGbps(bytes, threads). No device is touched before executors() or openExecutor() is called.
#include <napi.h>

#include "../cpu/probe.h"
#include "convert.h"
#include "errors.h"
#include "wrappers.h"

namespace sepconv::addon {

namespace {

Napi::Value executors(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    std::vector<ExecutorInfo> all = {cpu::executorInfo()};
    for (ExecutorInfo& entry : cudaExecutors()) all.push_back(std::move(entry));
    Napi::Array array = Napi::Array::New(info.Env(), all.size());
    for (size_t i = 0; i < all.size(); ++i) array.Set(static_cast<uint32_t>(i), fromInfo(info.Env(), all[i]));
    return array;
  });
}

int toThreads(const Napi::Value& value) {
  const size_t threads = toSize(value, "threads");
  if (threads < 1 || threads > 1024)
    throw Error("ERR_ARGUMENT", "threads must be between 1 and 1024, got " + std::to_string(threads));
  return static_cast<int>(threads);
}

int cudaIndex(const std::string& name) {
  if (name == "cuda") return 0;
  if (name.size() < 6 || name.size() > 8 || name.compare(0, 5, "cuda:") ||
      name.find_first_not_of("0123456789", 5) != std::string::npos)
    return -1;
  return std::stoi(name.substr(5));
}

Napi::Value openExecutor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    if (!info[0].IsString()) throw Error("ERR_ARGUMENT", "openExecutor takes a name");
    const std::string name = info[0].As<Napi::String>().Utf8Value();
    ExecutorOptions options;
    if (info[1].IsObject()) {
      const Napi::Object object = info[1].As<Napi::Object>();
      const Napi::Value threads = object.Get("threads"), isa = object.Get("isa"),
                        oversubscribe = object.Get("oversubscribe");
      if (!threads.IsUndefined()) options.threads = toThreads(threads);
      if (isa.IsString()) options.isa = isa.As<Napi::String>().Utf8Value();
      options.oversubscribe = oversubscribe.IsBoolean() && oversubscribe.As<Napi::Boolean>().Value();
    }
    if (name == "cpu") return ExecutorWrapper::create(info.Env(), cpu::openExecutor(options));
    const int index = cudaIndex(name);
    if (index < 0)
      throw Error("ERR_DEVICE", "there is no native executor '" + name + "': expected cpu or cuda:<index>");
    return ExecutorWrapper::create(info.Env(), openCuda(index));
  });
}

// The limits of the processor and its memory, for benchmarks: some 30 ms each on the calling thread.
Napi::Value peakGflops(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    if (!info[0].IsString())
      throw Error("ERR_ARGUMENT", "peakGflops takes the name of an instruction set and a number of threads");
    const bool bfloat16 = info[2].IsBoolean() && info[2].As<Napi::Boolean>().Value();
    return Napi::Number::New(info.Env(),
                             cpu::peakGflops(info[0].As<Napi::String>().Utf8Value(), toThreads(info[1]), bfloat16));
  });
}

Napi::Value copyGbps(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return Napi::Number::New(info.Env(), cpu::copyGigabytesPerSecond(toSize(info[0], "bytes"), toThreads(info[1])));
  });
}

Napi::Value cudaLibrariesOf(const Napi::CallbackInfo& info) { return fromLibraries(info.Env(), cudaLibraries()); }

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  auto* classes = new Classes;
  classes->executor = Napi::Persistent(ExecutorWrapper::define(env));
  classes->memory = Napi::Persistent(MemoryWrapper::define(env));
  classes->program = Napi::Persistent(ProgramWrapper::define(env));
  classes->communicator = Napi::Persistent(CommunicatorWrapper::define(env));
  env.SetInstanceData(classes);
  exports.Set("version", SEPCONV_VERSION);
  exports.Set("executors", Napi::Function::New(env, executors, "executors"));
  exports.Set("cudaLibraries", Napi::Function::New(env, cudaLibrariesOf, "cudaLibraries"));
  exports.Set("openExecutor", Napi::Function::New(env, openExecutor, "openExecutor"));
  exports.Set("openCommunicator", Napi::Function::New(env, CommunicatorWrapper::open, "openCommunicator"));
  exports.Set("describeKernel", Napi::Function::New(env, describeKernel, "describeKernel"));
  exports.Set("mapFile", Napi::Function::New(env, mapFile, "mapFile"));
  exports.Set("peakGflops", Napi::Function::New(env, peakGflops, "peakGflops"));
  exports.Set("copyGbps", Napi::Function::New(env, copyGbps, "copyGbps"));
  return exports;
}

}  // namespace

}  // namespace sepconv::addon

static Napi::Object initialise(Napi::Env env, Napi::Object exports) { return sepconv::addon::initialise(env, exports); }
NODE_API_MODULE(sepconv, initialise)
