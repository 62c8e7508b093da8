#include "convert.h"
#include "errors.h"
#include "wrappers.h"

namespace sepconv::addon {

namespace {

struct Parts {
  std::shared_ptr<Device> device;
  std::shared_ptr<LoadedProgram> program;
};

std::vector<Binding> toBindings(const Napi::Value& memories, const Napi::Value& offsets, const Device& device) {
  if (!memories.IsArray() || !offsets.IsArray() ||
      memories.As<Napi::Array>().Length() != offsets.As<Napi::Array>().Length())
    throw Error("ERR_ARGUMENT", "a run takes four arrays: input memories and offsets, output memories and offsets");
  const Napi::Array memoryList = memories.As<Napi::Array>(), offsetList = offsets.As<Napi::Array>();
  std::vector<Binding> bindings(memoryList.Length());
  for (uint32_t i = 0; i < bindings.size(); ++i)
    bindings[i] = {MemoryWrapper::of(memoryList[i], device).allocation(), toSize(offsetList[i], "offset")};
  return bindings;
}

}  // namespace

Napi::Function ProgramWrapper::define(Napi::Env env) {
  return DefineClass(
      env, "NativeProgram",
      {InstanceMethod<&ProgramWrapper::bind>("bind"), InstanceMethod<&ProgramWrapper::run>("run"),
       InstanceMethod<&ProgramWrapper::runSync>("runSync"), InstanceMethod<&ProgramWrapper::profile>("profile"),
       InstanceMethod<&ProgramWrapper::elapsed>("elapsed"), InstanceMethod<&ProgramWrapper::abort>("abort"),
       InstanceMethod<&ProgramWrapper::dispose>("dispose")});
}

Napi::Value ProgramWrapper::create(Napi::Env env, std::shared_ptr<Device> device,
                                   std::shared_ptr<LoadedProgram> program) {
  Parts parts{std::move(device), std::move(program)};
  return env.GetInstanceData<Classes>()->program.New({Napi::External<Parts>::New(env, &parts)});
}

ProgramWrapper::ProgramWrapper(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ProgramWrapper>(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Napi::TypeError::New(info.Env(), "NativeProgram comes from executor.load()");
  Parts& parts = *info[0].As<Napi::External<Parts>>().Data();
  device_ = std::move(parts.device);
  program_ = std::move(parts.program);
}

LoadedProgram& ProgramWrapper::program() const {
  if (!program_) throw Error("ERR_DISPOSED", "the program has been disposed");
  return *program_;
}

std::shared_ptr<Run> ProgramWrapper::prepare(const Napi::CallbackInfo& info) const {
  return program().prepare(toBindings(info[0], info[1], *device_), toBindings(info[2], info[3], *device_));
}

// bind(buffer, memory, offset, consumed?)
void ProgramWrapper::bind(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    program().bind(toSize(info[0], "buffer"),
                   {MemoryWrapper::of(info[1], *device_).allocation(), toSize(info[2], "offset"),
                    info[3].IsBoolean() && info[3].As<Napi::Boolean>().Value()});
  });
}

// run(inputs, inputOffsets, outputs, outputOffsets, ticket?): a promise of true, or of false when abort(ticket) was
// obeyed.
Napi::Value ProgramWrapper::run(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::shared_ptr<Run> run = prepare(info);
    if (info[4].IsNumber()) {
      for (auto entry = tickets_.begin(); entry != tickets_.end();)
        entry = entry->second.expired() ? tickets_.erase(entry) : std::next(entry);
      tickets_[info[4].As<Napi::Number>().Uint32Value()] = run;
    }
    Device* device = device_.get();
    return device_->post(
        [device, run, program = program_] {
          device->track(run);
          return program->execute(*run);
        },
        info.Env().Undefined());
  });
}

void ProgramWrapper::runSync(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const std::shared_ptr<Run> run = prepare(info);
    device_->drain();
    program().execute(*run);
  });
}

Napi::Value ProgramWrapper::profile(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::shared_ptr<Run> run = prepare(info);
    device_->drain();
    const std::vector<double> nanoseconds = program().profile(*run);
    Napi::Float64Array array = Napi::Float64Array::New(info.Env(), nanoseconds.size());
    std::copy(nanoseconds.begin(), nanoseconds.end(), array.Data());
    return array;
  });
}

Napi::Value ProgramWrapper::elapsed(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::shared_ptr<Run> run = prepare(info);
    device_->drain();
    return Napi::Number::New(info.Env(), program().elapsed(*run));
  });
}

void ProgramWrapper::abort(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const auto found = tickets_.find(static_cast<uint32_t>(toSize(info[0], "ticket")));
    if (found == tickets_.end()) return;
    if (const std::shared_ptr<Run> run = found->second.lock()) run->aborted = true;
  });
}

void ProgramWrapper::dispose(const Napi::CallbackInfo&) { program_.reset(); }

}  // namespace sepconv::addon
