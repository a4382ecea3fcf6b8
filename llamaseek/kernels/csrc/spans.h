// Rows of a matrix in long streams: how many a thread takes, and a gate's beside its ups.
#pragma once
#include <algorithm>
#include <cmath>

#include "driver.h"

namespace llamaseek {

// Tiles that a thread takes at once: few enough that threads end together, and one long stream each.
inline int64_t piece(int64_t tiles) {
  return std::clamp<int64_t>(tiles / (8 * at::get_num_threads()), 1, 16);
}

inline float gated(float gate, float up) { return gate / (1.0f + std::exp(-gate)) * up; }

// Found [r * kTokens + m] for `count` rows of a matrix from `first` on, in one stream.
inline void span_of(const Matrix& matrix, int64_t first, int64_t count, const Tokens& tokens, Tile tile,
                    float* found) {
  for (int64_t row = 0; row < count; row += kRows) {
    Rows rows{};
    for (int r = 0; r < kRows; r++) matrix.point(rows, r, first + row + r, kRows);
    tile(rows, tokens, found + row * kTokens);
  }
}

constexpr int64_t kSpan = 128;  // rows of the gate, and then of up, that are read in one stream

// put(m, n, silu(gate) * up) for rows [begin, end), at most kSpan of them. Rows of the one between
// rows of the other would make many short streams, which memory is slower at.
template <class Put>
void gate_span(const Matrix& gate, const Matrix& up, int64_t begin, int64_t end,
               const Tokens& tokens, Tile tile, const Put& put) {
  alignas(64) float gates[kSpan * kTokens], ups[kSpan * kTokens];
  span_of(gate, begin, end - begin, tokens, tile, gates);
  span_of(up, begin, end - begin, tokens, tile, ups);
  for (int64_t row = begin; row < end; row++) {
    for (int m = 0; m < tokens.count; m++) {
      const int64_t at = (row - begin) * kTokens + m;
      put(m, row, gated(gates[at], ups[at]));
    }
  }
}

// Rows of a span: enough for one stream each, few enough that threads end together.
inline int64_t span(int64_t rows) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  return std::min(piece(tiles) * kRows, kSpan);
}

}  // namespace llamaseek
