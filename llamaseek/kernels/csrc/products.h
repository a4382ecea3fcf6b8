// Matrices of either layout times the tokens that they share: who takes which rows, and a gate's
// beside its ups. A layout M has rows, width, bytes(), place(), blank() and times(), as `Matrix` has.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "driver.h"

namespace llamaseek {

constexpr int64_t kMany = 48;        // tokens from which few bits are widened, a few rows at a time
constexpr int64_t kChunk = 1 << 19;  // numbers widened at once, which a core's cache holds
constexpr int64_t kSpan = 128;  // rows of the gate, and then of up, that are read in one stream
constexpr int64_t kPass = 4 * kTokens;  // tokens for which the weights are read once

// Tiles that a thread takes at once: few enough that threads end together, and one long stream each.
inline int64_t piece(int64_t tiles) {
  return std::clamp<int64_t>(tiles / (8 * at::get_num_threads()), 1, 16);
}

// Rows of a span: enough for one stream each, few enough that threads end together, and that a
// core's cache keeps them for all of the tokens, which are so many times kTokens.
inline int64_t span(int64_t rows, int64_t times = 1) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  return std::min(piece(tiles) * kRows, times > 1 ? kSpan / 4 : kSpan);
}

inline float gated(float gate, float up) { return gate / (1.0f + std::exp(-gate)) * up; }

// put(m, n, silu(gate) * up) for rows [begin, end), at most kSpan of them. Rows of the one between
// rows of the other would make many short streams, which memory is slower at.
template <class M, class T, class Put>
void gate_span(const M& gate, const M& up, int64_t begin, int64_t end, const T& tokens,
               const Put& put) {
  alignas(64) float gates[kSpan * kTokens], ups[kSpan * kTokens];
  gate.times(begin, end, tokens, gates);
  up.times(begin, end, tokens, ups);
  for (int64_t row = begin; row < end; row++) {
    for (int m = 0; m < tokens.count; m++) {
      const int64_t at = (row - begin) * kTokens + m;
      put(m, row, gated(gates[at], ups[at]));
    }
  }
}

// put(m, n, row n times token m), each matrix's rows behind those of the one before. `ready` has the
// tokens, kTokens at a time.
template <class M, class R, class Put>
void multiply(const std::vector<M>& all, const std::vector<R>& ready, const Put& put) {
  std::vector<int64_t> ends, offsets;
  int64_t units = 0, offset = 0, bytes = 0;
  for (const M& one : all) {
    offsets.push_back(offset);
    offset += one.rows;
    bytes += one.bytes();
    ends.push_back(units += (one.rows + kRows - 1) / kRows);
  }
  share(units, piece(units), bytes, [&](int64_t begin, int64_t end) {
    alignas(64) float found[kRows * kTokens];
    for (int64_t unit = begin; unit < end; unit++) {
      const size_t i = std::upper_bound(ends.begin(), ends.end(), unit) - ends.begin();
      const int64_t row = (unit - (i ? ends[i - 1] : 0)) * kRows;
      const int64_t last = std::min(row + kRows, all[i].rows);
      for (size_t part = 0; part < ready.size(); part++) {
        const int first = int(part) * kTokens, count = ready[part].tokens.count;
        all[i].times(row, last, ready[part].tokens, found);
        for (int64_t n = row; n < last; n++) {
          const int64_t at = offsets[i] + all[i].place(n);
          for (int m = 0; m < count; m++) put(first + m, at, found[(n - row) * kTokens + m]);
        }
      }
    }
  });
}

// Where products go: out (M, N), on top of a residual, which may be out itself.
struct Target {
  void* out;
  const void* residual;
  bool wide;
  int64_t width;

  void put(int64_t m, int64_t n, float value) const {
    const int64_t at = m * width + n;
    store(out, wide, at, residual ? value + load(residual, wide, at) : value);
  }
  // `count` outputs of token m from n on: sums, or silu(gates) * sums.
  void finish(int64_t m, int64_t n, int count, const float* sums, const float* gates) const;
};

// All of a tensor (M, N), on top of nothing.
inline Target onto(const Tensor& to) {
  return {to.data_ptr(), nullptr, is_float(to), to.size(1)};
}

// Tokens `first` and on, at most kTokens of them, in the form that the matrices read.
template <class M>
auto ready(const M& matrix, const Input& x, int64_t first) {
  const int count = int(std::min<int64_t>(x.count - first, kTokens));
  auto made = matrix.blank(count);
  share(count, 1, count * x.width * 16, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) {
      made.fill(int(m), x.data + (first + m) * x.stride, x.wide, x.norm);
    }
  });
  return made;
}

// x times all matrices; with `gate` there are two, and the result is silu(first) * second.
template <class M>
void product(const std::vector<M>& all, const Input& x, const Target& to, bool gate) {
  for (int64_t first = 0; first < x.count; first += kPass) {
    std::vector<decltype(all[0].blank(0))> made;
    const int64_t end = std::min(first + kPass, x.count);
    for (int64_t at = first; at < end; at += kTokens) made.push_back(ready(all[0], x, at));
    const auto put = [&](int64_t m, int64_t n, float value) { to.put(first + m, n, value); };
    if (!gate) {
      multiply(all, made, put);
      continue;
    }
    const int64_t rows = all[0].rows, bytes = all[0].bytes() + all[1].bytes();
    share(rows, span(rows, made.size()), bytes, [&](int64_t begin, int64_t end) {
      for (size_t part = 0; part < made.size(); part++) {
        gate_span(all[0], all[1], begin, end, made[part].tokens,
                  [&](int m, int64_t n, float value) { put(part * kTokens + m, n, value); });
      }
    });
  }
}

// The outputs of all matrices together.
template <class M>
int64_t outputs(const std::vector<M>& all, bool gate) {
  int64_t width = 0;
  for (const M& one : all) width += one.rows;
  return gate ? width / 2 : width;
}

}  // namespace llamaseek
