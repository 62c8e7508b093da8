// mapFile(path): a file's bytes as an ArrayBuffer over a private mapping, so that pages come when they are touched, are
// shared between processes and cost no memory of their own. Writing to the buffer changes the copy of this process
// alone. The file must not be cut shorter while it is mapped; sepconv replaces its files by renaming, which leaves the
// old content mapped.
#include "errors.h"
#include "wrappers.h"

#ifndef _WIN32
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#endif

namespace sepconv::addon {

Napi::Value mapFile(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    if (!info[0].IsString()) throw Error("ERR_ARGUMENT", "mapFile takes a path");
#ifdef _WIN32
    throw Error("ERR_NATIVE", "files cannot be mapped on this system");
#else
    const std::string path = info[0].As<Napi::String>().Utf8Value();
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0) {
      const std::string reason = std::strerror(errno);
      if (file >= 0) close(file);
      throw Error("ERR_FILE", "cannot map " + path + ": " + reason);
    }
    const size_t bytes = static_cast<size_t>(status.st_size);
    if (bytes == 0) {
      close(file);
      return Napi::ArrayBuffer::New(info.Env(), 0);
    }
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
    const int error = errno;
    close(file);
    if (memory == MAP_FAILED) throw Error("ERR_FILE", "cannot map " + path + ": " + std::strerror(error));
    return Napi::ArrayBuffer::New(info.Env(), memory, bytes,
                                  [bytes](Napi::BasicEnv, void* mapped) { munmap(mapped, bytes); });
#endif
  });
}

}  // namespace sepconv::addon
