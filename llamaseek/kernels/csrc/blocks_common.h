// Loops over blocks that compile to any instruction set; see common.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "blocks.h"
#include "panels_common.h"

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
    int32_t rounded[kGroup];
    const float by = largest_of(plain) / most;
    round_group(plain, by, rounded);
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

// A row of any width by the pieces that a panel has.
template <UnpackRow unpack, int Numbers, int Bytes>
void widen_row(const uint8_t* row, int64_t width, float* out) {
  for (int64_t k = 0; k < width; k += kDepth, row += kDepth / Numbers * Bytes) {
    const int count = int(std::min<int64_t>(width - k, kDepth));
    alignas(64) int16_t codes[kDepth];
    float scale[kGroups], low[kGroups];
    unpack(row, count, codes, scale, low);
    for (int i = 0; i < count; i++) {
      out[k + i] = scale[i / kGroup] * float(codes[i]) + low[i / kGroup];
    }
  }
}

using BlockPart = void (*)(const uint8_t* const* rows, const BlockTokens& x, int first,
                           int64_t ahead, float* out);

}  // namespace
}  // namespace llamaseek
