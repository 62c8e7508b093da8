// Errors between C++ and JavaScript: the code of a sepconv::Error becomes the property `code` of the JavaScript error.
#pragma once
#include <napi.h>

#include <new>

#include "../kernels/kernel.h"

namespace sepconv::addon {

// The exception that is being handled, as an Error with a code.
inline Error currentError() {
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error("ERR_MEMORY", "out of memory");
  } catch (const std::exception& error) {
    return Error("ERR_INTERNAL", error.what());
  } catch (...) {
    return Error("ERR_INTERNAL", "unknown native exception");
  }
}

inline Napi::Error errorObject(Napi::Env env, const Error& error) {
  Napi::Error object = Napi::Error::New(env, error.what());
  object.Set("code", Napi::String::New(env, error.code));
  return object;
}

// Runs `body`; what it throws arrives in JavaScript with a code.
template <class Body>
auto guarded(Napi::Env env, const Body& body) -> decltype(body()) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw errorObject(env, currentError());
  }
}

}  // namespace sepconv::addon
