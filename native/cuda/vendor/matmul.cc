// cublasLtMatmul: y[rows, n] = x[rows, k] . w[k, n]; cublasLtMatmulInputGradient: dx = dy . w^T;
// cublasLtMatmulFilterGradient: dw = x^T . dy, by cuBLASLt as calls of a program. Leading axes are rows. Attributes:
// precision, algorithm: which of the heuristic's proposals, refused where there are fewer.
#include <map>
#include <mutex>

#include "../kernel.h"
#include "../problem.h"
#include "cublaslt.h"
#include "vendor.h"

namespace sepconv::cuda {

const CublasLt& cublasLt() {
  static const CublasLt api = [] {
    const Library library("cuBLASLt", {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"});
    CublasLt bound;
#define SEPCONV_BIND(RESULT, NAME, PARAMETERS) library.bind(bound.NAME, #NAME);
    SEPCONV_CUBLASLT(SEPCONV_BIND)
    return bound;
  }();
  return api;
}

void CublasLt::check(int status, const char* call) const {
  if (status) throw Error("ERR_DEVICE", std::string(call) + ": status " + std::to_string(status));
}

CublasLt::Handle CublasLt::handle(void* stream) const {
  static std::mutex mutex;
  static std::map<void*, Handle> handles;
  std::lock_guard<std::mutex> lock(mutex);
  Handle& handle = handles[stream];
  if (!handle) check(cublasLtCreate(&handle), "cublasLtCreate");
  return handle;
}

namespace {

constexpr size_t workspaceLimit = size_t{32} << 20;  // NVIDIA's advice for sm_90
constexpr int proposals = 8;

// cuBLASLt's matrices are column-major: a row-major [rows, columns] is its [columns, rows]. So the product of two
// row-major matrices is that of their transposes in the other order, D^T = B^T . A^T.
class Matmul final : public Kernel {
 public:
  Matmul(const CallDescription& call, const DeviceProperties& device, bool inputGradient, bool filterGradient)
      : api_(cublasLt()), handle_(api_.handle(device.stream)), stream_(device.stream) {
    const TensorType& first = requireFloating(call, 0, "the first input", 0);
    const TensorType& second = requireFloating(call, 1, "the second input", 0);
    const TensorType& out = call.outputs[0];
    if (first.rank() < 2 || second.rank() < 2 || out.rank() < 2) refuse(call, "matrices have rank 2 or more");
    const bool tf32 = call.attributes.text("precision", "float32") == "tf32";
    api_.check(api_.cublasLtMatmulDescCreate(&operation_, tf32 ? CublasLt::computeTf32 : CublasLt::computeFloat,
                                             CublasLt::typeFloat),
               "cublasLtMatmulDescCreate");
    // y^T = w^T . x^T; dx^T = w . dy^T; dw^T = dy^T . x
    const int transposeA = inputGradient ? CublasLt::transpose : 0,
              transposeB = filterGradient ? CublasLt::transpose : 0;
    set(CublasLt::attributeTransA, transposeA);
    set(CublasLt::attributeTransB, transposeB);
    a_ = layout(second);
    b_ = layout(first);
    d_ = layout(out);
    const int64_t depthA = transposeA ? second.shape.back() : second.rows(),
                  depthB = transposeB ? first.rows() : first.shape.back();
    const int64_t columns = transposeA ? second.rows() : second.shape.back(),
                  rows = transposeB ? first.shape.back() : first.rows();
    if (depthA != depthB || out.shape.back() != columns || out.rows() != rows)
      refuse(call, "the shapes are not those of a product");
    CublasLt::Preference preference = nullptr;
    api_.check(api_.cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    CublasLt::Heuristic found[proposals];
    int count = 0;
    int status = api_.cublasLtMatmulPreferenceSetAttribute(preference, CublasLt::preferenceWorkspace, &workspaceLimit,
                                                           sizeof workspaceLimit);
    if (!status)
      status = api_.cublasLtMatmulAlgoGetHeuristic(handle_, operation_, a_, b_, d_, d_, preference, proposals, found,
                                                   &count);
    api_.cublasLtMatmulPreferenceDestroy(preference);
    api_.check(status, "cublasLtMatmulAlgoGetHeuristic");
    const int64_t wanted = call.attributes.integer("algorithm");
    if (wanted < 0 || wanted >= count || found[wanted].state)
      throw Error("ERR_DEVICE", subject(call) + ": cuBLASLt proposes " + std::to_string(count) + " algorithms");
    chosen_ = found[wanted];
    index_ = static_cast<int>(wanted);
  }
  ~Matmul() override {
    if (a_) api_.cublasLtMatrixLayoutDestroy(a_);
    if (b_) api_.cublasLtMatrixLayoutDestroy(b_);
    if (d_) api_.cublasLtMatrixLayoutDestroy(d_);
    if (operation_) api_.cublasLtMatmulDescDestroy(operation_);
  }

  size_t workspaceBytes() const override { return chosen_.workspaceBytes; }
  std::string describe() const override { return "proposal " + std::to_string(index_); }

  void launch(DeviceInterface&, const Arguments& arguments) const override {
    const float one = 1.f, zero = 0.f;
    api_.check(api_.cublasLtMatmul(handle_, operation_, &one, arguments.inputs[1], a_, arguments.inputs[0], b_, &zero,
                                   arguments.outputs[0], d_, arguments.outputs[0], d_, &chosen_.algorithm,
                                   arguments.workspace, chosen_.workspaceBytes, stream_),
               "cublasLtMatmul");
  }

 private:
  CublasLt::Layout layout(const TensorType& type) const {
    CublasLt::Layout made = nullptr;
    const auto columns = static_cast<uint64_t>(type.shape.back());
    api_.check(api_.cublasLtMatrixLayoutCreate(
                   &made, type.dtype == DType::bfloat16 ? CublasLt::typeBfloat16 : CublasLt::typeFloat, columns,
                   static_cast<uint64_t>(type.rows()), static_cast<int64_t>(columns)),
               "cublasLtMatrixLayoutCreate");
    return made;
  }
  void set(int attribute, int value) const {
    api_.check(api_.cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof value),
               "cublasLtMatmulDescSetAttribute");
  }

  const CublasLt& api_;
  const CublasLt::Handle handle_;
  void* const stream_;
  CublasLt::Operation operation_ = nullptr;
  CublasLt::Layout a_ = nullptr, b_ = nullptr, d_ = nullptr;
  CublasLt::Heuristic chosen_{};
  int index_ = 0;
};

template <bool INPUT_GRADIENT, bool FILTER_GRADIENT>
std::unique_ptr<Kernel> make(const CallDescription& call, const DeviceProperties& device) {
  return std::make_unique<Matmul>(call, device, INPUT_GRADIENT, FILTER_GRADIENT);
}

}  // namespace

void registerCublasLt(Registry& registry) {
  registry["cublasLtMatmul"] = make<false, false>;
  registry["cublasLtMatmulInputGradient"] = make<true, false>;
  registry["cublasLtMatmulFilterGradient"] = make<false, true>;
}

}  // namespace sepconv::cuda
