// Panels with AVX2.
#pragma GCC optimize("O3", "no-math-errno", "no-trapping-math")
#pragma GCC target("avx2,fma")
#include <immintrin.h>

#include "panels_common.h"

namespace llamaseek {
namespace {

constexpr int kSome = 3;    // tokens, and two vectors of 8 rows, whose sums fit the registers
constexpr int kWide = 16;   // rows in these

void interleave(const int16_t* codes, Panel& to) {
  for (int row = 0; row < kPanel; row++) {
    for (int pair = 0; pair < kDepth / 2; pair++) {
      std::memcpy(to.codes[pair][row], codes + row * kDepth + 2 * pair, 4);
    }
  }
}

inline __m256i pair_of(const int16_t* at) {
  int32_t both;
  std::memcpy(&both, at, 4);
  return _mm256_set1_epi32(both);
}

inline __m256i load_codes(const void* at) {
  return _mm256_load_si256(static_cast<const __m256i*>(at));
}

// Rows `row` … and tokens `first` … of a tile.
template <bool Low>
void some(const Panel& panel, int groups, const TileGroup* tokens, int row, int first, float* out) {
  __m256 sums[kSome][2];
  for (int m = 0; m < kSome; m++) {
    for (int h = 0; h < 2; h++) sums[m][h] = _mm256_loadu_ps(out + m * kPanel + 8 * h);
  }
  for (int group = 0; group < groups; group++) {
    const TileGroup& x = tokens[group];
    __m256i dots[kSome][2] = {};
    for (int pair = 0; pair < kGroup / 2; pair++) {
      const int16_t(*codes)[2] = panel.codes[group * (kGroup / 2) + pair] + row;
      const __m256i w[2] = {load_codes(codes), load_codes(codes + 8)};
#pragma GCC unroll 3
      for (int m = 0; m < kSome; m++) {
        const __m256i by = pair_of(x.codes[first + m] + 2 * pair);
        for (int h = 0; h < 2; h++) {
          dots[m][h] = _mm256_add_epi32(dots[m][h], _mm256_madd_epi16(w[h], by));
        }
      }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      const __m256 scale = _mm256_load_ps(panel.scale[group] + row + 8 * h);
      const __m256 low = _mm256_load_ps(panel.low[group] + row + 8 * h);
#pragma GCC unroll 3
      for (int m = 0; m < kSome; m++) {
        const __m256 by = _mm256_mul_ps(scale, _mm256_set1_ps(x.scale[first + m]));
        if (Low) sums[m][h] = _mm256_fmadd_ps(low, _mm256_set1_ps(x.sum[first + m]), sums[m][h]);
        sums[m][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[m][h]), by, sums[m][h]);
      }
    }
  }
  for (int m = 0; m < kSome; m++) {
    for (int h = 0; h < 2; h++) _mm256_storeu_ps(out + m * kPanel + 8 * h, sums[m][h]);
  }
}

template <bool Low>
void times(const Panel& panel, int groups, const TileGroup* tokens, float* out) {
  for (int row = 0; row < kPanel; row += kWide) {
    for (int m = 0; m < kTile; m += kSome) {
      some<Low>(panel, groups, tokens, row, m, out + m * kPanel + row);
    }
  }
}

}  // namespace

const PanelKernels avx2_panels{encode_tile, interleave, times<false>, times<true>, finish};

}  // namespace llamaseek
