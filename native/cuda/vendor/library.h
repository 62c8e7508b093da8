// NVIDIA's own libraries, by dlopen and with prototypes of our own, so that neither build nor package knows of them:
// cuDNN and cuBLASLt as a measure for our kernels, looked for when a benchmark asks for them; NCCL between the ranks of
// a job. Folders of SEPCONV_CUDA_LIBRARIES (colon-separated) come before the loader's own.
#pragma once
#include <string>
#include <vector>

namespace sepconv::cuda {

// An open library; stays open as long as the process.
class Library {
 public:
  // `names`: by preference. Throws ERR_DEVICE with what the loader said where none can be opened.
  Library(const char* product, const std::vector<std::string>& names);
  // Throws ERR_DEVICE where the library lacks it: it is of another version than the prototypes.
  void* symbol(const char* name) const;
  template <class Function>
  void bind(Function*& function, const char* name) const {
    function = reinterpret_cast<Function*>(symbol(name));
  }

 private:
  std::string product_, file_;
  void* handle_ = nullptr;
};

}  // namespace sepconv::cuda
