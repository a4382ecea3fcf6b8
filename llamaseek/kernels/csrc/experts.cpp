// The routed experts of a mixture: each is read once for all tokens that chose it.
#include <vector>

#include "ops.h"
#include "products.h"

namespace llamaseek {
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
Matrix stacked(const Tensor& weight, const std::optional<Tensor>& scale, int64_t width,
               int64_t bits) {
  const auto flat = [](const Tensor& x) { return x.view({-1, x.size(2)}); };
  return Matrix(flat(weight), scale ? std::optional(flat(*scale)) : std::nullopt, width, bits);
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
  const Matrix ups = stacked(gate_up, gate_up_scale, width, bits);
  const Matrix downs = stacked(down, down_scale, hidden, down_bits);
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
                  std::min((unit + 1) * rows, hidden), tokens,
                  [&](int m, int64_t n, float v) { to_inner[visit.pairs[m] * hidden + n] = v; });
      });
  each_visit(
      all, hidden, int(down_bits), (width + kRows - 1) / kRows, width * downs.stride,
      [&](int64_t pair) { return std::pair(row_of(inner, pair), true); },
      [&](const Visit& visit, const Tokens& tokens, int64_t unit) {
        alignas(64) float found[kRows * kTokens];
        const int64_t first = unit * kRows, last = std::min(first + kRows, width);
        downs.part(visit.expert * width, width).times(first, last, tokens, found);
        for (int64_t n = first; n < last; n++) {
          for (int m = 0; m < tokens.count; m++) {
            to_made[visit.pairs[m] * width + n] = found[(n - first) * kTokens + m];
          }
        }
      });
  Tensor out = at::empty(x.sizes(), x.options());
  weigh(made, shares, out);
  return out;
}

}  // namespace llamaseek
