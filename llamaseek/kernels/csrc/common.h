// Loops that compile to any instruction set: each set's file includes them after its target pragma.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace llamaseek {
namespace {

inline float widen(uint16_t x) {
  uint32_t bits = uint32_t(x) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline uint16_t narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// e^x for x ≤ 0, to a relative error of 2e-7; 0 below -87.
inline float exp_negative(float x) {
  float bounded = std::max(x, -87.0f);
  float whole = std::floor(bounded * 1.44269504f + 0.5f);
  float r = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = (int32_t(whole) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return x < -87.0f ? 0.0f : p * power;
}

void normalize(const void* x, bool is_float, const void* weight, bool weight_is_float, float eps,
               int64_t width, float* out) {
  const float* wide = static_cast<const float*>(x);
  const uint16_t* half = static_cast<const uint16_t*>(x);
  if (is_float) {
    std::copy(wide, wide + width, out);
  } else {
    for (int64_t k = 0; k < width; k++) out[k] = widen(half[k]);
  }
  if (!weight) return;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < width; k++) sum += out[k] * out[k];
  float scale = 1.0f / std::sqrt(sum / width + eps);
  const float* w = static_cast<const float*>(weight);
  const uint16_t* h = static_cast<const uint16_t*>(weight);
  if (weight_is_float) {
    for (int64_t k = 0; k < width; k++) out[k] *= scale * w[k];
  } else {
    for (int64_t k = 0; k < width; k++) out[k] *= scale * widen(h[k]);
  }
}

void narrow_all(const float* x, int64_t width, uint16_t* out) {
  for (int64_t k = 0; k < width; k++) out[k] = narrow(x[k]);
}

// Where input i of a block stands among its codes.
inline int place(int i, int bits) { return bits == 4 ? (i & 1) * 64 + i / 2 : i; }

void encode(const float* x, int64_t width, int bits, int8_t* codes, int32_t* bias, float* scale) {
  const int32_t zero = 1 << (bits - 1);
  const float most = bits == 4 ? 127 : 127 * 128;  // rounding costs little beside 4-bit weights'
  float whole = 1e-20f;  // 8-bit weights have a scale a row, and so have their inputs
#pragma omp simd reduction(max : whole)
  for (int64_t k = 0; k < width; k++) whole = std::max(whole, std::fabs(x[k]));
  for (int64_t block = 0; block * kBlock < width; block++) {
    const float* from = x + block * kBlock;
    const int count = int(std::min<int64_t>(kBlock, width - block * kBlock));
    float largest = 1e-20f;
#pragma omp simd reduction(max : largest)
    for (int i = 0; i < count; i++) largest = std::max(largest, std::fabs(from[i]));
    if (bits == 8) largest = whole;
    const float step = most / largest;
    int32_t plain[kBlock] = {}, placed[kBlock];
    for (int i = 0; i < count; i++) {
      float scaled = from[i] * step;
      plain[i] = int32_t(scaled + std::copysign(0.5f, scaled));
    }
    if (bits == 4) {
      for (int i = 0; i < 64; i++) placed[i] = plain[2 * i];
      for (int i = 0; i < 64; i++) placed[64 + i] = plain[2 * i + 1];
    } else {
      std::copy(plain, plain + kBlock, placed);
    }
    if (bits == 4) {
      for (int i = 0; i < kBlock; i++) codes[block * kBlock + i] = int8_t(placed[i]);
    } else {
      int8_t* to = codes + 2 * block * kBlock;
      for (int i = 0; i < kBlock; i++) {
        const int32_t coarse = (placed[i] + 64) >> 7;
        to[i] = int8_t(coarse);
        to[kBlock + i] = int8_t(placed[i] - 128 * coarse);
      }
    }
    for (int lane = 0; lane < kLanes; lane++) {
      int32_t sum = 0;
      for (int i = 0; i < 4; i++) sum += placed[lane * 4 + i] + placed[64 + lane * 4 + i];
      bias[block * kLanes + lane] = -zero * sum;
    }
    scale[block] = largest / most;
  }
}

// Softmax over a stretch's scores (heads, kKeys), then the values weighed by it. `Score` gives a
// tile of keys' products with all heads, `Weigh` adds the values, a few heads at a time.
template <class Score, class Weigh>
void attend(const Stretch& s, const Tokens& queries, float* largest, float* sum, float* out,
            Score score, Weigh weigh) {
  alignas(64) float scores[kTokens][kKeys];
  for (int key = 0; key < s.count; key += kRows) {
    Rows rows{};
    for (int r = 0; r < kRows; r++) {
      const int at = std::min(key + r, s.count - 1);
      const int ahead = std::min(key + r + 2 * kRows, s.count - 1);
      rows.weight[r] = static_cast<const uint8_t*>(s.keys[at]);
      rows.next[r] = static_cast<const uint8_t*>(s.keys[ahead]);
      for (int64_t byte = 0; byte < s.bytes; byte += 64) {  // values come behind all scores
        __builtin_prefetch(static_cast<const uint8_t*>(s.items[at]) + byte, 0, 2);
      }
    }
    alignas(64) float found[kRows * kTokens];
    score(rows, queries, found);
    for (int h = 0; h < s.heads; h++) {
      for (int r = 0; r < kRows; r++) scores[h][key + r] = found[r * kTokens + h] * s.scale;
    }
  }
  for (int h = 0; h < s.heads; h++) {
    float top = -INFINITY, total = 0;
    const int seen = s.seen[h];
#pragma omp simd reduction(max : top)
    for (int key = 0; key < seen; key++) top = std::max(top, scores[h][key]);
#pragma omp simd reduction(+ : total)
    for (int key = 0; key < seen; key++) {
      float weight = exp_negative(scores[h][key] - top);
      scores[h][key] = weight;
      total += weight;
    }
    std::fill(scores[h] + seen, scores[h] + (s.count + 1) / 2 * 2, 0.0f);
    largest[h] = top;
    sum[h] = total;
  }
  weigh(s, &scores[0][0], out);
}

}  // namespace
}  // namespace llamaseek
