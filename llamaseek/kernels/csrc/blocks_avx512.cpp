// GGUF's blocks with AVX-512 VNNI and VBMI (Ice Lake, Zen 4 and later).
#pragma GCC optimize("O3", "no-math-errno", "no-trapping-math")
#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,f16c,fma,avx2,prefer-vector-width=512")
#include <immintrin.h>

#include "blocks_common.h"

namespace llamaseek {
namespace {

// 64 numbers of a row: number i is scale * codes[i] + low, with one scale and low a lane of four.
struct Step {
  __m512i codes;
  __m512 scale, low;
};

// Byte indices made once: f(i) for i in 0 … 63.
template <class F>
inline __m512i bytes_of(F f) {
  alignas(64) uint8_t all[64];
  for (int i = 0; i < 64; i++) all[i] = uint8_t(f(i));
  return _mm512_load_si512(all);
}

inline __m512i lanes_of(int low, int high) {
  return _mm512_inserti64x4(_mm512_set1_epi32(low), _mm256_set1_epi32(high), 1);
}

// Two blocks of 32 with codes of four bits: the first 16 in the lower halves of 16 bytes. A float16
// scale comes first, then a float16 minimum where there is `Low`, then fifth bits where there is
// `Fifth`.
template <int Bytes, bool Low, bool Fifth>
struct Nibbles {
  static constexpr int kNumbers = 64, kSteps = 1, kBytes = 2 * Bytes;
  static constexpr int kZero = Low ? 0 : Fifth ? 16 : 8;
  static constexpr bool kLow = Low, kParts = false;
  __m512i raw;
  __mmask64 fifth = 0;

  Nibbles(const uint8_t* at, bool whole) {
    raw = _mm512_maskz_loadu_epi8((1ull << (whole ? kBytes : Bytes)) - 1, at);
    if constexpr (Fifth) {
      uint32_t first, second = 0;
      std::memcpy(&first, at + 2, 4);
      if (whole) std::memcpy(&second, at + Bytes + 2, 4);
      fifth = first | uint64_t(second) << 32;
    }
  }

  static __m512 halves(__m512i raw, int from) {
    const __m512i index =
        bytes_of([=](int i) { return (i / 16 & 1) * Bytes + from + (i & 1); });
    return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi8(index, raw)));
  }

  Step step(int) const {
    const __m512i index =
        bytes_of([](int i) { return i / 32 * Bytes + Bytes - 16 + i % 16; });
    const __m512i shift = bytes_of([](int i) { return i % 8 * 8 + (i % 32 < 16 ? 0 : 4); });
    const __m512i spread = _mm512_permutexvar_epi8(index, raw);
    Step to;
    to.codes = _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, spread), _mm512_set1_epi8(15));
    to.scale = halves(raw, 0);
    if constexpr (Fifth) {
      to.codes = _mm512_mask_add_epi8(to.codes, fifth, to.codes, _mm512_set1_epi8(16));
    }
    if constexpr (Low) {
      to.low = halves(raw, 2);
    } else {
      to.low = _mm512_mul_ps(to.scale, _mm512_set1_ps(-kZero));
    }
    return to;
  }
};

// Two blocks of 32 signed bytes behind a float16 scale.
struct Eight {
  static constexpr int kNumbers = 64, kSteps = 1, kBytes = 68, kZero = 128;
  static constexpr bool kLow = false, kParts = false;
  const uint8_t* at;
  bool whole;

  Eight(const uint8_t* at, bool whole) : at(at), whole(whole) {}

  Step step(int) const {
    const auto load = [](const uint8_t* from) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    };
    const __m256i second = whole ? load(at + 36) : _mm256_setzero_si256();
    const uint16_t last = whole ? half_at(at + 34) : 0;
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(load(at + 2)), second, 1);
    Step to;
    to.codes = _mm512_xor_si512(both, _mm512_set1_epi8(int8_t(0x80)));
    to.scale = _mm512_cvtph_ps(
        _mm256_set_m128i(_mm_set1_epi16(int16_t(last)), _mm_set1_epi16(int16_t(half_at(at)))));
    to.low = _mm512_mul_ps(to.scale, _mm512_set1_ps(-kZero));
    return to;
  }
};

// A block of 256: eight parts of 32, each with a scale and a minimum of six bits.
template <bool Fifth>
struct Parts {
  static constexpr int kNumbers = 256, kSteps = 4, kBytes = Fifth ? 176 : 144, kZero = 0;
  static constexpr bool kLow = true, kParts = false;
  const uint8_t* at;
  __m512 factors;  // eight scales, eight minima
  __m512i fifth;

  Parts(const uint8_t* at, bool) : at(at) {
    uint32_t bits[4];
    six_bits(at + 4, bits);
    const __m512 whole = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((__m128i*)bits)));
    const float d = _cvtsh_ss(half_at(at)), low = -_cvtsh_ss(half_at(at + 2));
    const __m512 by = _mm512_insertf32x8(_mm512_set1_ps(d), _mm256_set1_ps(low), 1);
    factors = _mm512_mul_ps(whole, by);
    if constexpr (Fifth) fifth = twice(at + 16);
  }

  static __m512i twice(const uint8_t* from) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }

  Step step(int j) const {
    const __m512i shift = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    const __m512i raw = twice(at + (Fifth ? 48 : 16) + 32 * j);
    Step to;
    to.codes = _mm512_and_si512(_mm512_srlv_epi16(raw, shift), _mm512_set1_epi8(15));
    if constexpr (Fifth) {
      const __m512i bit = _mm512_inserti64x4(_mm512_set1_epi8(int8_t(1 << 2 * j)),
                                             _mm256_set1_epi8(int8_t(2 << 2 * j)), 1);
      to.codes = _mm512_mask_add_epi8(to.codes, _mm512_test_epi8_mask(fifth, bit), to.codes,
                                      _mm512_set1_epi8(16));
    }
    to.scale = _mm512_permutexvar_ps(lanes_of(2 * j, 2 * j + 1), factors);
    to.low = _mm512_permutexvar_ps(lanes_of(8 + 2 * j, 9 + 2 * j), factors);
    return to;
  }
};

// A block of 256: sixteen parts of 16 with a signed scale of eight bits, codes of six.
struct Sixes {
  static constexpr int kNumbers = 256, kSteps = 4, kBytes = 210, kZero = 32;
  static constexpr bool kLow = false, kParts = true;
  const uint8_t* at;
  float d;
  __m512 factors;

  Sixes(const uint8_t* at, bool) : at(at), d(_cvtsh_ss(half_at(at + 208))) {
    const __m128i scales = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 192));
    const __m512 whole = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(scales));
    factors = _mm512_mul_ps(whole, _mm512_set1_ps(d));
  }

  // The scales of 32 numbers, as whole ones.
  __m512i parts(int group) const {
    const int8_t* of = reinterpret_cast<const int8_t*>(at) + 192 + 2 * group;
    return _mm512_inserti64x4(_mm512_set1_epi16(of[0]), _mm256_set1_epi16(of[1]), 1);
  }

  Step step(int j) const {
    const __m512i order = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const int first = j & 1 ? 4 : 0;
    const __m512i raw = _mm512_loadu_si512(at + 64 * (j / 2));
    const __m512i low = _mm512_srlv_epi16(raw, _mm512_set1_epi16(first));
    const __m512i shift = _mm512_inserti64x4(_mm512_set1_epi16(first),
                                             _mm256_set1_epi16(first + 2), 1);
    const __m512i high = _mm512_srlv_epi16(Parts<true>::twice(at + 128 + 32 * (j / 2)), shift);
    Step to;
    to.codes = _mm512_or_si512(
        _mm512_and_si512(low, _mm512_set1_epi8(15)),
        _mm512_slli_epi16(_mm512_and_si512(high, _mm512_set1_epi8(3)), 4));
    to.scale = _mm512_permutexvar_ps(_mm512_add_epi32(order, _mm512_set1_epi32(4 * j)), factors);
    to.low = _mm512_mul_ps(to.scale, _mm512_set1_ps(-kZero));
    return to;
  }
};

template <class Kind, int R, int M>
void part(const uint8_t* const* rows, const BlockTokens& x, int first, int64_t ahead, float* out) {
  __m512 sums[R][M] = {};
  __m512 lows = _mm512_setzero_ps();  // of one row and token alone, whose additions wait for each other
  const auto block = [&](int64_t k, int64_t from, bool whole) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Kind read(rows[r] + from, whole);
      if (ahead) {
        for (int line = 0; line < Kind::kBytes; line += 64) {
          _mm_prefetch(reinterpret_cast<const char*>(rows[r] + from + ahead + line), _MM_HINT_T0);
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < Kind::kSteps; j++) {
        const Step w = read.step(j);
        const int64_t at = k + j * kStep;
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
          const __m512i coarse = _mm512_loadu_si512(x.coarse[first + m] + at);
          const __m512i fine = _mm512_loadu_si512(x.fine[first + m] + at);
          const __m512 scale = _mm512_loadu_ps(x.scale[first + m] + at / 4);
          const __m512 total = _mm512_loadu_ps(x.sums[first + m] + at / 4);
          const __m512i upper = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.codes, coarse);
          const __m512i dot = _mm512_dpbusd_epi32(_mm512_slli_epi32(upper, 7), w.codes, fine);
          const __m512 by = _mm512_mul_ps(w.scale, scale);
          __m512& low = R * M == 1 ? lows : sums[r][m];
          low = _mm512_fmadd_ps(w.low, total, low);
          sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), by, sums[r][m]);
        }
      }
    }
  };
  int64_t k = 0, from = 0;
  for (; k + Kind::kNumbers <= x.width; k += Kind::kNumbers, from += Kind::kBytes) {
    block(k, from, true);
  }
  if (k < x.width) block(k, from, false);
  if constexpr (R * M == 1) sums[0][0] = _mm512_add_ps(sums[0][0], lows);
  for (int r = 0; r < R; r++) {
    for (int m = 0; m < M; m++) out[r * kTokens + first + m] = _mm512_reduce_add_ps(sums[r][m]);
  }
}

// One token alone is bound by memory, which is fastest where it is read in order; more go
// by four tokens and four rows.
constexpr int64_t kAhead = 4096;  // bytes

template <class Kind>
void tile(const uint8_t* const* rows, const BlockTokens& x, int64_t ahead, float* out) {
  constexpr BlockPart some[] = {part<Kind, 4, 1>, part<Kind, 4, 2>, part<Kind, 4, 3>,
                                part<Kind, 4, 4>};
  if (x.count == 1) {
    for (int row = 0; row < kRows; row++) {
      part<Kind, 1, 1>(rows + row, x, 0, kAhead, out + row * kTokens);
    }
    return;
  }
  for (int row = 0; row < kRows; row += 4) {
    for (int first = 0; first < x.count; first += 4) {
      const int count = std::min(x.count - first, 4);
      some[count - 1](rows + row, x, first, first ? 0 : ahead, out + row * kTokens);
    }
  }
}

// 32 codes of a step as whole numbers around zero.
template <class Kind>
inline __m512i centered(const Step& w, int half) {
  const __m256i codes = half ? _mm512_extracti64x4_epi64(w.codes, 1) : _mm512_castsi512_si256(w.codes);
  return _mm512_sub_epi16(_mm512_cvtepu8_epi16(codes), _mm512_set1_epi16(Kind::kZero));
}

inline float lane_of(__m512 x, int half) {
  return _mm_cvtss_f32(half ? _mm512_extractf32x4_ps(x, 2) : _mm512_castps512_ps128(x));
}

template <class Kind>
void unpack_row(const uint8_t* row, int64_t width, int16_t* codes, float* scale, float* low) {
  for (int64_t k = 0; k < width; k += Kind::kNumbers, row += Kind::kBytes) {
    const Kind read(row, k + Kind::kNumbers <= width);
    for (int j = 0; j < Kind::kSteps; j++) {
      const Step w = read.step(j);
      for (int half = 0; half < 2 && k + j * kStep + half * kGroup < width; half++) {
        const int64_t at = k + j * kStep + half * kGroup;
        __m512i whole = centered<Kind>(w, half);
        if constexpr (Kind::kParts) {  // two scales, which are whole numbers times another
          whole = _mm512_mullo_epi16(whole, read.parts(2 * j + half));
          scale[at / kGroup] = read.d;
        } else {
          scale[at / kGroup] = lane_of(w.scale, half);
        }
        _mm512_storeu_si512(codes + at, whole);
        low[at / kGroup] = Kind::kLow ? lane_of(w.low, half) : 0.0f;
      }
    }
  }
}

template <class Kind, int Numbers, int Bytes>
constexpr BlockKind kind(int type) {
  constexpr UnpackRow unpack = unpack_row<Kind>;
  return {type, Numbers, Bytes, tile<Kind>, widen_row<unpack, Numbers, Bytes>, unpack, Kind::kLow};
}

}  // namespace

const BlockKernels avx512_blocks{
    encode_groups,
    {kind<Nibbles<18, false, false>, 32, 18>(2), kind<Nibbles<20, true, false>, 32, 20>(3),
     kind<Nibbles<22, false, true>, 32, 22>(6), kind<Eight, 32, 34>(8),
     kind<Parts<false>, 256, 144>(12), kind<Parts<true>, 256, 176>(13), kind<Sixes, 256, 210>(14)}};

}  // namespace llamaseek
