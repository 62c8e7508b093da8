// Which instruction set's table is in force. Each table lives in a file compiled with that set's flags; this file is
// compiled for the oldest processor of the architecture and asks cpuid.
#include <cstring>

#include "table.h"

namespace sepconv::cpu {

namespace scalar {
extern const SimdTable table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const SimdTable table;
}
namespace avx512 {
extern const SimdTable table;
}
namespace avx512bf16 {
extern const Bf16Table table;
}
#if defined(SEPCONV_WIDE)
namespace wide {
extern const SimdTable table;
}
#endif
#elif defined(__aarch64__)
namespace neon {
extern const SimdTable table;
}
#endif

namespace {

struct Tables {
  const SimdTable* tables[5];
  const char* names[5];
  int count = 0;

  void add(const SimdTable& table) {
    tables[count] = &table;
    names[count++] = table.name;
  }
};

const Tables& tables() {
  static const Tables all = [] {
    Tables found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool hasAvx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (hasAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
      if (__builtin_cpu_supports("avx512bf16")) {
        static const SimdTable withBf16 = [] {
          SimdTable table = avx512::table;
          table.name = "avx512bf16";
          table.bf16 = &avx512bf16::table;
          return table;
        }();
        found.add(withBf16);
      }
      found.add(avx512::table);
    }
    if (hasAvx2) found.add(avx2::table);
#elif defined(__aarch64__)
    found.add(neon::table);
#endif
    found.add(scalar::table);
#if defined(__x86_64__) && defined(SEPCONV_WIDE)
    if (hasAvx2) found.add(wide::table);
#endif
    return found;
  }();
  return all;
}

thread_local const SimdTable* selected = nullptr;

}  // namespace

const SimdTable& simd() { return selected ? *selected : *tables().tables[0]; }

const char* const* availableSimd(int* count) {
  *count = tables().count;
  return tables().names;
}

const SimdTable* findSimd(const char* name) {
  for (int i = 0; i < tables().count; ++i)
    if (!std::strcmp(tables().names[i], name)) return tables().tables[i];
  return nullptr;
}

void selectSimd(const SimdTable* table) { selected = table; }

bool selectSimd(const char* name) {
  const SimdTable* table = findSimd(name);
  if (table) selected = table;
  return table != nullptr;
}

}  // namespace sepconv::cpu
