// Products of many tokens with matrices in few bits: rows are unpacked to 16 bits a few inputs at a
// time, side by side, and all tokens meet them there. No torch in here.
//
// A sum over 32 inputs is one of whole numbers, exact in 32 bits: codes of rows are at most 4096.
#pragma once
#include <cstdint>

namespace llamaseek {

constexpr int kPanel = 32;                // rows side by side
constexpr int kGroup = 32;                // inputs that share a scale
constexpr int kDepth = 256;               // inputs unpacked at once: 16 KB, which the first cache holds
constexpr int kGroups = kDepth / kGroup;  // groups of these
constexpr int kTile = 6;                  // tokens whose sums the registers hold

// Row n's number k, of kDepth, is scale[k / 32][n] * codes[k / 2][n][k % 2] + low[k / 32][n].
struct Panel {
  alignas(64) int16_t codes[kDepth / 2][kPanel][2];
  alignas(64) float scale[kGroups][kPanel], low[kGroups][kPanel];
};

// 32 inputs of kTile tokens: codes of 16 bits, their scales, and sums of 32 numbers.
struct TileGroup {
  int16_t codes[kTile][kGroup];
  float scale[kTile], sum[kTile];
};

// `width` numbers of a row, at most kDepth, from the start of a block → their codes, and a scale and
// a low each 32.
using UnpackRow = void (*)(const uint8_t* row, int64_t width, int16_t* codes, float* scale,
                           float* low);
// Codes (kPanel, kDepth) → those of a panel.
using Interleave = void (*)(const int16_t* codes, Panel& to);
// sums (kTile, kPanel) += `groups` groups of the tokens times a panel.
using PanelTimes = void (*)(const Panel& panel, int groups, const TileGroup* tokens, float* sums);
// 32 float32 of token m of a tile → codes, scale and sum.
using EncodeTile = void (*)(const float* x, int m, TileGroup& to);
// out = sums, or silu(gates) * sums, plus residual: `count` outputs of a token, bf16 or float32.
using Finish = void (*)(const float* sums, const float* gates, const void* residual, bool wide,
                        int count, void* out);

struct PanelKernels {
  EncodeTile encode;
  Interleave interleave;
  PanelTimes times, times_low;  // without lows, and with them
  Finish finish;
};

extern const PanelKernels avx512_panels, avx2_panels;

}  // namespace llamaseek
