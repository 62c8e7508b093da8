// A stand-in for libcublasLt.so.13 on the emulated device: column-major products by plain loops, D = op(A) op(B).
// The heuristic proposes two algorithms, of which the first fails when it is run.
#include "fake.h"

namespace {
struct Operation {
  int compute, scale, transposeA, transposeB;
};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t leading;
};
struct Preference {
  size_t workspace;
};
struct Heuristic {
  uint64_t algorithm[8];
  size_t workspaceBytes;
  int state;
  float waves;
  int reserved[4];
};

}  // namespace

extern "C" {
size_t cublasLtGetVersion() { return 130002; }
int cublasLtCreate(void** handle) { return log("cublasLtCreate"), *handle = new int, 0; }
int cublasLtMatmulDescCreate(Operation** d, int compute, int scale) {
  return *d = new Operation{compute, scale, 0, 0}, 0;
}
int cublasLtMatmulDescDestroy(Operation* d) { return delete d, 0; }
int cublasLtMatmulDescSetAttribute(Operation* d, int attribute, const void* value, size_t bytes) {
  if (bytes != 4 || (attribute != 3 && attribute != 4)) return 7;
  std::memcpy(attribute == 3 ? &d->transposeA : &d->transposeB, value, 4);
  return 0;
}
int cublasLtMatrixLayoutCreate(Layout** d, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  return *d = new Layout{type, rows, columns, leading}, 0;
}
int cublasLtMatrixLayoutDestroy(Layout* d) { return delete d, 0; }
int cublasLtMatmulPreferenceCreate(Preference** d) { return *d = new Preference{0}, 0; }
int cublasLtMatmulPreferenceDestroy(Preference* d) { return delete d, 0; }
int cublasLtMatmulPreferenceSetAttribute(Preference* d, int attribute, const void* value, size_t bytes) {
  if (attribute != 1 || bytes != 8) return 7;
  std::memcpy(&d->workspace, value, 8);
  return 0;
}
int cublasLtMatmulAlgoGetHeuristic(void*, Operation* o, Layout*, Layout*, Layout*, Layout*, Preference* p,
                                   int requested, Heuristic* found, int* returned) {
  if (requested < 2 || p->workspace < 128) return 7;
  char text[64];
  std::snprintf(text, sizeof text, "compute %d", o->compute);
  log(text);
  for (uint64_t i = 0; i < 2; ++i) found[i] = {{i, 0, 0, 0, 0, 0, 0, 0}, 128, 0, 1.f, {}};
  *returned = 2;
  return 0;
}
int cublasLtMatmul(void*, Operation* o, const void* alpha, const void* a, Layout* la, const void* b, Layout* lb,
                   const void* beta, const void*, Layout*, void* d, Layout* ld, const uint64_t* algorithm,
                   void* scratch, size_t bytes, void*) {
  log("cublasLtMatmul");
  if (*algorithm == 0) return 15;  // CUBLAS_STATUS_NOT_SUPPORTED
  if (!scratch || bytes != 128) return 7;
  if (*static_cast<const float*>(alpha) != 1.f || *static_cast<const float*>(beta) != 0.f) return 7;
  const auto at = [](const void* data, const Layout& l, bool transposed, uint64_t row, uint64_t column) {
    return read(
        data, l.type,
        transposed ? row * static_cast<uint64_t>(l.leading) + column : column * static_cast<uint64_t>(l.leading) + row);
  };
  const uint64_t depth = o->transposeA ? la->rows : la->columns;
  if (depth != (o->transposeB ? lb->columns : lb->rows)) return 7;
  for (uint64_t column = 0; column < ld->columns; ++column)
    for (uint64_t row = 0; row < ld->rows; ++row) {
      float sum = 0.f;
      for (uint64_t k = 0; k < depth; ++k)
        sum += at(a, *la, o->transposeA, row, k) * at(b, *lb, o->transposeB, k, column);
      write(d, ld->type, column * static_cast<uint64_t>(ld->leading) + row, sum);
    }
  return 0;
}
}
