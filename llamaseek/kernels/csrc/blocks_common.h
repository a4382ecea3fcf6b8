// Loops over blocks that compile to any instruction set; see common.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "blocks.h"

namespace llamaseek {
namespace {

inline uint16_t half_at(const uint8_t* at) {
  uint16_t out;
  std::memcpy(&out, at, 2);
  return out;
}

// The 12 bytes of Q4_K and Q5_K as eight scales and, behind them, eight minima.
inline void six_bits(const uint8_t* at, uint32_t (&out)[4]) {
  uint32_t a[3];
  std::memcpy(a, at, 12);
  out[0] = a[0] & 0x3f3f3f3f;
  out[1] = (a[2] & 0x0f0f0f0f) | ((a[0] >> 6) & 0x03030303) << 4;
  out[2] = a[1] & 0x3f3f3f3f;
  out[3] = ((a[2] >> 4) & 0x0f0f0f0f) | ((a[1] >> 6) & 0x03030303) << 4;
}

void encode_groups(const float* x, int64_t width, int8_t* coarse, int8_t* fine, float* scale,
                   float* sums) {
  constexpr float most = 127 * 128;
  const int64_t padded = (width + kStep - 1) / kStep * kStep;
  for (int64_t at = 0; at < padded; at += kGroup) {
    float plain[kGroup] = {};
    if (at < width) std::memcpy(plain, x + at, sizeof plain);
    float largest = 0;
#pragma omp simd reduction(max : largest)
    for (int i = 0; i < kGroup; i++) largest = std::max(largest, std::fabs(plain[i]));
    const float step = largest > 0 ? most / largest : 0.0f, by = largest / most;
    int32_t rounded[kGroup];
    for (int i = 0; i < kGroup; i++) {
      const float scaled = plain[i] * step;
      rounded[i] = int32_t(scaled + std::copysign(0.5f, scaled));
    }
    for (int i = 0; i < kGroup; i++) {
      const int32_t upper = (rounded[i] + 64) >> 7;
      coarse[at + i] = int8_t(upper);
      fine[at + i] = int8_t(rounded[i] - upper * 128);
    }
    for (int lane = 0; lane < kGroup / 4; lane++) {
      const int32_t* of = rounded + 4 * lane;
      scale[at / 4 + lane] = by;
      sums[at / 4 + lane] = by * float(of[0] + of[1] + of[2] + of[3]);
    }
  }
}

using BlockPart = void (*)(const uint8_t* const* rows, const BlockTokens& x, int first,
                           int64_t ahead, float* out);

}  // namespace
}  // namespace llamaseek
