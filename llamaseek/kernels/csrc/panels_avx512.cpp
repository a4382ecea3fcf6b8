// Panels with AVX-512 VNNI (Ice Lake, Zen 4 and later).
#pragma GCC optimize("O3", "no-math-errno", "no-trapping-math")
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,avx2,prefer-vector-width=512")
#include <immintrin.h>

#include "panels_common.h"

namespace llamaseek {
namespace {

constexpr int kHalves = kPanel / 16;  // vectors of a sum a row

// 16 rows of 16 pairs → 16 pairs of 16 rows.
inline void turn(__m512i (&x)[16]) {
  __m512i y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // pair 4 * lane + c of four rows in a 128-bit lane of x[i + c]
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    const __m512i low = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x44);
    const __m512i high = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xee);
    const __m512i low2 = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x44);
    const __m512i high2 = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xee);
    y[c] = _mm512_shuffle_i32x4(low, low2, 0x88);
    y[4 + c] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    y[8 + c] = _mm512_shuffle_i32x4(high, high2, 0x88);
    y[12 + c] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) x[i] = y[i];
}

void interleave(const int16_t* codes, Panel& to) {
  for (int group = 0; group < kGroups; group++) {
    for (int row = 0; row < kPanel; row += 16) {
      __m512i x[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; r++) {
        x[r] = _mm512_load_si512(codes + (row + r) * kDepth + group * kGroup);
      }
      turn(x);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) _mm512_store_si512(to.codes[group * 16 + i][row], x[i]);
    }
  }
}

inline __m512i pair_of(const int16_t* at) {
  int32_t both;
  std::memcpy(&both, at, 4);
  return _mm512_set1_epi32(both);
}

template <bool Low>
void times(const Panel& panel, int groups, const TileGroup* tokens, float* out) {
  __m512 sums[kTile][kHalves];
#pragma GCC unroll 6
  for (int m = 0; m < kTile; m++) {
    for (int h = 0; h < kHalves; h++) sums[m][h] = _mm512_loadu_ps(out + m * kPanel + 16 * h);
  }
  for (int group = 0; group < groups; group++) {
    const TileGroup& x = tokens[group];
    __m512i dots[kTile][kHalves] = {};
    for (int begin = 0; begin < kGroup / 2; begin += 2) {  // two at once gain a quarter
#pragma GCC unroll 2
      for (int pair = begin; pair < begin + 2; pair++) {
        const int16_t(*codes)[2] = panel.codes[group * (kGroup / 2) + pair];
        const __m512i first = _mm512_load_si512(codes), second = _mm512_load_si512(codes + 16);
#pragma GCC unroll 6
        for (int m = 0; m < kTile; m++) {
          const __m512i by = pair_of(x.codes[m] + 2 * pair);
          dots[m][0] = _mm512_dpwssd_epi32(dots[m][0], first, by);
          dots[m][1] = _mm512_dpwssd_epi32(dots[m][1], second, by);
        }
      }
    }
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; h++) {
      const __m512 scale = _mm512_load_ps(panel.scale[group] + 16 * h);
      const __m512 low = _mm512_load_ps(panel.low[group] + 16 * h);
#pragma GCC unroll 6
      for (int m = 0; m < kTile; m++) {
        const __m512 by = _mm512_mul_ps(scale, _mm512_set1_ps(x.scale[m]));
        if (Low) sums[m][h] = _mm512_fmadd_ps(low, _mm512_set1_ps(x.sum[m]), sums[m][h]);
        sums[m][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[m][h]), by, sums[m][h]);
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < kTile; m++) {
    for (int h = 0; h < kHalves; h++) _mm512_storeu_ps(out + m * kPanel + 16 * h, sums[m][h]);
  }
}

}  // namespace

const PanelKernels avx512_panels{encode_tile, interleave, times<false>, times<true>, finish};

}  // namespace llamaseek
