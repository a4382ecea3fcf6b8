// What the instruction sets' files offer, and the plain data that they work on. No torch in here.
//
// M tokens, K inputs, N outputs (weight rows), H query heads, S cached keys.
#pragma once
#include <cstdint>

namespace llamaseek {

constexpr int kRows = 8;     // weight rows that a tile takes at once
constexpr int kTokens = 16;  // most tokens that share one pass over the weights
constexpr int kBlock = 128;  // activations that share a scale
constexpr int kLanes = 16;   // 32-bit sums that a block of products is kept in
constexpr int kKeys = 256;   // cached keys whose scores are held at once

// Activations of up to kTokens tokens, by token, in the forms that a tile reads.
struct Tokens {
  int count;
  int64_t width;                 // K
  const uint16_t* bf16[kTokens];   // K numbers
  const float* wide[kTokens];      // the same in float32
  // Whole blocks of kBlock numbers of 8 bits, zeros behind the last. For weights of 8 bits they have
  // 15, 128 * coarse + fine: a block's coarse parts, then its fine ones from -64 to 63.
  const int8_t* codes[kTokens];
  const int32_t* bias[kTokens];    // kLanes a block: minus the zero point times the lane's numbers
  const float* scale[kTokens];     // one a block; for weights of 8 bits all alike
};

// A tile's rows of a matrix. Packed ones have bf16 scales: one a row (group 0), or one a group of
// inputs.
struct Rows {
  const uint8_t* weight[kRows];
  const uint16_t* scale[kRows];
  const uint8_t* next[kRows];  // what comes after them, to be fetched meanwhile, or null
  int64_t group;
};

// out[r * kTokens + m] = row r times token m.
using Tile = void (*)(const Rows& rows, const Tokens& tokens, float* out);

// One stretch of up to kKeys cached keys for the query heads that share them.
struct Stretch {
  int heads;               // query heads, of one token or of more
  int count;               // keys
  int seen[kTokens];       // the first keys, which each of them sees
  int64_t width, values;   // numbers of a key, and of a value
  int64_t bytes;           // of a value that is to be fetched, 0 where it is a part of its key
  float scale;             // of the scores
  const void* keys[kKeys];
  const void* items[kKeys];  // values
};

// Fills each head's largest score, sum of exponentials, and weighed values (heads, values).
using Attend = void (*)(const Stretch& stretch, const Tokens& queries, float* largest, float* sum,
                        float* out);

// One token's x (K, bf16 or float32) scaled to unit mean square and by weight, as float32; a plain
// copy where weight is null.
using Normalize = void (*)(const void* x, bool is_float, const void* weight, bool weight_is_float,
                           float eps, int64_t width, float* out);
// float32 → bf16, rounded to nearest even.
using Narrow = void (*)(const float* x, int64_t width, uint16_t* out);
// float32 → codes, bias and scale of each block; 4-bit weights want even inputs before odd ones.
using Encode = void (*)(const float* x, int64_t width, int bits, int8_t* codes, int32_t* bias,
                        float* scale);

// A packed row of K numbers → bf16. K is a multiple of 32, and so is a group; 0 is one a row.
using Widen = void (*)(const uint8_t* weight, const uint16_t* scale, int64_t group, int64_t width,
                       uint16_t* out);

struct Kernels {
  Tile wide, bf16, bits8, bits4;
  Attend attend_bf16, attend_float;
  Normalize normalize;
  Narrow narrow;
  Encode encode;
  Widen widen8, widen4;  // null where the processor has no products of bf16
};

extern const Kernels avx512_kernels, avx2_kernels;

}  // namespace llamaseek
