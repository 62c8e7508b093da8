// A libcuda.so.1 of VERSION whose cuInit gives STATUS: what the CUDA runtime in the addon finds on a machine with a
// driver, but without a GPU that it may use.
#include <cstddef>
#include <cstring>

extern "C" {
int cuInit(unsigned) { return STATUS; }
int cuDriverGetVersion(int* version) { return *version = VERSION, 0; }
int cuGetExportTable(const void** table, const void*) { return *table = nullptr, 500; }
int cuGetErrorString(int, const char** text) { return *text = "made for a test", 0; }
int cuGetErrorName(int, const char** text) { return *text = "CUDA_ERROR", 0; }
static int failing() { return STATUS; }
int cuGetProcAddress_v2(const char* symbol, void** found, int, unsigned long long, int* status) {
  if (!std::strcmp(symbol, "cuInit"))
    *found = reinterpret_cast<void*>(cuInit);
  else if (!std::strcmp(symbol, "cuDriverGetVersion"))
    *found = reinterpret_cast<void*>(cuDriverGetVersion);
  else if (!std::strcmp(symbol, "cuGetExportTable"))
    *found = reinterpret_cast<void*>(cuGetExportTable);
  else if (!std::strcmp(symbol, "cuGetProcAddress"))
    *found = reinterpret_cast<void*>(cuGetProcAddress_v2);
  else
    *found = reinterpret_cast<void*>(failing);
  if (status) *status = 0;
  return 0;
}
int cuGetProcAddress(const char* symbol, void** found, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(symbol, found, version, flags, nullptr);
}
}
