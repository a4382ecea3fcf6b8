// Matrix products of a few tokens: every weight is read once, whatever the number of tokens.
#include <algorithm>
#include <cmath>
#include <vector>

#include "driver.h"
#include "ops.h"

namespace llamaseek {
namespace {

// Tiles that a thread takes at once: few enough that threads end together, and one long stream each.
int64_t piece(int64_t tiles) {
  return std::clamp<int64_t>(tiles / (8 * at::get_num_threads()), 1, 16);
}

Prepared prepare(const Tensor& x, int64_t first, int bits, const Prepared::Norm& norm) {
  const int count = int(std::min<int64_t>(x.size(0) - first, kTokens));
  Prepared ready(count, x.size(1), bits);
  const int64_t bytes = count * x.size(1) * x.element_size();
  share(count, 1, bytes, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) {
      ready.fill(int(m), row_of(x, first + m), is_float(x), norm);
    }
  });
  return ready;
}

std::vector<Matrix> matrices(at::TensorList weights, at::TensorList scales,
                             int64_t width) {
  std::vector<Matrix> found;
  for (size_t i = 0; i < weights.size(); i++) {
    found.emplace_back(weights[i], scales.empty() ? std::nullopt : std::optional(scales[i]), width);
  }
  return found;
}

float gated(float gate, float up) { return gate / (1.0f + std::exp(-gate)) * up; }

// Where tiles put what they made: rows of out (M, N) from `first` on, on top of a residual.
struct Target {
  void* out;
  const void* residual;
  bool wide;
  int64_t width, first;

  void put(int64_t m, int64_t n, float value) const {
    const int64_t at = (first + m) * width + n;
    store(out, wide, at, residual ? value + load(residual, wide, at) : value);
  }
};

// out[:, offset + n] = matrix n · tokens, for each matrix behind the one before.
void multiply(const std::vector<Matrix>& all, const Tokens& tokens, Tile tile, const Target& to) {
  std::vector<int64_t> ends, offsets;
  int64_t units = 0, offset = 0, bytes = 0;
  for (const Matrix& one : all) {
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
      Rows rows{};
      for (int r = 0; r < kRows; r++) all[i].point(rows, r, row + r, kRows);
      tile(rows, tokens, found);
      for (int r = 0; r < kRows && row + r < all[i].rows; r++) {
        for (int m = 0; m < tokens.count; m++) {
          to.put(m, offsets[i] + row + r, found[r * kTokens + m]);
        }
      }
    }
  });
}

// Found [r * kTokens + m] for `count` rows of a matrix from `first` on, in one stream.
void span_of(const Matrix& matrix, int64_t first, int64_t count, const Tokens& tokens, Tile tile,
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
int64_t span(int64_t rows) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  return std::min(piece(tiles) * kRows, kSpan);
}

}  // namespace

Tensor linear(const Tensor& x, const std::optional<Tensor>& norm, double eps,
              at::TensorList weights, at::TensorList scales, int64_t bits,
              const std::optional<Tensor>& residual, bool gate) {
  const auto all = matrices(weights, scales, x.size(1));
  int64_t width = 0;
  for (const Matrix& one : all) width += one.rows;
  if (gate) width /= 2;
  Tensor out = at::empty({x.size(0), width}, x.options());
  const Tile tile = tile_for(bits);
  Target to{out.data_ptr(), residual ? residual->const_data_ptr() : nullptr, is_float(x), width, 0};
  for (; to.first < x.size(0); to.first += kTokens) {
    const Prepared ready = prepare(x, to.first, int(bits), norm_of(norm, eps));
    if (!gate) {
      multiply(all, ready.tokens, tile, to);
      continue;
    }
    share(width, span(width), 2 * all[0].bytes(), [&](int64_t begin, int64_t end) {
      gate_span(all[0], all[1], begin, end, ready.tokens, tile,
                [&](int m, int64_t n, float value) { to.put(m, n, value); });
    });
  }
  return out;
}

Tensor float_products(const Tensor& x, const Tensor& weight) {
  const int bits = is_float(weight) ? 32 : 16;
  const std::vector<Matrix> all{Matrix(weight, std::nullopt, x.size(1))};
  Tensor out = at::empty({x.size(0), weight.size(0)}, x.options().dtype(at::kFloat));
  Target to{out.data_ptr(), nullptr, true, weight.size(0), 0};
  for (; to.first < x.size(0); to.first += kTokens) {
    multiply(all, prepare(x, to.first, bits, {}).tokens, tile_for(bits), to);
  }
  return out;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const int64_t width = x.size(1);
  const bool wide = is_float(x);
  const Prepared::Norm by = norm_of(weight, eps);
  Tensor out = at::empty({x.size(0), width}, x.options());
  std::vector<float> scaled(width);
  for (int64_t m = 0; m < x.size(0); m++) {
    kernels().normalize(row_of(x, m), wide, by.weight, by.is_float, by.eps, width, scaled.data());
    for (int64_t i = 0; i < width; i++) store(out.data_ptr(), wide, m * width + i, scaled[i]);
  }
  return out;
}

Tensor linear_heads(const Tensor& x, const Tensor& weight) {
  const int64_t tokens = x.size(0), heads = x.size(1), width = x.size(2), rows = weight.size(1);
  const int bits = is_float(weight) ? 32 : 16;
  const Tile tile = tile_for(bits);
  Tensor out = at::empty({tokens, heads, rows}, x.options());
  const int64_t units = (rows + kRows - 1) / kRows;
  const int64_t head_bytes = x.stride(1) * x.element_size();
  for (int64_t first = 0; first < tokens; first += kTokens) {
    const int count = int(std::min<int64_t>(tokens - first, kTokens));
    share(heads, 1, weight.nbytes(), [&](int64_t begin, int64_t end) {
      Prepared ready(count, width, bits);
      alignas(64) float found[kRows * kTokens];
      for (int64_t head = begin; head < end; head++) {
        for (int m = 0; m < count; m++) {
          ready.fill(m, row_of(x, first + m) + head * head_bytes, is_float(x), {});
        }
        const Matrix matrix(weight[head], std::nullopt, width);
        for (int64_t unit = 0; unit < units; unit++) {
          Rows tile_of{};
          for (int r = 0; r < kRows; r++) matrix.point(tile_of, r, unit * kRows + r, kRows);
          tile(tile_of, ready.tokens, found);
          for (int r = 0; r < kRows && unit * kRows + r < rows; r++) {
            for (int m = 0; m < count; m++) {
              const int64_t at = ((first + m) * heads + head) * rows + unit * kRows + r;
              store(out.data_ptr(), is_float(x), at, found[r * kTokens + m]);
            }
          }
        }
      }
    });
  }
  return out;
}

namespace {

// The (token, choice) pairs of one expert, up to kTokens of them.
struct Visit {
  int64_t expert;
  std::vector<int64_t> pairs;
};

std::vector<Visit> visits(const Tensor& chosen, int64_t experts) {
  const int64_t* ids = chosen.const_data_ptr<int64_t>();
  std::vector<Visit> open(experts), found;
  for (int64_t pair = 0; pair < chosen.numel(); pair++) {
    Visit& visit = open[ids[pair]];
    visit.expert = ids[pair];
    visit.pairs.push_back(pair);
    if (int64_t(visit.pairs.size()) == kTokens) {
      found.push_back(visit);
      visit.pairs.clear();
    }
  }
  for (Visit& visit : open) {
    if (!visit.pairs.empty()) found.push_back(visit);
  }
  return found;
}

// Runs work(visit, ready, unit) for `units` units of each visit, all visits in one go; each reads
// `bytes` of weights.
template <class Row, class Work>
void each_visit(const std::vector<Visit>& all, int64_t width, int bits, int64_t units,
                int64_t bytes, const Row& row, const Work& work) {
  std::vector<Prepared> ready;
  for (const Visit& visit : all) ready.emplace_back(int(visit.pairs.size()), width, bits);
  const int64_t count = int64_t(all.size());
  share(count, 1, count * width * int64_t(sizeof(float)), [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; v++) {
      for (size_t m = 0; m < all[v].pairs.size(); m++) {
        auto [from, wide] = row(all[v].pairs[m]);
        ready[v].fill(int(m), from, wide, {});
      }
    }
  });
  share(count * units, piece(count * units), count * bytes, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at++) {
      work(all[at / units], ready[at / units].tokens, at % units);
    }
  });
}

// All experts' weights (E, N, K) as one matrix, one below the other.
Matrix stacked(const Tensor& weight, const std::optional<Tensor>& scale, int64_t width) {
  const auto flat = [](const Tensor& x) { return x.view({-1, x.size(2)}); };
  return Matrix(flat(weight), scale ? std::optional(flat(*scale)) : std::nullopt, width);
}

// out (M, K): what each token's choices made (M, C, K), weighed by its gates (M, C).
void weigh(const Tensor& made, const Tensor& gates, Tensor& out) {
  const int64_t width = out.size(1), choices = gates.size(1);
  const float *from = made.const_data_ptr<float>(), *by = gates.const_data_ptr<float>();
  for (int64_t m = 0; m < out.size(0); m++) {
    for (int64_t n = 0; n < width; n++) {
      float sum = 0;
      for (int64_t pair = m * choices; pair < (m + 1) * choices; pair++) {
        sum += by[pair] * from[pair * width + n];
      }
      store(out.data_ptr(), is_float(out), m * width + n, sum);
    }
  }
}

}  // namespace

Tensor experts(const Tensor& x, const Tensor& chosen, const Tensor& gates, const Tensor& gate_up,
               const std::optional<Tensor>& gate_up_scale, const Tensor& down,
               const std::optional<Tensor>& down_scale, int64_t bits, int64_t down_bits) {
  TORCH_CHECK(gate_up.dim() == 3 && down.dim() == 3, "experts: weights have three dimensions");
  const int64_t width = x.size(1), hidden = gate_up.size(1) / 2, choices = chosen.size(1);
  const Tensor ids = chosen.contiguous(), shares = gates.to(at::kFloat).contiguous();
  const auto all = visits(ids, gate_up.size(0));
  const Tile tile = tile_for(bits), down_tile = tile_for(down_bits);
  const Matrix ups = stacked(gate_up, gate_up_scale, width);
  const Matrix downs = stacked(down, down_scale, hidden);
  Tensor inner = at::empty({ids.numel(), hidden}, at::kFloat);
  Tensor made = at::empty({ids.numel(), width}, at::kFloat);
  float *to_inner = inner.data_ptr<float>(), *to_made = made.data_ptr<float>();
  const int64_t rows = span(hidden);
  each_visit(
      all, width, int(bits), (hidden + rows - 1) / rows, 2 * hidden * ups.stride,
      [&](int64_t pair) { return std::pair(row_of(x, pair / choices), is_float(x)); },
      [&](const Visit& visit, const Tokens& tokens, int64_t unit) {
        const int64_t first = visit.expert * 2 * hidden;
        gate_span(ups.part(first, hidden), ups.part(first + hidden, hidden), unit * rows,
                  std::min((unit + 1) * rows, hidden), tokens, tile,
                  [&](int m, int64_t n, float v) { to_inner[visit.pairs[m] * hidden + n] = v; });
      });
  each_visit(
      all, hidden, int(down_bits), (width + kRows - 1) / kRows, width * downs.stride,
      [&](int64_t pair) { return std::pair(row_of(inner, pair), true); },
      [&](const Visit& visit, const Tokens& tokens, int64_t unit) {
        alignas(64) float found[kRows * kTokens];
        Rows rows{};
        const Matrix matrix = downs.part(visit.expert * width, width);
        for (int r = 0; r < kRows; r++) matrix.point(rows, r, unit * kRows + r, kRows);
        down_tile(rows, tokens, found);
        for (int r = 0; r < kRows && unit * kRows + r < width; r++) {
          for (int m = 0; m < tokens.count; m++) {
            to_made[visit.pairs[m] * width + unit * kRows + r] = found[r * kTokens + m];
          }
        }
      });
  Tensor out = at::empty(x.sizes(), x.options());
  weigh(made, shares, out);
  return out;
}

}  // namespace llamaseek
