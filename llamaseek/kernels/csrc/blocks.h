// Matrices in GGUF's blocks, multiplied as they lie in a file. No torch in here.
//
// A row of K numbers is a row of blocks. Layouts: llama.cpp ggml/src/ggml-common.h. Activations are
// rounded to 15 bits in two bytes, a scale for every 32 of a token: a byte alone, as llama.cpp has
// it, changes one best token in twenty of a small model.
#pragma once
#include <cstdint>

#include "kernels.h"
#include "panels.h"

namespace llamaseek {

constexpr int kStep = 64;  // numbers that a tile takes at once; activations are padded to it

// Activations of up to kTokens tokens. A lane is four numbers that lie beside each other.
struct BlockTokens {
  int count;
  int64_t width;                 // K
  const int8_t* coarse[kTokens];  // K numbers are 128 * coarse + fine, from -64 to 63
  const int8_t* fine[kTokens];
  const float* scale[kTokens];   // one a lane: the scale of its 32 numbers
  const float* sums[kTokens];    // one a lane: the sum of its four numbers, times the scale
};

// out[r * kTokens + m] = row r, of kRows, times token m; meanwhile fetches what lies `ahead` bytes
// further.
using BlockTile = void (*)(const uint8_t* const* rows, const BlockTokens& tokens, int64_t ahead,
                           float* out);
// A row of K numbers as float32.
using WidenRow = void (*)(const uint8_t* row, int64_t width, float* out);
// float32 (K) → coarse and fine numbers, scale and sums.
using EncodeGroups = void (*)(const float* x, int64_t width, int8_t* coarse, int8_t* fine,
                              float* scale, float* sums);

struct BlockKind {
  int type;            // its number in ggml.h
  int numbers, bytes;  // of a block
  BlockTile tile;
  WidenRow widen;
  UnpackRow unpack;
  bool lows;           // whether its numbers have one
};

constexpr int kBlockKinds = 7;
struct BlockKernels {
  EncodeGroups encode;
  BlockKind kinds[kBlockKinds];
};

extern const BlockKernels avx512_blocks, avx2_blocks;

}  // namespace llamaseek
