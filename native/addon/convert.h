// Plain JavaScript data to the descriptions of native/kernels: programs, calls, types, attributes. Anything malformed
// throws ERR_FORMAT with the path of the value.
#pragma once
#include <napi.h>

#include "../kernels/executor.h"

namespace sepconv::addon {

size_t toSize(const Napi::Value& value, const char* what);
ProgramDescription toProgram(const Napi::Value& value);
// The arguments of workspaceBytes(kernel, inputTypes, outputTypes, attributes).
CallDescription toCall(const Napi::Value& kernel, const Napi::Value& inputs, const Napi::Value& outputs,
                       const Napi::Value& attributes);
Napi::Object fromInfo(Napi::Env env, const ExecutorInfo& info);
Napi::Array fromLibraries(Napi::Env env, const std::vector<LibraryVersion>& libraries);

}  // namespace sepconv::addon
