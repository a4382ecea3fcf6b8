// AVX-512 with VNNI and BF16 (Zen 4, Cooper Lake, Sapphire Rapids and later).
#pragma GCC optimize("O3", "no-math-errno", "no-trapping-math")
#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma,avx2,prefer-vector-width=512")
#include <immintrin.h>

#include "common.h"

namespace llamaseek {
namespace {

// The tokens `first` … and the rows `row` … that a part takes, and the next rows it fetches. A single
// row's sums stay apart in `lanes`, one for each token.
struct Share {
  int first, row, fetch_from, fetch_to;
  __m512* lanes;
};

constexpr int64_t kAhead = 4096;  // bytes

// Single rows are read one after the other, so what is wanted next lies behind them.
template <int R, int M>
inline void fetch(const Rows& rows, const Share& share, int64_t at) {
  if constexpr (R == 1) {
    const uint8_t* next = rows.weight[share.row] + at + kAhead;
    _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
  } else {
    for (int r = share.fetch_from; r < share.fetch_to; r++) {
      _mm_prefetch(reinterpret_cast<const char*>(rows.next[r] + at), _MM_HINT_T1);
    }
  }
}

// Lane i of the result is the sum of sums[i]'s lanes, in the same order for all i: a token's products
// are the same to the bit whatever other tokens there are.
inline __m512 sum_each(const __m512 (&sums)[16]) {
  __m512 half[8], quarter[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {  // lanes of 2i and 2i+1 beside each other
    half[i] = _mm512_add_ps(_mm512_unpacklo_ps(sums[2 * i], sums[2 * i + 1]),
                            _mm512_unpackhi_ps(sums[2 * i], sums[2 * i + 1]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    __m512d a = _mm512_castps_pd(half[2 * i]), b = _mm512_castps_pd(half[2 * i + 1]);
    quarter[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                               _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  // quarter[i] holds, in each 128-bit part, sums of 4i..4i+3; add the four parts of each.
  __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(quarter[0], quarter[1], 0x88),
                            _mm512_shuffle_f32x4(quarter[0], quarter[1], 0xdd));
  __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(quarter[2], quarter[3], 0x88),
                            _mm512_shuffle_f32x4(quarter[2], quarter[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}

template <int R, int M>
inline void keep(const __m512 (&sums)[R][M], const Share& share, float* out) {
  float* to = out + share.row * kTokens + share.first;
  if constexpr (R == 1) {
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) share.lanes[m] = sums[0][m];  // `by_rows` adds them up
  } else {
    __m512 flat[16] = {};
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) flat[r * M + m] = sums[r][m];
    }
    alignas(64) float found[16];
    _mm512_store_ps(found, sum_each(flat));
    for (int r = 0; r < R; r++) {
      for (int m = 0; m < M; m++) to[r * kTokens + m] = found[r * M + m];
    }
  }
}

inline __m512bh as_bf16(__m512i x) {
  __m512bh out;
  std::memcpy(&out, &x, sizeof out);
  return out;
}

template <int R, int M>
void tile_bf16(const Rows& rows, const Tokens& x, const Share& share, float* out) {
  const int first = share.first;
  __m512 sums[R][M] = {};
  const int64_t width = x.width;
  int64_t k = 0;
  for (; k + 32 <= width; k += 32) {
    __m512bh v[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) v[m] = as_bf16(_mm512_loadu_si512(x.bf16[first + m] + k));
    fetch<R, M>(rows, share, 2 * k);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      __m512bh w = as_bf16(_mm512_loadu_si512(rows.weight[share.row + r] + 2 * k));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) sums[r][m] = _mm512_dpbf16_ps(sums[r][m], w, v[m]);
    }
  }
  if (k < width) {
    const __mmask32 left = (1u << (width - k)) - 1;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      __m512bh w = as_bf16(_mm512_maskz_loadu_epi16(left, rows.weight[share.row + r] + 2 * k));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        __m512bh v = as_bf16(_mm512_maskz_loadu_epi16(left, x.bf16[first + m] + k));
        sums[r][m] = _mm512_dpbf16_ps(sums[r][m], w, v);
      }
    }
  }
  keep(sums, share, out);
}

template <int R, int M>
void tile_float(const Rows& rows, const Tokens& x, const Share& share, float* out) {
  const int first = share.first;
  __m512 sums[R][M] = {};
  for (int64_t k = 0; k < x.width; k += 16) {
    const int64_t count = x.width - k;
    const __mmask16 some = count >= 16 ? 0xffff : (1u << count) - 1;
    fetch<R, M>(rows, share, 4 * k);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      __m512 w = _mm512_maskz_loadu_ps(some, rows.weight[share.row + r] + 4 * k);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        __m512 v = _mm512_maskz_loadu_ps(some, x.wide[first + m] + k);
        sums[r][m] = _mm512_fmadd_ps(w, v, sums[r][m]);
      }
    }
  }
  keep(sums, share, out);
}

inline __mmask64 low_bytes(int64_t count) {
  return count >= 64 ? ~0ull : count <= 0 ? 0 : (1ull << count) - 1;
}

template <int R, int M>
inline void scale_rows(const Rows& rows, const Share& share, __m512 (&sums)[R][M]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    const __m512 by = _mm512_set1_ps(widen(rows.scale[share.row + r][0]));
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) sums[r][m] = _mm512_mul_ps(sums[r][m], by);
  }
}

// A block's stored weights, in two halves, times a token's numbers of 15 bits.
inline __m512i products(const Tokens& x, int m, int64_t block, __m512i first, __m512i second) {
  const int8_t* codes = x.codes[m] + 2 * block * kBlock;
  const auto load = [=](int at) __attribute__((always_inline)) {
    return _mm512_loadu_si512(codes + at);
  };
  __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), first, load(0));
  dot = _mm512_dpbusd_epi32(dot, second, load(64));
  const __m512i bias = _mm512_loadu_si512(x.bias[m] + block * kLanes);
  dot = _mm512_add_epi32(_mm512_slli_epi32(dot, 7), bias);
  dot = _mm512_dpbusd_epi32(dot, first, load(kBlock));
  return _mm512_dpbusd_epi32(dot, second, load(kBlock + 64));
}

// sums[r][m] += the whole rows' products with the bytes at `part` of each block of the tokens.
template <int R, int M>
inline void whole_rows(const Rows& rows, const Tokens& x, const Share& share, int part,
                       __m512i (&sums)[R][M]) {
  for (int64_t k = 0; k < x.width; k += kBlock) {
    const __mmask64 low = low_bytes(x.width - k), high = low_bytes(x.width - k - 64);
    if (!part) fetch<R, M>(rows, share, k), fetch<R, M>(rows, share, k + 64);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const uint8_t* at = rows.weight[share.row + r] + k;
      const __m512i first = _mm512_maskz_loadu_epi8(low, at);
      const __m512i second = _mm512_maskz_loadu_epi8(high, at + 64);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const int8_t* codes = x.codes[share.first + m] + 2 * k + part;
        __m512i dot = _mm512_dpbusd_epi32(sums[r][m], first, _mm512_loadu_si512(codes));
        sums[r][m] = _mm512_dpbusd_epi32(dot, second, _mm512_loadu_si512(codes + 64));
      }
    }
  }
}

// The same for both parts of a single row in one pass, as there are registers for it.
template <int M>
inline void both_parts(const Rows& rows, const Tokens& x, const Share& share, __m512i (&coarse)[M],
                       __m512i (&fine)[M]) {
  for (int64_t k = 0; k < x.width; k += kBlock) {
    const __mmask64 low = low_bytes(x.width - k), high = low_bytes(x.width - k - 64);
    fetch<1, M>(rows, share, k), fetch<1, M>(rows, share, k + 64);
    const uint8_t* at = rows.weight[share.row] + k;
    const __m512i first = _mm512_maskz_loadu_epi8(low, at);
    const __m512i second = _mm512_maskz_loadu_epi8(high, at + 64);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const int8_t* codes = x.codes[share.first + m] + 2 * k;
      const auto load = [=](int part) __attribute__((always_inline)) {
        return _mm512_loadu_si512(codes + part);
      };
      coarse[m] = _mm512_dpbusd_epi32(coarse[m], first, load(0));
      fine[m] = _mm512_dpbusd_epi32(fine[m], first, load(kBlock));
      coarse[m] = _mm512_dpbusd_epi32(coarse[m], second, load(64));
      fine[m] = _mm512_dpbusd_epi32(fine[m], second, load(kBlock + 64));
    }
  }
}

// Weights and tokens with one scale a row: whole numbers are summed up along it.
template <int R, int M>
void tile_8_whole(const Rows& rows, const Tokens& x, const Share& share, float* out) {
  __m512i coarse[R][M] = {}, fine[R][M] = {};
  if constexpr (R == 1) {
    both_parts(rows, x, share, coarse[0], fine[0]);
  } else {
    whole_rows<R, M>(rows, x, share, 0, coarse);
    whole_rows<R, M>(rows, x, share, kBlock, fine);
  }
  __m512 sums[R][M];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    __m512 bias = _mm512_setzero_ps();
    for (int64_t lane = 0; lane * kBlock < x.width * kLanes; lane += kLanes) {
      const __m512i some = _mm512_loadu_si512(x.bias[share.first + m] + lane);
      bias = _mm512_add_ps(bias, _mm512_cvtepi32_ps(some));
    }
    const __m512 by = _mm512_set1_ps(x.scale[share.first + m][0]);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const __m512 low = _mm512_add_ps(_mm512_cvtepi32_ps(fine[r][m]), bias);
      const __m512 high = _mm512_cvtepi32_ps(coarse[r][m]);
      sums[r][m] = _mm512_mul_ps(_mm512_fmadd_ps(high, _mm512_set1_ps(128.0f), low), by);
    }
  }
  scale_rows(rows, share, sums);
  keep(sums, share, out);
}

// Groups of 32 or 64: each half of a block has its scales, in its lanes, and its own bias.
template <int R, int M>
void tile_8_groups(const Rows& rows, const Tokens& x, const Share& share, float* out) {
  __m512 sums[R][M] = {};
  const __m512i zero = _mm512_set1_epi8(int8_t(0x80));
  for (int64_t k = 0; k < x.width; k += 64) {
    const __mmask64 some = low_bytes(x.width - k);
    const int64_t last = (x.width - 1) / rows.group;
    fetch<R, M>(rows, share, k);
    for (int r = 0; r < R; r++) {
      const uint16_t* scale = rows.scale[share.row + r];
      const float low = widen(scale[k / rows.group]);
      const float high = widen(scale[std::min((k + 32) / rows.group, last)]);
      const __m512 by = _mm512_insertf32x8(_mm512_set1_ps(low), _mm256_set1_ps(high), 1);
      const __m512i w = _mm512_mask_loadu_epi8(zero, some, rows.weight[share.row + r] + k);
      for (int m = 0; m < M; m++) {
        const int8_t* codes = x.codes[share.first + m] + k / kBlock * 2 * kBlock + k % kBlock;
        const auto dot = [&](int part) __attribute__((always_inline)) {
          const __m512i v = _mm512_loadu_si512(codes + part), none = _mm512_setzero_si512();
          return _mm512_sub_epi32(_mm512_dpbusd_epi32(none, w, v),
                                  _mm512_dpbusd_epi32(none, zero, v));
        };
        const __m512i both = _mm512_add_epi32(_mm512_slli_epi32(dot(0), 7), dot(kBlock));
        const __m512 scaled = _mm512_mul_ps(by, _mm512_set1_ps(x.scale[share.first + m][0]));
        sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(both), scaled, sums[r][m]);
      }
    }
  }
  keep(sums, share, out);
}

template <int R, int M>
void tile_8(const Rows& rows, const Tokens& x, const Share& share, float* out) {
  if (!rows.group) return tile_8_whole<R, M>(rows, x, share, out);
  if (rows.group < kBlock) return tile_8_groups<R, M>(rows, x, share, out);
  const int first = share.first;
  __m512 sums[R][M] = {};
  for (int64_t k = 0, block = 0; k < x.width; k += kBlock, block++) {
    const int64_t count = std::min<int64_t>(x.width - k, kBlock);
    const __mmask64 low = low_bytes(count), high = low_bytes(count - 64);
    fetch<R, M>(rows, share, k), fetch<R, M>(rows, share, k + 64);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const uint8_t* at = rows.weight[share.row + r] + k;
      const __m512i w0 = _mm512_maskz_loadu_epi8(low, at);
      const __m512i w1 = _mm512_maskz_loadu_epi8(high, at + 64);
      const float scale = widen(rows.scale[share.row + r][k / rows.group]);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const __m512i dot = products(x, first + m, block, w0, w1);
        const __m512 by = _mm512_set1_ps(scale * x.scale[first + m][block]);
        sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), by, sums[r][m]);
      }
    }
  }
  keep(sums, share, out);
}

constexpr int64_t kScalesAhead = 1024;  // bytes

// Which lanes of 16 scales a block's lanes take; a block has 1, 2 or 4 groups.
struct Spread {
  int groups, blocks;      // of a block; of a span of 16 scales
  int64_t wider, scales;  // blocks that share a scale; scales of a row
  __m512i lanes;

  Spread(int64_t group, int64_t width)
      : groups(group ? int(std::max<int64_t>(kBlock / group, 1)) : 1),
        blocks(group > kBlock ? 1 : kLanes / groups),
        wider(std::max<int64_t>(group / kBlock, 1)),
        scales(group ? width / group : 0) {
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    lanes = _mm512_srli_epi32(order, groups == 4 ? 2 : groups == 2 ? 3 : 4);
  }

  // The scales from block `at` on, as many as are left of 16; ones where there are none. Scales are a
  // thin stream beside the weights, which processors do not see coming.
  __m512 load(const Rows& rows, int r, int64_t at) const {
    if (!scales) return _mm512_set1_ps(1.0f);
    const int64_t first = wider == 1 ? at * groups : at / wider;
    const __mmask16 some = (1u << std::min<int64_t>(scales - first, kLanes)) - 1;
    const uint16_t* from = rows.scale[r] + first;
    _mm_prefetch(reinterpret_cast<const char*>(from) + kScalesAhead, _MM_HINT_T0);
    const __m256i half = _mm256_maskz_loadu_epi16(some, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }

  // Which of the span's scales the lanes of its block take.
  __m512i of(int block) const {
    return _mm512_add_epi32(lanes, _mm512_set1_epi32(block * groups));
  }

  // The scales of one token's blocks from `at` on, each where its groups' scales are.
  __m512 of_token(const float* scale, int64_t at, int64_t count) const {
    const __mmask16 some = (1u << std::min<int64_t>(count - at, kLanes)) - 1;
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i block = _mm512_srli_epi32(order, groups == 4 ? 2 : groups == 2 ? 1 : 0);
    return _mm512_permutexvar_ps(block, _mm512_maskz_loadu_ps(some, scale + at));
  }
};

// A block's 64 bytes as codes of even and odd inputs; bytes behind the row's end are zeros.
inline void split(const uint8_t* at, __mmask64 some, __m512i& even, __m512i& odd) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const __m512i w = _mm512_maskz_loadu_epi8(some, at);
  even = _mm512_and_si512(w, nibble);
  odd = _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble);
}

template <int R, int M>
void tile_4(const Rows& rows, const Tokens& x, const Share& share, float* out) {
  const int first = share.first;
  __m512 sums[R][M] = {};
  const Spread spread(rows.group, x.width);
  const int64_t blocks = (x.width + kBlock - 1) / kBlock;
  for (int64_t span = 0; span < blocks; span += spread.blocks) {
    __m512 scales[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) scales[r] = spread.load(rows, share.row + r, span);
    if constexpr (M == 1) {  // once a span instead of once a block
      const __m512 token = spread.of_token(x.scale[first], span, blocks);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) scales[r] = _mm512_mul_ps(scales[r], token);
    }
    for (int64_t block = span; block < std::min(span + spread.blocks, blocks); block++) {
      fetch<R, M>(rows, share, block * 64);
      const __mmask64 some = low_bytes((x.width - block * kBlock) / 2);
      const __m512i lanes = spread.of(int(block - span));
      __m512i v[M][2], bias[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        v[m][0] = _mm512_loadu_si512(x.codes[first + m] + block * kBlock);
        v[m][1] = _mm512_loadu_si512(x.codes[first + m] + block * kBlock + 64);
        bias[m] = _mm512_loadu_si512(x.bias[first + m] + block * kLanes);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        __m512i even, odd;
        split(rows.weight[share.row + r] + block * 64, some, even, odd);
        const __m512 scale = _mm512_permutexvar_ps(lanes, scales[r]);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const __m512i dot = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(bias[m], even, v[m][0]),
                                                  odd, v[m][1]);
          const __m512 by =
              M == 1 ? scale : _mm512_mul_ps(scale, _mm512_set1_ps(x.scale[first + m][block]));
          sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), by, sums[r][m]);
        }
      }
    }
  }
  if (!rows.group) scale_rows(rows, share, sums);
  keep(sums, share, out);
}

using Part = void (*)(const Rows&, const Tokens&, const Share&, float*);

constexpr int kSingle = 4;  // most tokens for which rows are read one after the other; fewer bits
                            // than 16 are widened for each row, and go together sooner

// Rows one after the other, whose lanes are added up together.
inline void by_rows(Part part, const Rows& rows, const Tokens& x, float* out) {
  __m512 lanes[kRows * kSingle] = {};
  for (int r = 0; r < kRows; r++) part(rows, x, {0, r, 0, 0, lanes + r * x.count}, out);
  alignas(64) float found[kRows * kSingle];
  for (int at = 0; at < kRows * x.count; at += kLanes) {
    __m512 some[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) some[i] = lanes[at + i];
    _mm512_store_ps(found + at, sum_each(some));
  }
  for (int r = 0; r < kRows; r++) {
    for (int m = 0; m < x.count; m++) out[r * kTokens + m] = found[r * x.count + m];
  }
}

// Few tokens are bound by memory, which is fastest where it is read in order: eight rows at once come
// at 28 GB/s where one comes at 39. More go by four tokens and four rows, and what the four rows'
// tokens fetch is shared among them.
template <int Single, Part... OneRowThenFour>
void by_fours(const Rows& rows, const Tokens& x, float* out) {
  constexpr Part all[] = {OneRowThenFour...};
  if (x.count <= Single) return by_rows(all[x.count - 1], rows, x, out);
  const int parts = (x.count + 3) / 4, each = rows.next[0] ? 4 : 0;
  for (int row = 0; row < kRows; row += 4) {
    for (int part = 0; part < parts; part++) {
      const int first = part * 4;
      const Share share{first, row, row + part * each / parts, row + (part + 1) * each / parts, {}};
      all[kSingle + std::min(x.count - first, 4) - 1](rows, x, share, out);
    }
  }
}

// Eight rows that lie `stride` bytes apart, and M tokens: few addresses, so that registers hold them.
template <int M>
void eight_rows(const Rows& rows, const Tokens& x, const Share& share, int64_t stride, float* out) {
  const uint8_t *weight = rows.weight[0], *next = rows.next[0];
  const uint16_t* tokens[M];
  for (int m = 0; m < M; m++) tokens[m] = x.bf16[share.first + m];
  __m512 sums[kRows][M] = {};
  for (int64_t k = 0; k < x.width; k += 32) {
    __m512bh v[M];
#pragma GCC unroll 2
    for (int m = 0; m < M; m++) v[m] = as_bf16(_mm512_loadu_si512(tokens[m] + k));
    for (int r = share.fetch_from; r < share.fetch_to; r++) {
      _mm_prefetch(reinterpret_cast<const char*>(next + r * stride + 2 * k), _MM_HINT_T1);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) {
      const __m512bh w = as_bf16(_mm512_loadu_si512(weight + r * stride + 2 * k));
#pragma GCC unroll 2
      for (int m = 0; m < M; m++) sums[r][m] = _mm512_dpbf16_ps(sums[r][m], w, v[m]);
    }
  }
  keep(sums, share, out);
}

// Whether all rows lie as far apart as the first two, which those behind a matrix's end do not.
bool evenly_apart(const Rows& rows) {
  bool even = true;
  for (int r = 2; r < kRows; r++) {
    even &= rows.weight[r] - rows.weight[r - 1] == rows.weight[1] - rows.weight[0];
  }
  return even;
}

// More than four tokens of such a width do not fit into the nearest cache, and eight rows do: each
// number of a token that comes from further away meets eight rows there, in place of four.
constexpr int64_t kWide = 1024, kWidest = 4096;

void eight_by_two(const Rows& rows, const Tokens& x, float* out) {
  const int parts = (x.count + 1) / 2, each = rows.next[0] ? kRows : 0;
  const int64_t stride = rows.weight[1] - rows.weight[0];
  for (int part = 0; part < parts; part++) {
    const int first = 2 * part;
    const Share share{first, 0, part * each / parts, (part + 1) * each / parts, {}};
    (first + 1 < x.count ? eight_rows<2> : eight_rows<1>)(rows, x, share, stride, out);
  }
}

#define LLAMASEEK_TILES(tile, single) \
  by_fours<single, tile<1, 1>, tile<1, 2>, tile<1, 3>, tile<1, 4>, tile<4, 1>, tile<4, 2>, tile<4, 3>, tile<4, 4>>
constexpr Tile kBf16Narrow = LLAMASEEK_TILES(tile_bf16, 4);
constexpr Tile kFloat = LLAMASEEK_TILES(tile_float, 4);
constexpr Tile kBits8 = LLAMASEEK_TILES(tile_8, 2);
constexpr Tile kBits4 = LLAMASEEK_TILES(tile_4, 2);
#undef LLAMASEEK_TILES

void bf16(const Rows& rows, const Tokens& x, float* out) {
  const bool wide = x.width > kWide && x.width <= kWidest && x.width % 32 == 0;
  (wide && x.count > kSingle && evenly_apart(rows) ? eight_by_two : kBf16Narrow)(rows, x, out);
}

// Values of two keys side by side are multiplied by their two weights in one instruction.
template <int G>
void weigh_bf16(const Stretch& s, const float* weights, int first, float* out) {
  for (int64_t v = 0; v < s.values; v += 32) {
    const int64_t count = s.values - v;
    const __mmask32 some = count >= 32 ? ~0u : (1u << count) - 1;
    __m512 sums[G][2] = {};
    for (int key = 0; key < s.count; key += 2) {
      const int next = std::min(key + 1, s.count - 1);  // its weight is 0 behind the last
      const __m512i a = _mm512_maskz_loadu_epi16(some, (const uint16_t*)s.items[key] + v);
      const __m512i b = _mm512_maskz_loadu_epi16(some, (const uint16_t*)s.items[next] + v);
      const __m512bh low = as_bf16(_mm512_unpacklo_epi16(a, b));
      const __m512bh high = as_bf16(_mm512_unpackhi_epi16(a, b));
      for (int g = 0; g < G; g++) {
        const uint32_t* pair =
            reinterpret_cast<const uint32_t*>(weights) + (first + g) * (kKeys / 2) + key / 2;
        const __m512bh by = as_bf16(_mm512_set1_epi32(int(*pair)));
        sums[g][0] = _mm512_dpbf16_ps(sums[g][0], low, by);
        sums[g][1] = _mm512_dpbf16_ps(sums[g][1], high, by);
      }
    }
    for (int g = 0; g < G; g++) {  // unpacking took each 128-bit part's halves apart
      alignas(64) float low[16], high[16];
      _mm512_store_ps(low, sums[g][0]);
      _mm512_store_ps(high, sums[g][1]);
      float* to = out + (first + g) * s.values + v;
      for (int i = 0; i < std::min<int64_t>(count, 32); i++) {
        to[i] = (i & 4 ? high : low)[i / 8 * 4 + (i & 3)];
      }
    }
  }
}

template <int G>
void weigh_float(const Stretch& s, const float* weights, int first, float* out) {
  for (int64_t v = 0; v < s.values; v += 16) {
    const int64_t count = s.values - v;
    const __mmask16 some = count >= 16 ? 0xffff : (1u << count) - 1;
    __m512 sums[G] = {};
    for (int key = 0; key < s.count; key++) {
      const __m512 item = _mm512_maskz_loadu_ps(some, (const float*)s.items[key] + v);
      for (int g = 0; g < G; g++) {
        const __m512 by = _mm512_set1_ps(weights[(first + g) * kKeys + key]);
        sums[g] = _mm512_fmadd_ps(item, by, sums[g]);
      }
    }
    for (int g = 0; g < G; g++) {
      _mm512_mask_storeu_ps(out + (first + g) * s.values + v, some, sums[g]);
    }
  }
}

using Weigh = void (*)(const Stretch&, const float*, int, float*);

// As many heads at once as there are, in powers of two.
template <Weigh One, Weigh Two, Weigh Four, Weigh Eight>
void by_heads(const Stretch& s, const float* weights, float* out) {
  int h = 0;
  for (; h + 8 <= s.heads; h += 8) Eight(s, weights, h, out);
  if (s.heads - h >= 4) Four(s, weights, h, out), h += 4;
  if (s.heads - h >= 2) Two(s, weights, h, out), h += 2;
  if (s.heads - h >= 1) One(s, weights, h, out);
}

void attend_bf16(const Stretch& s, const Tokens& q, float* largest, float* sum, float* out) {
  attend(s, q, largest, sum, out, bf16, [](const Stretch& s, const float* scores, float* out) {
    alignas(64) uint16_t weights[kTokens * kKeys];
    const int even = (s.count + 1) / 2 * 2;
    for (int h = 0; h < s.heads; h++) {
      narrow_all(scores + h * kKeys, even, weights + h * kKeys);
    }
    by_heads<weigh_bf16<1>, weigh_bf16<2>, weigh_bf16<4>, weigh_bf16<8>>(
        s, reinterpret_cast<const float*>(weights), out);
  });
}

void attend_float(const Stretch& s, const Tokens& q, float* largest, float* sum, float* out) {
  attend(s, q, largest, sum, out, kFloat,
         by_heads<weigh_float<1>, weigh_float<2>, weigh_float<4>, weigh_float<8>>);
}

// Sixteen codes less their zero point, times a scale, as bf16.
inline __m256i scaled(__m512i codes, int zero, __m512 scale) {
  const __m512 plain = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(zero)));
  const __m256bh narrow = _mm512_cvtneps_pbh(_mm512_mul_ps(plain, scale));
  __m256i out;
  std::memcpy(&out, &narrow, sizeof out);
  return out;
}

inline __m512 scale_at(const uint16_t* scale, int64_t group, int64_t k) {
  return _mm512_set1_ps(widen(scale[group ? k / group : 0]));
}

void widen_8(const uint8_t* weight, const uint16_t* scale, int64_t group, int64_t width,
             uint16_t* out) {
  for (int64_t k = 0; k < width; k += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + k));
    const __m256i made = scaled(_mm512_cvtepu8_epi32(bytes), 128, scale_at(scale, group, k));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + k), made);
  }
}

// A code looks its number up among the sixteen that a group has.
void widen_4(const uint8_t* weight, const uint16_t* scale, int64_t group, int64_t width,
             uint16_t* out) {
  const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t k = 0; k < width; k += 32) {
    const __m512i table =
        _mm512_castsi256_si512(scaled(order, 8, scale_at(scale, group, k)));
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + k / 2));
    const __m512i both = _mm512_cvtepu8_epi32(bytes);
    const __m512i even = _mm512_and_si512(both, _mm512_set1_epi32(15));
    const __m512i odd = _mm512_slli_epi32(_mm512_srli_epi32(both, 4), 16);
    _mm512_storeu_si512(out + k, _mm512_permutexvar_epi16(_mm512_or_si512(even, odd), table));
  }
}

}  // namespace

const Kernels avx512_kernels{kFloat, bf16, kBits8, kBits4, attend_bf16, attend_float,
                             normalize, narrow_all, encode, widen_8, widen_4};

}  // namespace llamaseek
