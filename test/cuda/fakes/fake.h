// What the stand-ins for NVIDIA's libraries share: the log of calls, and elements of float32 (type 0) or bfloat16.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

[[maybe_unused]] void log(const char* text) {
  const char* path = std::getenv("FAKE_LIBRARY_LOG");
  if (std::FILE* file = path ? std::fopen(path, "a") : nullptr) {
    std::fprintf(file, "%s\n", text);
    std::fclose(file);
  }
}

[[maybe_unused]] float read(const void* data, int type, uint64_t i) {
  if (type == 0) return static_cast<const float*>(data)[i];
  const uint32_t bits = uint32_t{static_cast<const uint16_t*>(data)[i]} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

[[maybe_unused]] void write(void* data, int type, uint64_t i, float value) {
  if (type == 0) {
    static_cast<float*>(data)[i] = value;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace
