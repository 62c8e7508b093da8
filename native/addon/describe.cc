// describeKernel(kernel, inputTypes, outputTypes, attributes, multiprocessors, major): what the CUDA executor would
// choose on a GPU of that size and compute capability (default 8), and the tiles that it would choose among.
#include "convert.h"
#include "errors.h"
#include "wrappers.h"

namespace sepconv::addon {

Napi::Value describeKernel(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const CallDescription call = toCall(info[0], info[1], info[2], info[3]);
    const int major = info[5].IsUndefined() ? 8 : static_cast<int>(toSize(info[5], "major"));
    const KernelChoice choice = describeCudaKernel(call, static_cast<int>(toSize(info[4], "multiprocessors")), major);
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("description", choice.description);
    Napi::Array tiles = Napi::Array::New(info.Env(), choice.tiles.size());
    for (size_t i = 0; i < choice.tiles.size(); ++i) tiles.Set(static_cast<uint32_t>(i), choice.tiles[i]);
    object.Set("tiles", tiles);
    object.Set("workspaceBytes", static_cast<double>(choice.workspaceBytes));
    return object;
  });
}

}  // namespace sepconv::addon
