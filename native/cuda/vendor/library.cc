#include "library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <sstream>

#include "../../kernels/executor.h"
#include "cublaslt.h"
#include "cudnn.h"
#include "nccl.h"

namespace sepconv {
namespace cuda {

Library::Library(const char* product, const std::vector<std::string>& names) : product_(product) {
  std::vector<std::string> files;
  if (const char* folders = std::getenv("SEPCONV_CUDA_LIBRARIES")) {
    std::istringstream list(folders);
    for (std::string folder; std::getline(list, folder, ':');)
      if (!folder.empty())
        for (const std::string& name : names) files.push_back(folder + "/" + name);
  }
  files.insert(files.end(), names.begin(), names.end());
  std::string reasons;
  for (const std::string& file : files) {
    // Global, so that the libraries find each other by the names that they were linked against.
    handle_ = dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (handle_) {
      file_ = file;
      return;
    }
    const char* reason = dlerror();
    reasons += (reasons.empty() ? "" : "; ") + std::string(reason ? reason : file);
  }
  throw Error("ERR_DEVICE", product_ + " was not found: " + reasons);
}

void* Library::symbol(const char* name) const {
  if (void* found = dlsym(handle_, name)) return found;
  throw Error("ERR_DEVICE", product_ + " in " + file_ + " has no " + name + ": it is of an unknown version");
}

namespace {

template <class Version>
LibraryVersion ask(const char* name, const Version& version) {
  try {
    return {name, version(), ""};
  } catch (const Error& error) {
    return {name, "", error.what()};
  }
}

std::string dotted(size_t version, size_t major) {
  return std::to_string(version / major) + "." + std::to_string(version % major / 100) + "." +
         std::to_string(version % 100);
}

}  // namespace
}  // namespace cuda

std::vector<LibraryVersion> cudaLibraries() {
  // cuDNN is linked against cuBLASLt: this order.
  return {cuda::ask("cublasLt", [] { return cuda::dotted(cuda::cublasLt().cublasLtGetVersion(), 10000); }),
          cuda::ask("nccl", cuda::ncclVersion),
          cuda::ask("cudnn", [] { return cuda::dotted(cuda::cudnn().cudnnGetVersion(), 10000); })};
}

}  // namespace sepconv
