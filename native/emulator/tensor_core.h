// ldmatrix and mma.sync on the host: the last lane of a warp to arrive computes for all. Products are summed in
// float32, in order of depth; hardware sums in another order and with more bits inside one instruction.
#pragma once
#include "language.h"

namespace sepconv::emulator {

struct MatricesArgument {
  uint32_t* fragment;
  const void* row;
};

template <bool TRANSPOSED>
void loadMatrices(uint32_t (&fragment)[4], const void* row, Place place) {
  MatricesArgument argument{fragment, row};
  block->collective(
      &argument,
      [](void* const* arguments) {
        uint16_t rows[32][8];
        for (int lane = 0; lane < 32; ++lane)
          std::memcpy(rows[lane], static_cast<MatricesArgument*>(arguments[lane])->row, 16);
        for (int lane = 0; lane < 32; ++lane) {
          const int g = lane / 4, t = lane % 4 * 2;
          for (int i = 0; i < 4; ++i) {
            const uint16_t low = TRANSPOSED ? rows[i * 8 + t][g] : rows[i * 8 + g][t];
            const uint16_t high = TRANSPOSED ? rows[i * 8 + t + 1][g] : rows[i * 8 + g][t + 1];
            static_cast<MatricesArgument*>(arguments[lane])->fragment[i] = low | static_cast<uint32_t>(high) << 16;
          }
        }
      },
      TRANSPOSED ? "a transposed matrix load" : "a matrix load", place);
}

inline void storeMatrices(const uint32_t (&fragment)[4], void* row, Place place) {
  struct Argument {
    const uint32_t* fragment;
    void* row;
  } argument{fragment, row};
  block->collective(
      &argument,
      [](void* const* arguments) {
        for (int lane = 0; lane < 32; ++lane) {
          uint32_t row[4];
          for (int t = 0; t < 4; ++t) row[t] = static_cast<Argument*>(arguments[lane % 8 * 4 + t])->fragment[lane / 8];
          std::memcpy(static_cast<Argument*>(arguments[lane])->row, row, 16);
        }
      },
      "a matrix store", place);
}

// wgmma, warp by warp.
inline void multiplyGroup(const MatrixArgument& given, Place place) {
  struct Argument {
    MatrixArgument given;
    Place place;
  } argument{given, place};
  block->collective(
      &argument,
      [](void* const* arguments) { block->hopper().issue(arguments, static_cast<Argument*>(arguments[0])->place); },
      "a wgmma", place);
}
inline void fenceProducts(Place place) {
  block->collective(
      nullptr, [](void* const*) { block->hopper().fenceProducts(); }, "a wgmma fence", place);
}
inline void commitProducts(Place place) {
  block->collective(
      nullptr, [](void* const*) { block->hopper().commitProducts(); }, "a wgmma commit", place);
}
inline void waitProducts(int newest, Place place) {
  block->collective(
      &newest, [](void* const* arguments) { block->hopper().waitProducts(*static_cast<int*>(arguments[0])); },
      "a wgmma wait", place);
}

struct ProductArgument {
  float* d;
  const uint32_t* a;
  uint32_t b0, b1;
};

inline float asFloat(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

template <int K>
void accumulate(void* const* arguments, const float (&a)[16][K], const float (&b)[K][8]) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float& d = static_cast<ProductArgument*>(arguments[i % 8 * 4 + j / 2])->d[i / 8 * 2 + j % 2];
      float sum = d;
      for (int k = 0; k < K; ++k) sum += a[i][k] * b[k][j];
      d = sum;
    }
}

inline void multiplyBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Place place) {
  ProductArgument argument{d, a, b0, b1};
  block->collective(
      &argument,
      [](void* const* arguments) {
        float a[16][16], b[16][8];
        const auto low = [](uint32_t x) { return asFloat(x << 16); };
        const auto high = [](uint32_t x) { return asFloat(x & 0xffff0000u); };
        for (int lane = 0; lane < 32; ++lane) {
          const auto* own = static_cast<ProductArgument*>(arguments[lane]);
          const int g = lane / 4, t = lane % 4 * 2;
          for (int i = 0; i < 4; ++i) {
            a[g + i % 2 * 8][t + i / 2 * 8] = low(own->a[i]);
            a[g + i % 2 * 8][t + i / 2 * 8 + 1] = high(own->a[i]);
          }
          b[t][g] = low(own->b0);
          b[t + 1][g] = high(own->b0);
          b[t + 8][g] = low(own->b1);
          b[t + 9][g] = high(own->b1);
        }
        accumulate<16>(arguments, a, b);
      },
      "a product of bfloat16", place);
}

inline void multiplyTf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Place place) {
  ProductArgument argument{d, a, b0, b1};
  block->collective(
      &argument,
      [](void* const* arguments) {
        float a[16][8], b[8][8];
        const auto cut = [](uint32_t x) { return asFloat(x & 0xffffe000u); };  // what the hardware ignores
        for (int lane = 0; lane < 32; ++lane) {
          const auto* own = static_cast<ProductArgument*>(arguments[lane]);
          const int g = lane / 4, t = lane % 4;
          for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = cut(own->a[i]);
          b[t][g] = cut(own->b0);
          b[t + 4][g] = cut(own->b1);
        }
        accumulate<8>(arguments, a, b);
      },
      "a product of tf32", place);
}

}  // namespace sepconv::emulator
