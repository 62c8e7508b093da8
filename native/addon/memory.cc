#include "errors.h"
#include "wrappers.h"

namespace sepconv::addon {

namespace {
constexpr napi_type_tag kTag = {0x5e9c0a1f6d2b4e01, 0x9f3d71c2a8b54c11};
struct Parts {
  std::shared_ptr<Device> device;
  std::shared_ptr<Allocation> allocation;
};
}  // namespace

Napi::Function MemoryWrapper::define(Napi::Env env) {
  return DefineClass(
      env, "NativeMemory",
      {InstanceAccessor<&MemoryWrapper::bytes>("bytes"), InstanceMethod<&MemoryWrapper::dispose>("dispose")});
}

Napi::Value MemoryWrapper::create(Napi::Env env, std::shared_ptr<Device> device,
                                  std::shared_ptr<Allocation> allocation) {
  Parts parts{std::move(device), std::move(allocation)};
  return env.GetInstanceData<Classes>()->memory.New({Napi::External<Parts>::New(env, &parts)});
}

MemoryWrapper::MemoryWrapper(const Napi::CallbackInfo& info) : Napi::ObjectWrap<MemoryWrapper>(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Napi::TypeError::New(info.Env(), "NativeMemory comes from executor.allocate()");
  Parts& parts = *info[0].As<Napi::External<Parts>>().Data();
  device_ = std::move(parts.device);
  allocation_ = std::move(parts.allocation);
  reported_ = static_cast<int64_t>(allocation_->bytes());
  Napi::MemoryManagement::AdjustExternalMemory(info.Env(), reported_);
  info.This().As<Napi::Object>().TypeTag(&kTag);
}

void MemoryWrapper::Finalize(Napi::BasicEnv env) {
  if (reported_) Napi::MemoryManagement::AdjustExternalMemory(env, -reported_);
}

MemoryWrapper& MemoryWrapper::of(const Napi::Value& value, const Device& device) {
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kTag))
    throw Error("ERR_ARGUMENT", "expected memory of this executor, got " + value.ToString().Utf8Value());
  MemoryWrapper& memory = *Unwrap(value.As<Napi::Object>());
  if (!memory.allocation_) throw Error("ERR_DISPOSED", "the memory has been disposed");
  if (memory.device_.get() != &device) throw Error("ERR_DEVICE", "the memory belongs to another executor");
  return memory;
}

Napi::Value MemoryWrapper::bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(allocation_ ? allocation_->bytes() : 0));
}

Napi::Value MemoryWrapper::buffer(Napi::Env env) {
  if (!view_.IsEmpty()) {
    const Napi::ArrayBuffer view = view_.Value();
    if (!view.IsEmpty()) return view;
  }
  holder_ = std::make_shared<Holder>(allocation_);
  const Napi::ArrayBuffer view = Napi::ArrayBuffer::New(
      env, allocation_->data(), allocation_->bytes(),
      [](Napi::BasicEnv, void*, std::shared_ptr<Holder>* holder) { delete holder; },
      new std::shared_ptr<Holder>(holder_));
  view_ = Napi::Reference<Napi::ArrayBuffer>::New(view, 0);
  return view;
}

void MemoryWrapper::dispose(const Napi::CallbackInfo& info) {
  if (!allocation_) return;
  if (!view_.IsEmpty()) {
    Napi::ArrayBuffer view = view_.Value();
    if (!view.IsEmpty()) view.Detach();
    view_.Reset();
  }
  if (holder_) holder_->reset();
  holder_.reset();
  allocation_.reset();
  Napi::MemoryManagement::AdjustExternalMemory(info.Env(), -reported_);
  reported_ = 0;
}

}  // namespace sepconv::addon
