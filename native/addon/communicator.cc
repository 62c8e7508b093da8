// The ranks of an MPI job for JavaScript: promises that the progress thread settles, and messages of other ranks.
#include "convert.h"
#include "errors.h"
#include "wrappers.h"

namespace sepconv::addon {

namespace {

distributed::Bytes toBytes(const Napi::Value& value) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    throw Error("ERR_ARGUMENT", "expected a Uint8Array");
  const Napi::Uint8Array array = value.As<Napi::Uint8Array>();
  return distributed::Bytes(array.Data(), array.Data() + array.ByteLength());
}

Napi::Value fromBytes(Napi::Env env, const distributed::Bytes& bytes) {
  Napi::Uint8Array array = Napi::Uint8Array::New(env, bytes.size());
  std::copy(bytes.begin(), bytes.end(), array.Data());
  return array;
}

// MPI can be started once in the life of a process.
bool opened = false;

}  // namespace

// What the progress thread hands to the event loop.
struct CommunicatorWrapper::Settled {
  CommunicatorWrapper* wrapper;
  std::optional<Napi::Promise::Deferred> deferred;
  std::optional<Error> error;
  distributed::Bytes bytes;
  int from = 0, tag = 0;  // of a message
};

Napi::Function CommunicatorWrapper::define(Napi::Env env) {
  return DefineClass(
      env, "NativeCommunicator",
      {InstanceMethod<&CommunicatorWrapper::allGather>("allGather"),
       InstanceMethod<&CommunicatorWrapper::gather>("gather"),
       InstanceMethod<&CommunicatorWrapper::broadcast>("broadcast"), InstanceMethod<&CommunicatorWrapper::send>("send"),
       InstanceMethod<&CommunicatorWrapper::receive>("receive"), InstanceMethod<&CommunicatorWrapper::fail>("fail"),
       InstanceMethod<&CommunicatorWrapper::close>("close"),
       InstanceMethod<&CommunicatorWrapper::statistics>("statistics")});
}

Napi::Value CommunicatorWrapper::open(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    if (!info[0].IsString()) throw Error("ERR_ARGUMENT", "openCommunicator takes the path of the shim");
    return info.Env().GetInstanceData<Classes>()->communicator.New({info[0]});
  });
}

CommunicatorWrapper::CommunicatorWrapper(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<CommunicatorWrapper>(info), env_(info.Env()) {
  guarded(env_, [&] {
    if (opened) throw Error("ERR_MPI", "MPI has been started in this process before");
    communicator_ = std::make_unique<distributed::Communicator>(info[0].As<Napi::String>().Utf8Value());
    opened = true;
  });
  completion_ = Napi::ThreadSafeFunction::New(env_, Napi::Function::New(env_, [](const Napi::CallbackInfo&) {}),
                                              "sepconv-mpi", 0, 1);
  completion_.Unref(env_);
  napi_add_env_cleanup_hook(env_, cleanUp, this);
  communicator_->setReceiver([this](distributed::Message message) {
    auto settled = std::make_unique<Settled>();
    settled->wrapper = this;
    settled->from = message.from;
    settled->tag = message.tag - distributed::Communicator::kFirstTag;
    settled->bytes = std::move(message.bytes);
    const auto deliver = [](Napi::Env env, Napi::Function, Settled* raw) {
      const std::unique_ptr<Settled> owned(raw);
      if (!env || owned->wrapper->receiver_.IsEmpty()) return;
      owned->wrapper->receiver_.Call(
          {Napi::Number::New(env, owned->from), Napi::Number::New(env, owned->tag), fromBytes(env, owned->bytes)});
    };
    if (completion_.NonBlockingCall(settled.get(), deliver) == napi_ok) settled.release();
  });
  setCollectives(communicator_.get());
  const Napi::Object self = info.This().As<Napi::Object>();
  self.Set("rank", communicator_->rank());
  self.Set("size", communicator_->size());
  self.Set("localRank", communicator_->localRank());
  self.Set("localSize", communicator_->localSize());
  self.Set("library", communicator_->library());
  Ref();  // as long as the environment: the progress thread refers to it
}

CommunicatorWrapper::~CommunicatorWrapper() { stop(); }

void CommunicatorWrapper::cleanUp(void* wrapper) { static_cast<CommunicatorWrapper*>(wrapper)->stop(); }

void CommunicatorWrapper::stop() {
  if (stopped_ || !communicator_) return;
  stopped_ = true;
  setCollectives(nullptr);
  communicator_.reset();
  completion_.Release();
}

distributed::Communicator& CommunicatorWrapper::communicator() const {
  if (stopped_) throw Error("ERR_DISPOSED", "the communicator is closed");
  return *communicator_;
}

template <class Start>
Napi::Value CommunicatorWrapper::post(const Napi::CallbackInfo& info, const Start& start) {
  return guarded(env_, [&]() -> Napi::Value {
    distributed::Communicator& ranks = communicator();
    distributed::Bytes bytes = toBytes(info[info.Length() - 1]);
    auto settled = std::make_shared<Settled>();
    settled->wrapper = this;
    settled->deferred.emplace(Napi::Promise::Deferred::New(env_));
    const Napi::Promise promise = settled->deferred->Promise();
    if (++promises_ == 1 && !listening_) completion_.Ref(env_);
    start(ranks, std::move(bytes),
          [this, settled](const std::optional<Error>& error, distributed::Bytes result) mutable {
            auto owned = std::make_unique<Settled>(std::move(*settled));
            owned->error = error;
            owned->bytes = std::move(result);
            const auto settle = [](Napi::Env env, Napi::Function, Settled* raw) {
              const std::unique_ptr<Settled> done(raw);
              if (!env) return;
              if (done->error)
                done->deferred->Reject(errorObject(env, *done->error).Value());
              else
                done->deferred->Resolve(fromBytes(env, done->bytes));
              if (--done->wrapper->promises_ == 0 && !done->wrapper->listening_) done->wrapper->completion_.Unref(env);
            };
            if (completion_.NonBlockingCall(owned.get(), settle) == napi_ok) owned.release();
          });
    return promise;
  });
}

// allGather(bytes): the bytes of every rank, in their order; each gives as many.
Napi::Value CommunicatorWrapper::allGather(const Napi::CallbackInfo& info) {
  return post(info, [](distributed::Communicator& ranks, distributed::Bytes bytes, auto completed) {
    ranks.allGather(std::move(bytes), std::move(completed));
  });
}

Napi::Value CommunicatorWrapper::gather(const Napi::CallbackInfo& info) {
  return post(info, [](distributed::Communicator& ranks, distributed::Bytes bytes, auto completed) {
    ranks.gather(std::move(bytes), std::move(completed));
  });
}

// broadcast(bytes): those of rank 0; each rank gives as many.
Napi::Value CommunicatorWrapper::broadcast(const Napi::CallbackInfo& info) {
  return post(info, [](distributed::Communicator& ranks, distributed::Bytes bytes, auto completed) {
    ranks.broadcast(std::move(bytes), std::move(completed));
  });
}

// send(to, tag, bytes)
Napi::Value CommunicatorWrapper::send(const Napi::CallbackInfo& info) {
  return post(info, [&](distributed::Communicator& ranks, distributed::Bytes bytes, auto completed) {
    const size_t to = toSize(info[0], "to"), tag = toSize(info[1], "tag");
    if (to >= static_cast<size_t>(ranks.size())) throw Error("ERR_ARGUMENT", "there is no rank " + std::to_string(to));
    ranks.send(static_cast<int>(to), distributed::Communicator::kFirstTag + static_cast<int>(tag), std::move(bytes),
               std::move(completed));
  });
}

// receive(callback?): called with (from, tag, bytes) for every message; while there is one, the process stays alive.
void CommunicatorWrapper::receive(const Napi::CallbackInfo& info) {
  guarded(env_, [&] {
    communicator();
    const bool listens = info[0].IsFunction();
    if (listens)
      receiver_ = Napi::Persistent(info[0].As<Napi::Function>());
    else
      receiver_.Reset();
    if (listens != listening_ && promises_ == 0) listens ? completion_.Ref(env_) : completion_.Unref(env_);
    listening_ = listens;
  });
}

// fail(reason)
void CommunicatorWrapper::fail(const Napi::CallbackInfo& info) {
  guarded(env_, [&] { communicator().fail(info[0].ToString().Utf8Value()); });
}

// close(status): waits for the other ranks; after a failure the process ends here.
void CommunicatorWrapper::close(const Napi::CallbackInfo& info) {
  guarded(env_, [&] {
    communicator().close(static_cast<int>(toSize(info[0], "status")));
    napi_remove_env_cleanup_hook(env_, cleanUp, this);
    stop();
  });
}

Napi::Value CommunicatorWrapper::statistics(const Napi::CallbackInfo& info) {
  return guarded(env_, [&] {
    const distributed::Statistics taken = communicator().takeStatistics();
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("reductions", static_cast<double>(taken.reductions));
    object.Set("bytes", static_cast<double>(taken.bytes));
    object.Set("busySeconds", taken.busySeconds);
    object.Set("waitSeconds", taken.waitSeconds);
    return object;
  });
}

}  // namespace sepconv::addon
