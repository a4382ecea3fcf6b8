// Loops over activations of many tokens that compile to any instruction set; see common.h.
#pragma once
#include "common.h"
#include "panels.h"

namespace llamaseek {
namespace {

inline float largest_of(const float* x) {
  float largest = 0;
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < kGroup; i++) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

// 32 numbers → the nearest whole multiples of `by`.
inline void round_group(const float* x, float by, int32_t (&rounded)[kGroup]) {
  const float step = by > 1e-35f ? 1.0f / by : 0.0f;
  for (int i = 0; i < kGroup; i++) {
    const float scaled = x[i] * step;
    rounded[i] = int32_t(scaled + std::copysign(0.5f, scaled));
  }
}

// The largest of 32 numbers has 16 bits, unless so many are as large that their magnitudes add up to
// 2^19: codes of weights have up to 4096, and sums of products 32 bits.
void encode_tile(const float* x, int m, TileGroup& to) {
  constexpr float most = 32767, all = 524000;
  float size = 0;
#pragma omp simd reduction(+ : size)
  for (int i = 0; i < kGroup; i++) size += std::fabs(x[i]);
  const float by = std::max(largest_of(x) / most, size / all);
  int32_t rounded[kGroup], sum = 0;
  round_group(x, by, rounded);
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < kGroup; i++) sum += rounded[i];
  for (int i = 0; i < kGroup; i++) to.codes[m][i] = int16_t(rounded[i]);
  to.scale[m] = by;
  to.sum[m] = by * float(sum);
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
