#include "convert.h"
#include "errors.h"
#include "wrappers.h"

namespace sepconv::addon {

namespace {

// A Uint8Array's bytes, which must lie inside `memory` from `offset` on.
struct Range {
  MemoryWrapper& memory;
  size_t offset;
  uint8_t* bytes;
  size_t length;
};

constexpr size_t kReadAtOnce = 64 << 10;

Range toRange(const Napi::CallbackInfo& info, const Device& device) {
  MemoryWrapper& memory = MemoryWrapper::of(info[0], device);
  const size_t offset = toSize(info[1], "offset");
  if (!info[2].IsTypedArray() || info[2].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    throw Error("ERR_ARGUMENT", "bytes must be a Uint8Array");
  Napi::Uint8Array bytes = info[2].As<Napi::Uint8Array>();
  const size_t total = memory.allocation()->bytes(), length = bytes.ByteLength();
  if (length > total || offset > total - length)
    throw Error("ERR_ARGUMENT", std::to_string(length) + " bytes at offset " + std::to_string(offset) +
                                    " lie outside a block of " + std::to_string(total));
  return {memory, offset, bytes.Data(), length};
}

}  // namespace

Napi::Function ExecutorWrapper::define(Napi::Env env) {
  return DefineClass(
      env, "NativeExecutor",
      {InstanceMethod<&ExecutorWrapper::info>("info"), InstanceMethod<&ExecutorWrapper::allocate>("allocate"),
       InstanceMethod<&ExecutorWrapper::buffer>("buffer"), InstanceMethod<&ExecutorWrapper::write>("write"),
       InstanceMethod<&ExecutorWrapper::read>("read"), InstanceMethod<&ExecutorWrapper::readAsync>("readAsync"),
       InstanceMethod<&ExecutorWrapper::workspaceBytes>("workspaceBytes"),
       InstanceMethod<&ExecutorWrapper::tiles>("tiles"), InstanceMethod<&ExecutorWrapper::load>("load"),
       InstanceMethod<&ExecutorWrapper::ranksId>("ranksId"), InstanceMethod<&ExecutorWrapper::joinRanks>("joinRanks"),
       InstanceMethod<&ExecutorWrapper::memory>("memory"), InstanceMethod<&ExecutorWrapper::setThreads>("setThreads")});
}

Napi::Value ExecutorWrapper::create(Napi::Env env, std::unique_ptr<Executor> executor) {
  return env.GetInstanceData<Classes>()->executor.New({Napi::External<std::unique_ptr<Executor>>::New(env, &executor)});
}

ExecutorWrapper::ExecutorWrapper(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ExecutorWrapper>(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Napi::TypeError::New(info.Env(), "NativeExecutor comes from openExecutor()");
  device_ = Device::open(info.Env(), std::move(*info[0].As<Napi::External<std::unique_ptr<Executor>>>().Data()));
}

Napi::Value ExecutorWrapper::info(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return fromInfo(info.Env(), device_->executor().info()); });
}

Napi::Value ExecutorWrapper::allocate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return MemoryWrapper::create(info.Env(), device_, device_->executor().allocate(toSize(info[0], "bytes")));
  });
}

Napi::Value ExecutorWrapper::buffer(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    if (!device_->executor().hostMemory())
      throw Error("ERR_DEVICE", "the memory of this executor is not visible to the host: use read and write");
    return MemoryWrapper::of(info[0], *device_).buffer(info.Env());
  });
}

// Copies at once when nothing is queued, or the memory is the host's and no queued run can see it; else a copy of the
// bytes waits in the queue, and the event loop does not. Device memory that no queued run can see is filled beside the
// queue: the next run's inputs while the current one runs.
void ExecutorWrapper::write(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const Range range = toRange(info, *device_);
    Executor& executor = device_->executor();
    const std::shared_ptr<Allocation>& allocation = range.memory.allocation();
    if (device_->idle() || (executor.hostMemory() && allocation.use_count() == 1)) {
      executor.copyIn(*allocation, range.offset, range.bytes, range.length);
      return;
    }
    std::shared_ptr<char> staged(new char[range.length], std::default_delete<char[]>());
    std::copy_n(reinterpret_cast<const char*>(range.bytes), range.length, staged.get());
    const bool unseen = !executor.hostMemory() && allocation.use_count() == 1;
    auto copy = [&executor, allocation = allocation, staged, offset = range.offset, length = range.length] {
      executor.copyIn(*allocation, offset, staged.get(), length);
      return true;
    };
    unseen ? device_->upload(std::move(copy)) : device_->post(std::move(copy));
  });
}

void ExecutorWrapper::read(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const Range range = toRange(info, *device_);
    device_->drain();
    device_->executor().copyOut(*range.memory.allocation(), range.offset, range.bytes, range.length);
  });
}

// A few bytes that no queued run can see are copied at once, and undefined is returned: the way through the queue and
// back costs some 20 microseconds, and a training step reads three scalars or so. Else a promise; the array must not be
// transferred to another thread before it is settled.
Napi::Value ExecutorWrapper::readAsync(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Range range = toRange(info, *device_);
    Executor& executor = device_->executor();
    if (range.length <= kReadAtOnce && device_->idle()) {
      device_->drain();  // throws what a write has failed with
      executor.copyOut(*range.memory.allocation(), range.offset, range.bytes, range.length);
      return info.Env().Undefined();
    }
    return device_->post(
        [&executor, allocation = range.memory.allocation(), bytes = range.bytes, offset = range.offset,
         length = range.length] {
          executor.copyOut(*allocation, offset, bytes, length);
          return true;
        },
        info[2]);
  });
}

Napi::Value ExecutorWrapper::workspaceBytes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const size_t bytes = device_->executor().workspaceBytes(toCall(info[0], info[1], info[2], info[3]));
    return Napi::Number::New(info.Env(), static_cast<double>(bytes));
  });
}

Napi::Value ExecutorWrapper::tiles(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const std::vector<std::string> tiles = device_->executor().tiles(toCall(info[0], info[1], info[2], info[3]));
    Napi::Array array = Napi::Array::New(info.Env(), tiles.size());
    for (size_t i = 0; i < tiles.size(); ++i) array.Set(static_cast<uint32_t>(i), tiles[i]);
    return array;
  });
}

Napi::Value ExecutorWrapper::load(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return ProgramWrapper::create(info.Env(), device_, device_->executor().load(toProgram(info[0])));
  });
}

// What joinRanks takes; of a device that needs none an empty array.
Napi::Value ExecutorWrapper::ranksId(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::vector<uint8_t> id = device_->executor().ranksId();
    Napi::Uint8Array array = Napi::Uint8Array::New(info.Env(), id.size());
    std::copy(id.begin(), id.end(), array.Data());
    return array;
  });
}

// joinRanks(id, size, rank): a promise, since it waits for all of them.
Napi::Value ExecutorWrapper::joinRanks(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
      throw Error("ERR_ARGUMENT", "id must be a Uint8Array");
    const auto bytes = info[0].As<Napi::Uint8Array>();
    const std::vector<uint8_t> id(bytes.Data(), bytes.Data() + bytes.ByteLength());
    const int size = static_cast<int>(toSize(info[1], "size")), rank = static_cast<int>(toSize(info[2], "rank"));
    Executor& executor = device_->executor();
    return device_->post(
        [&executor, id, size, rank] {
          executor.joinRanks(id, size, rank);
          return true;
        },
        info.Env().Undefined());
  });
}

Napi::Value ExecutorWrapper::memory(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const MemoryReport report = device_->executor().memory();
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("allocated", static_cast<double>(report.allocated));
    object.Set("peak", static_cast<double>(report.peak));
    object.Set("arena", static_cast<double>(report.arena));
    return object;
  });
}

void ExecutorWrapper::setThreads(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const size_t threads = toSize(info[0], "threads");
    if (threads < 1 || threads > 1024)
      throw Error("ERR_ARGUMENT", "threads must be between 1 and 1024, got " + std::to_string(threads));
    device_->drain();
    device_->executor().setThreads(static_cast<int>(threads));
  });
}

}  // namespace sepconv::addon
