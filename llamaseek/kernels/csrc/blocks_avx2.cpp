// GGUF's blocks with AVX2, for every other x86-64 processor of the last ten years.
#pragma GCC optimize("O3", "no-math-errno", "no-trapping-math")
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#include "blocks_common.h"

namespace llamaseek {
namespace {

// 32 numbers of a row: number i is scale * codes[i] + low, with one scale and low a lane of four.
struct Step {
  __m256i codes;
  __m256 scale, low;
};

inline __m128i load_16(const uint8_t* at) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
}

inline __m256i load_32(const void* at) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}

inline __m256 half_of(const uint8_t* at) { return _mm256_set1_ps(_cvtsh_ss(half_at(at))); }

// Bit i of 32 in the sign bit of byte i.
inline __m256i bits_apart(uint32_t bits) {
  const __m256i from = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202,
                                          0x0303030303030303);
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(int(bits)), from);
  const __m256i mask = _mm256_set1_epi64x(int64_t(0x8040201008040201));
  return _mm256_cmpeq_epi8(_mm256_and_si256(spread, mask), mask);
}

// A block of 32 with codes of four bits; see blocks_avx512.cpp.
template <int Bytes, bool Low, bool Fifth>
struct Nibbles {
  static constexpr int kNumbers = 32, kSteps = 1, kBytes = Bytes;
  static constexpr int kZero = Low ? 0 : Fifth ? 16 : 8;
  static constexpr bool kSigned = false, kLow = Low, kParts = false;
  const uint8_t* at;

  explicit Nibbles(const uint8_t* at) : at(at) {}

  Step step(int) const {
    const __m128i raw = load_16(at + Bytes - 16);
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(raw, 4), raw);
    Step to{_mm256_and_si256(both, _mm256_set1_epi8(15)), half_of(at), {}};
    if constexpr (Fifth) {
      uint32_t bits;
      std::memcpy(&bits, at + 2, 4);
      const __m256i fifth = _mm256_and_si256(bits_apart(bits), _mm256_set1_epi8(16));
      to.codes = _mm256_or_si256(to.codes, fifth);
    }
    to.low = Low ? half_of(at + 2) : _mm256_mul_ps(to.scale, _mm256_set1_ps(-kZero));
    return to;
  }
};

struct Eight {
  static constexpr int kNumbers = 32, kSteps = 1, kBytes = 34, kZero = 0;
  static constexpr bool kSigned = true, kLow = false, kParts = false;
  const uint8_t* at;

  explicit Eight(const uint8_t* at) : at(at) {}

  Step step(int) const { return {load_32(at + 2), half_of(at), _mm256_setzero_ps()}; }
};

template <bool Fifth>
struct Parts {
  static constexpr int kNumbers = 256, kSteps = 8, kBytes = Fifth ? 176 : 144, kZero = 0;
  static constexpr bool kSigned = false, kLow = true, kParts = false;
  const uint8_t* at;
  uint8_t bits[16];
  float d, low;

  explicit Parts(const uint8_t* at)
      : at(at), d(_cvtsh_ss(half_at(at))), low(-_cvtsh_ss(half_at(at + 2))) {
    uint32_t found[4];
    six_bits(at + 4, found);
    std::memcpy(bits, found, 16);
  }

  Step step(int j) const {
    const __m256i raw = load_32(at + (Fifth ? 48 : 16) + j / 2 * 32);
    const __m256i some = j & 1 ? _mm256_srli_epi16(raw, 4) : raw;
    Step to{_mm256_and_si256(some, _mm256_set1_epi8(15)), _mm256_set1_ps(d * bits[j]),
            _mm256_set1_ps(low * bits[8 + j])};
    if constexpr (Fifth) {
      const __m256i bit = _mm256_set1_epi8(int8_t(1 << j));
      const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(load_32(at + 16), bit), bit);
      to.codes = _mm256_or_si256(to.codes, _mm256_and_si256(set, _mm256_set1_epi8(16)));
    }
    return to;
  }
};

struct Sixes {
  static constexpr int kNumbers = 256, kSteps = 8, kBytes = 210, kZero = 32;
  static constexpr bool kSigned = false, kLow = false, kParts = true;
  const uint8_t* at;
  float d;

  explicit Sixes(const uint8_t* at) : at(at), d(_cvtsh_ss(half_at(at + 208))) {}

  // The scale of 16 numbers, as a whole one.
  int16_t part(int i) const { return int8_t(at[192 + i]); }

  Step step(int j) const {
    const __m256i raw = load_32(at + j / 4 * 64 + (j & 1) * 32);
    const __m256i low = j & 2 ? _mm256_srli_epi16(raw, 4) : raw;
    const __m256i high = _mm256_srl_epi16(load_32(at + 128 + j / 4 * 32),
                                          _mm_cvtsi32_si128((j & 3) * 2));
    const __m128 first = _mm_set1_ps(d * part(2 * j)), second = _mm_set1_ps(d * part(2 * j + 1));
    Step to{_mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)),
                            _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi8(3)), 4)),
            _mm256_set_m128(second, first),
            {}};
    to.low = _mm256_mul_ps(to.scale, _mm256_set1_ps(-kZero));
    return to;
  }
};

// Sums of four products in each 32-bit lane. Codes below 64 times bytes fit 16 bits a pair; signed
// bytes do where magnitudes are multiplied by numbers with their signs.
template <bool Signed>
inline __m256i dot(__m256i codes, __m256i x) {
  const __m256i pairs = Signed ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes))
                               : _mm256_maddubs_epi16(codes, x);
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

inline float sum_of(__m256 x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

template <class Kind, int R, int M>
void part(const uint8_t* const* rows, const BlockTokens& x, int first, int64_t ahead, float* out) {
  __m256 sums[R][M] = {};
  for (int64_t k = 0, from = 0; k < x.width; k += Kind::kNumbers, from += Kind::kBytes) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const Kind read(rows[r] + from);
      if (ahead) {
        _mm_prefetch(reinterpret_cast<const char*>(rows[r] + from + ahead), _MM_HINT_T0);
      }
#pragma GCC unroll 8
      for (int j = 0; j < Kind::kSteps; j++) {
        const Step w = read.step(j);
        const int64_t at = k + j * 32;
#pragma GCC unroll 2
        for (int m = 0; m < M; m++) {
          const __m256i upper = dot<Kind::kSigned>(w.codes, load_32(x.coarse[first + m] + at));
          const __m256i lower = dot<Kind::kSigned>(w.codes, load_32(x.fine[first + m] + at));
          const __m256 found =
              _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(upper, 7), lower));
          const __m256 by = _mm256_mul_ps(w.scale, _mm256_loadu_ps(x.scale[first + m] + at / 4));
          const __m256 total = _mm256_loadu_ps(x.sums[first + m] + at / 4);
          sums[r][m] = _mm256_fmadd_ps(w.low, total, _mm256_fmadd_ps(found, by, sums[r][m]));
        }
      }
    }
  }
  for (int r = 0; r < R; r++) {
    for (int m = 0; m < M; m++) out[r * kTokens + first + m] = sum_of(sums[r][m]);
  }
}

template <class Kind>
void tile(const uint8_t* const* rows, const BlockTokens& x, int64_t ahead, float* out) {
  for (int row = 0; row < kRows; row += 4) {
    int m = 0;
    for (; m + 2 <= x.count; m += 2) {
      part<Kind, 4, 2>(rows + row, x, m, m ? 0 : ahead, out + row * kTokens);
    }
    if (m < x.count) part<Kind, 4, 1>(rows + row, x, m, m ? 0 : ahead, out + row * kTokens);
  }
}

template <class Kind>
void unpack_row(const uint8_t* row, int64_t width, int16_t* codes, float* scale, float* low) {
  for (int64_t k = 0; k < width; k += Kind::kNumbers, row += Kind::kBytes) {
    const Kind read(row);
    for (int j = 0; j < Kind::kSteps; j++) {
      const Step w = read.step(j);
      const int64_t at = k + j * kGroup;
      for (int half = 0; half < 2; half++) {
        const __m128i some = half ? _mm256_extracti128_si256(w.codes, 1)
                                  : _mm256_castsi256_si128(w.codes);
        __m256i whole = Kind::kSigned ? _mm256_cvtepi8_epi16(some) : _mm256_cvtepu8_epi16(some);
        whole = _mm256_sub_epi16(whole, _mm256_set1_epi16(Kind::kZero));
        if constexpr (Kind::kParts) {  // two scales, which are whole numbers times another
          whole = _mm256_mullo_epi16(whole, _mm256_set1_epi16(read.part(2 * j + half)));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + at + 16 * half), whole);
      }
      if constexpr (Kind::kParts) {
        scale[at / kGroup] = read.d;
      } else {
        scale[at / kGroup] = _mm256_cvtss_f32(w.scale);
      }
      low[at / kGroup] = Kind::kLow ? _mm256_cvtss_f32(w.low) : 0.0f;
    }
  }
}

template <class Kind, int Numbers, int Bytes>
constexpr BlockKind kind(int type) {
  constexpr UnpackRow unpack = unpack_row<Kind>;
  return {type, Numbers, Bytes, tile<Kind>, widen_row<unpack, Numbers, Bytes>, unpack, Kind::kLow};
}

}  // namespace

const BlockKernels avx2_blocks{
    encode_groups,
    {kind<Nibbles<18, false, false>, 32, 18>(2), kind<Nibbles<20, true, false>, 32, 20>(3),
     kind<Nibbles<22, false, true>, 32, 22>(6), kind<Eight, 32, 34>(8),
     kind<Parts<false>, 256, 144>(12), kind<Parts<true>, 256, 176>(13), kind<Sixes, 256, 210>(14)}};

}  // namespace llamaseek
