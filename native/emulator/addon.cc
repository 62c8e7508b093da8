// The addon's surface with the emulated executors in place of the native ones: executors(), openExecutor(name); the
// classes are those of native/addon. Beyond that, describeKernel() shows the choice of tiles, explainNoDevice() the
// reasons. Built by scripts/build-emulator.mjs for tests, never by npm ci.
#include <napi.h>

#include "../addon/convert.h"
#include "../addon/errors.h"
#include "../addon/wrappers.h"
#include "../cuda/discovery.h"
#include "account.h"
#include "emulator.h"

namespace sepconv::addon {
namespace {

Napi::Value executors(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const std::vector<ExecutorInfo> all = emulator::executors();
    Napi::Array array = Napi::Array::New(info.Env(), all.size());
    for (size_t i = 0; i < all.size(); ++i) array.Set(static_cast<uint32_t>(i), fromInfo(info.Env(), all[i]));
    return array;
  });
}

Napi::Value openExecutor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    if (!info[0].IsString()) throw Error("ERR_ARGUMENT", "openExecutor takes a name");
    return ExecutorWrapper::create(info.Env(), emulator::open(info[0].As<Napi::String>().Utf8Value()));
  });
}

// explainNoDevice(error, errorText, driverVersion, runtimeVersion): what executors() of the real addon would say.
Napi::Value explainNoDevice(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto number = [&](size_t i) { return info[i].As<Napi::Number>().Int32Value(); };
    return fromInfo(info.Env(),
                    cuda::explainNoDevice(number(0), info[1].As<Napi::String>().Utf8Value(), number(2), number(3)));
  });
}

// explainDevice(error, errorText, device, capability): the same of one device.
Napi::Value explainDevice(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto text = [&](size_t i) { return info[i].As<Napi::String>().Utf8Value(); };
    ExecutorInfo found;
    cuda::explainDevice(found, info[0].As<Napi::Number>().Int32Value(), text(1), text(2), text(3));
    return fromInfo(info.Env(), found);
  });
}

// takeAccounts(): what 'emulator:counting' has counted since the last call, by name of the launch.
Napi::Value takeAccounts(const Napi::CallbackInfo& info) {
  Napi::Object all = Napi::Object::New(info.Env());
  for (const auto& [name, account] : emulator::takeAccounts()) {
    Napi::Object one = Napi::Object::New(info.Env());
    one.Set("threads", static_cast<double>(account.threads));
    one.Set("sharedBytes", static_cast<double>(account.sharedBytes));
    one.Set("launches", static_cast<double>(account.launches));
    one.Set("bytesRead", static_cast<double>(account.bytesRead));
    one.Set("bytesWritten", static_cast<double>(account.bytesWritten));
    one.Set("leastRead", static_cast<double>(account.sectorsRead * emulator::sectorBytes));
    one.Set("leastWritten", static_cast<double>(account.sectorsWritten * emulator::sectorBytes));
    one.Set("sharedPasses", static_cast<double>(account.sharedPasses));
    one.Set("sharedMinimum", static_cast<double>(account.sharedMinimum));
    Napi::Object conflicts = Napi::Object::New(info.Env());
    for (const auto& [place, passes] : account.conflicts) conflicts.Set(place, static_cast<double>(passes));
    one.Set("conflicts", conflicts);
    all.Set(name, one);
  }
  return all;
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
  exports.Set("openCommunicator", Napi::Function::New(env, CommunicatorWrapper::open, "openCommunicator"));
  exports.Set("openExecutor", Napi::Function::New(env, openExecutor, "openExecutor"));
  exports.Set("describeKernel", Napi::Function::New(env, describeKernel, "describeKernel"));
  exports.Set("takeAccounts", Napi::Function::New(env, takeAccounts, "takeAccounts"));
  exports.Set("explainDevice", Napi::Function::New(env, explainDevice, "explainDevice"));
  exports.Set("explainNoDevice", Napi::Function::New(env, explainNoDevice, "explainNoDevice"));
  return exports;
}

}  // namespace
}  // namespace sepconv::addon

static Napi::Object initialise(Napi::Env env, Napi::Object exports) { return sepconv::addon::initialise(env, exports); }
NODE_API_MODULE(sepconv_emulator, initialise)
