// Loops over activations of many tokens that compile to any instruction set; see common.h.
#pragma once
#include "common.h"
#include "panels.h"

namespace llamaseek {
namespace {

// 32 numbers → whole ones of 15 bits and their sum; gives the scale.
inline float round_group(const float* x, int32_t (&rounded)[kGroup]) {
  constexpr float most = 127 * 128;
  float largest = 0;
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < kGroup; i++) largest = std::max(largest, std::fabs(x[i]));
  const float step = largest > 0 ? most / largest : 0.0f;
  for (int i = 0; i < kGroup; i++) {
    const float scaled = x[i] * step;
    rounded[i] = int32_t(scaled + std::copysign(0.5f, scaled));
  }
  return largest / most;
}

void encode_tile(const float* x, int m, TileGroup& to) {
  int32_t rounded[kGroup], sum = 0;
  to.scale[m] = round_group(x, rounded);
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < kGroup; i++) sum += rounded[i];
  for (int i = 0; i < kGroup; i++) to.codes[m][i] = int16_t(rounded[i]);
  to.sum[m] = to.scale[m] * float(sum);
}

void finish(const float* sums, const float* gates, const void* residual, bool wide, int count,
            void* out) {
  float made[kPanel];
  std::copy(sums, sums + kPanel, made);
  if (gates) {
    for (int i = 0; i < kPanel; i++) {
      const float e = exp_negative(-std::fabs(gates[i]));
      made[i] *= gates[i] * (gates[i] < 0 ? e : 1.0f) / (1.0f + e);
    }
  }
  if (wide) {
    const float* more = static_cast<const float*>(residual);
    float* to = static_cast<float*>(out);
    for (int i = 0; i < count; i++) to[i] = made[i] + (more ? more[i] : 0.0f);
  } else {
    const uint16_t* more = static_cast<const uint16_t*>(residual);
    uint16_t* to = static_cast<uint16_t*>(out);
    for (int i = 0; i < count; i++) to[i] = narrow(made[i] + (more ? widen(more[i]) : 0.0f));
  }
}

}  // namespace
}  // namespace llamaseek
