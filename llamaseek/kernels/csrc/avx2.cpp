// AVX2 with FMA, for every other x86-64 processor of the last ten years.
#pragma GCC optimize("O3", "no-math-errno", "no-trapping-math")
#pragma GCC target("avx2,fma")
#include <immintrin.h>

#include "common.h"

namespace llamaseek {
namespace {

inline float sum_of(__m256 x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

constexpr int kHalf = 4;  // rows of a tile whose sums fit the registers

// The tokens `first` … and the rows `row` … that a part takes.
struct Share {
  int first, row;
};

template <int M>
inline void keep(const __m256 (&sums)[kHalf][M], const Share& share, float* out) {
  float* to = out + share.row * kTokens + share.first;
  for (int r = 0; r < kHalf; r++) {
    for (int m = 0; m < M; m++) to[r * kTokens + m] = sum_of(sums[r][m]);
  }
}

inline __m256 load_bf16(const void* at) {
  const __m128i half = _mm_loadu_si128(static_cast<const __m128i*>(at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// `Load` makes eight float32 of weights; what does not fill eight goes one by one.
template <int M, class Number, __m256 (*Load)(const void*), float (*One)(Number)>
void tile_plain(const Rows& rows, const Tokens& x, const Share& share, float* out) {
  const int first = share.first;
  __m256 sums[kHalf][M] = {};
  int64_t k = 0;
  for (; k + 8 <= x.width; k += 8) {
    for (int r = 0; r < kHalf; r++) {
      const __m256 w = Load(rows.weight[share.row + r] + k * sizeof(Number));
      for (int m = 0; m < M; m++) {
        sums[r][m] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x.wide[first + m] + k), sums[r][m]);
      }
    }
  }
  keep(sums, share, out);
  for (; k < x.width; k++) {
    for (int r = 0; r < kHalf; r++) {
      const float w = One(reinterpret_cast<const Number*>(rows.weight[share.row + r])[k]);
      for (int m = 0; m < M; m++) out[(share.row + r) * kTokens + first + m] += w * x.wide[first + m][k];
    }
  }
}

inline __m256 load_float(const void* at) { return _mm256_loadu_ps(static_cast<const float*>(at)); }
inline float same(float x) { return x; }

inline __m256i load_codes(const int8_t* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

// Bytes behind a row's end read as zeros.
inline __m256i load_some(const uint8_t* at, int64_t count) {
  if (count >= 32) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  alignas(32) uint8_t bytes[32] = {};
  if (count > 0) std::memcpy(bytes, at, count);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
}

// Sums of four products in each 32-bit lane; pairs must fit 16 bits.
inline __m256i dot(__m256i is_unsigned, __m256i is_signed) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(is_unsigned, is_signed), _mm256_set1_epi16(1));
}

// Stored bytes are weights plus 128. Their magnitudes times codes with their signs fit 16 bits a
// pair, which stored bytes times codes do not.
inline __m256i dot_8(__m256i stored, __m256i codes) {
  const __m256i w = _mm256_xor_si256(stored, _mm256_set1_epi8(int8_t(0x80)));
  return dot(_mm256_abs_epi8(w), _mm256_sign_epi8(codes, w));
}

template <int M>
void tile_8(const Rows& rows, const Tokens& x, const Share& share, float* out) {
  const int first = share.first;
  __m256 sums[kHalf][M] = {};
  for (int64_t k = 0, block = 0; k < x.width; k += kBlock, block++) {
    const int64_t count = std::min<int64_t>(x.width - k, kBlock);
    for (int r = 0; r < kHalf; r++) {
      for (int part = 0; part < kBlock; part += 32) {
        if (part >= count) break;
        const int64_t group = rows.group ? (k + part) / rows.group : 0;
        const float scale = widen(rows.scale[share.row + r][group]);
        // Zeros behind the end would count as -128, but the codes there are zeros.
        const __m256i w = load_some(rows.weight[share.row + r] + k + part, count - part);
        for (int m = 0; m < M; m++) {
          const int8_t* codes = x.codes[first + m] + 2 * k + part;
          const __m256i coarse = dot_8(w, load_codes(codes));
          const __m256i fine = dot_8(w, load_codes(codes + kBlock));
          const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(coarse, 7), fine);
          const __m256 by = _mm256_set1_ps(scale * x.scale[first + m][block]);
          sums[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(both), by, sums[r][m]);
        }
      }
    }
  }
  keep(sums, share, out);
}

// The scales of the eight lanes that hold inputs k … k + 63.
inline __m256 spread(const Rows& rows, int r, int64_t k, int64_t width) {
  if (rows.group == 32) {
    const int64_t last = (width - 1) / 32, at = k / 32;
    const float low = widen(rows.scale[r][at]);
    const float high = widen(rows.scale[r][std::min(at + 1, last)]);
    return _mm256_setr_ps(low, low, low, low, high, high, high, high);
  }
  return _mm256_set1_ps(widen(rows.scale[r][rows.group ? k / rows.group : 0]));
}

template <int M>
void tile_4(const Rows& rows, const Tokens& x, const Share& share, float* out) {
  const int first = share.first;
  __m256 sums[kHalf][M] = {};
  const __m256i nibble = _mm256_set1_epi8(15);
  for (int64_t k = 0; k < x.width; k += 64) {  // half a block, 32 bytes
    const int64_t block = k / kBlock, half = k % kBlock / 2;
    for (int r = 0; r < kHalf; r++) {
      const __m256i w = load_some(rows.weight[share.row + r] + k / 2, (x.width - k) / 2);
      const __m256i even = _mm256_and_si256(w, nibble);
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
      const __m256 scale = spread(rows, share.row + r, k, x.width);
      for (int m = 0; m < M; m++) {
        const int8_t* codes = x.codes[first + m] + block * kBlock + half;
        const int32_t* bias = x.bias[first + m] + block * kLanes + half / 4;
        __m256i found = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bias));
        found = _mm256_add_epi32(found, dot(even, load_codes(codes)));
        found = _mm256_add_epi32(found, dot(odd, load_codes(codes + 64)));
        const __m256 by = _mm256_mul_ps(scale, _mm256_set1_ps(x.scale[first + m][block]));
        sums[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(found), by, sums[r][m]);
      }
    }
  }
  keep(sums, share, out);
}

using Part = void (*)(const Rows&, const Tokens&, const Share&, float*);

template <Part One, Part Two>
void by_twos(const Rows& rows, const Tokens& x, float* out) {
  for (int row = 0; row < kRows; row += kHalf) {
    int m = 0;
    for (; m + 2 <= x.count; m += 2) Two(rows, x, {m, row}, out);
    if (m < x.count) One(rows, x, {m, row}, out);
  }
}

constexpr Tile kBf16 = by_twos<tile_plain<1, uint16_t, load_bf16, widen>,
                               tile_plain<2, uint16_t, load_bf16, widen>>;
constexpr Tile kFloat =
    by_twos<tile_plain<1, float, load_float, same>, tile_plain<2, float, load_float, same>>;

// `Number` is how values are kept.
template <class Number, float (*One)(Number)>
void weigh(const Stretch& s, const float* weights, float* out) {
  std::fill(out, out + s.heads * s.values, 0.0f);
  for (int key = 0; key < s.count; key++) {
    const Number* item = static_cast<const Number*>(s.items[key]);
    for (int h = 0; h < s.heads; h++) {
      const float by = weights[h * kKeys + key];
      float* to = out + h * s.values;
      for (int64_t v = 0; v < s.values; v++) to[v] += by * One(item[v]);
    }
  }
}

void attend_bf16(const Stretch& s, const Tokens& q, float* largest, float* sum, float* out) {
  attend(s, q, largest, sum, out, kBf16, weigh<uint16_t, widen>);
}

void attend_float(const Stretch& s, const Tokens& q, float* largest, float* sum, float* out) {
  attend(s, q, largest, sum, out, kFloat, weigh<float, same>);
}

}  // namespace

const Kernels avx2_kernels{kFloat,
                           kBf16,
                           by_twos<tile_8<1>, tile_8<2>>,
                           by_twos<tile_4<1>, tile_4<2>>,
                           attend_bf16,
                           attend_float,
                           normalize,
                           narrow_all,
                           encode};

}  // namespace llamaseek
