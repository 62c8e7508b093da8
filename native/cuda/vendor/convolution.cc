// cudnnConv2d, cudnnConv2dInputGradient, cudnnConv2dFilterGradient: convolutions by cuDNN as calls of a program, so
// that they are checked and timed like ours. Tensors are NHWC, filters [cout, kh, kw, cin / groups] as cuDNN wants
// them. Attributes: strides, padding (equal on both sides), dilations, groups, algorithm (its number), precision. A
// shape or algorithm that cuDNN does not take is refused when the program is loaded.
#include <map>
#include <mutex>

#include "../kernel.h"
#include "../problem.h"
#include "cublaslt.h"
#include "cudnn.h"
#include "vendor.h"

namespace sepconv::cuda {

const Cudnn& cudnn() {
  static const Cudnn api = [] {
    try {
      cublasLt();  // cuDNN needs it, and finds it by its name once it is open
    } catch (const Error&) {
      // cuDNN's own message says what is missing
    }
    const Library library("cuDNN", {"libcudnn.so.9", "libcudnn.so"});
    Cudnn bound;
#define SEPCONV_BIND(RESULT, NAME, PARAMETERS) library.bind(bound.NAME, #NAME);
    SEPCONV_CUDNN(SEPCONV_BIND)
    return bound;
  }();
  return api;
}

void Cudnn::check(int status, const char* call) const {
  if (status) throw Error("ERR_DEVICE", std::string(call) + ": " + cudnnGetErrorString(status));
}

Cudnn::Handle Cudnn::handle(void* stream) const {
  static std::mutex mutex;
  static std::map<void*, Handle> handles;
  std::lock_guard<std::mutex> lock(mutex);
  Handle& handle = handles[stream];
  if (!handle) {
    check(cudnnCreate(&handle), "cudnnCreate");
    check(cudnnSetStream(handle, stream), "cudnnSetStream");
  }
  return handle;
}

namespace {

// A descriptor and what destroys it.
template <class Descriptor>
class Owned {
 public:
  Owned(const Cudnn& api, int (*create)(Descriptor*), int (*destroy)(Descriptor)) : destroy_(destroy) {
    api.check(create(&descriptor_), "cudnnCreate...Descriptor");
  }
  ~Owned() { destroy_(descriptor_); }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  operator Descriptor() const { return descriptor_; }

 private:
  Descriptor descriptor_ = nullptr;
  int (*const destroy_)(Descriptor);
};

enum class Direction { forward, data, filter };

class CudnnConvolution final : public Kernel {
 public:
  CudnnConvolution(const CallDescription& call, const DeviceProperties& device, Direction direction)
      : direction_(direction),
        api_(cudnn()),
        handle_(api_.handle(device.stream)),
        x_(api_, api_.cudnnCreateTensorDescriptor, api_.cudnnDestroyTensorDescriptor),
        y_(api_, api_.cudnnCreateTensorDescriptor, api_.cudnnDestroyTensorDescriptor),
        filter_(api_, api_.cudnnCreateFilterDescriptor, api_.cudnnDestroyFilterDescriptor),
        convolution_(api_, api_.cudnnCreateConvolutionDescriptor, api_.cudnnDestroyConvolutionDescriptor),
        algorithm_(static_cast<int>(call.attributes.integer("algorithm"))) {
    // x, filter -> y; dy, filter -> dx; x, dy -> dfilter
    const TensorType& first = requireFloating(call, 0, "the first input", 4);
    const TensorType& second = requireFloating(call, 1, "the second input", 4);
    if (call.outputs[0].rank() != 4) refuse(call, "the output must have rank 4");
    const TensorType& out = call.outputs[0];
    set(x_, direction == Direction::data ? out : first);
    set(y_, direction == Direction::forward ? out : direction == Direction::data ? first : second);
    const TensorType& filter = direction == Direction::filter ? out : second;
    api_.check(api_.cudnnSetFilter4dDescriptor(filter_, typeOf(filter), Cudnn::formatNhwc, dim(filter, 0),
                                               dim(filter, 3), dim(filter, 1), dim(filter, 2)),
               "cudnnSetFilter4dDescriptor");
    const auto strides = requireIntegers(call, "strides", 2, 1), padding = requireIntegers(call, "padding", 4, 0),
               dilations = requireIntegers(call, "dilations", 2, 1);
    if (padding[0] != padding[1] || padding[2] != padding[3]) refuse(call, "cuDNN pads both sides equally");
    api_.check(
        api_.cudnnSetConvolution2dDescriptor(convolution_, padding[0], padding[2], strides[0], strides[1], dilations[0],
                                             dilations[1], Cudnn::crossCorrelation, Cudnn::typeFloat),
        "cudnnSetConvolution2dDescriptor");
    api_.check(api_.cudnnSetConvolutionGroupCount(convolution_, static_cast<int>(call.attributes.integer("groups", 1))),
               "cudnnSetConvolutionGroupCount");
    const int math = first.dtype == DType::bfloat16                           ? Cudnn::mathTensorCores
                     : call.attributes.text("precision", "float32") == "tf32" ? Cudnn::mathDefault
                                                                              : Cudnn::mathFma;
    api_.check(api_.cudnnSetConvolutionMathType(convolution_, math), "cudnnSetConvolutionMathType");
    switch (direction) {
      case Direction::forward:
        api_.check(api_.cudnnGetConvolutionForwardWorkspaceSize(handle_, x_, filter_, convolution_, y_, algorithm_,
                                                                &workspace_),
                   "cudnnGetConvolutionForwardWorkspaceSize");
        break;
      case Direction::data:
        api_.check(api_.cudnnGetConvolutionBackwardDataWorkspaceSize(handle_, filter_, y_, convolution_, x_, algorithm_,
                                                                     &workspace_),
                   "cudnnGetConvolutionBackwardDataWorkspaceSize");
        break;
      case Direction::filter:
        api_.check(api_.cudnnGetConvolutionBackwardFilterWorkspaceSize(handle_, x_, y_, convolution_, filter_,
                                                                       algorithm_, &workspace_),
                   "cudnnGetConvolutionBackwardFilterWorkspaceSize");
    }
  }

  size_t workspaceBytes() const override { return workspace_; }
  std::string describe() const override { return "algorithm " + std::to_string(algorithm_); }

  void launch(DeviceInterface&, const Arguments& arguments) const override {
    const float one = 1.f, zero = 0.f;
    const void *first = arguments.inputs[0], *second = arguments.inputs[1];
    void* out = arguments.outputs[0];
    switch (direction_) {
      case Direction::forward:
        return api_.check(api_.cudnnConvolutionForward(handle_, &one, x_, first, filter_, second, convolution_,
                                                       algorithm_, arguments.workspace, workspace_, &zero, y_, out),
                          "cudnnConvolutionForward");
      case Direction::data:
        return api_.check(
            api_.cudnnConvolutionBackwardData(handle_, &one, filter_, second, y_, first, convolution_, algorithm_,
                                              arguments.workspace, workspace_, &zero, x_, out),
            "cudnnConvolutionBackwardData");
      case Direction::filter:
        return api_.check(
            api_.cudnnConvolutionBackwardFilter(handle_, &one, x_, first, y_, second, convolution_, algorithm_,
                                                arguments.workspace, workspace_, &zero, filter_, out),
            "cudnnConvolutionBackwardFilter");
    }
  }

 private:
  static int dim(const TensorType& type, size_t axis) { return static_cast<int>(type.dim(axis)); }
  static int typeOf(const TensorType& type) {
    return type.dtype == DType::bfloat16 ? Cudnn::typeBfloat16 : Cudnn::typeFloat;
  }
  void set(Cudnn::Tensor descriptor, const TensorType& type) const {
    api_.check(api_.cudnnSetTensor4dDescriptor(descriptor, Cudnn::formatNhwc, typeOf(type), dim(type, 0), dim(type, 3),
                                               dim(type, 1), dim(type, 2)),
               "cudnnSetTensor4dDescriptor");
  }

  const Direction direction_;
  const Cudnn& api_;
  const Cudnn::Handle handle_;
  const Owned<Cudnn::Tensor> x_, y_;
  const Owned<Cudnn::Filter> filter_;
  const Owned<Cudnn::Convolution> convolution_;
  const int algorithm_;
  size_t workspace_ = 0;
};

template <Direction DIRECTION>
std::unique_ptr<Kernel> make(const CallDescription& call, const DeviceProperties& device) {
  return std::make_unique<CudnnConvolution>(call, device, DIRECTION);
}

}  // namespace

void registerCudnn(Registry& registry) {
  registry["cudnnConv2d"] = make<Direction::forward>;
  registry["cudnnConv2dInputGradient"] = make<Direction::data>;
  registry["cudnnConv2dFilterGradient"] = make<Direction::filter>;
}

}  // namespace sepconv::cuda
