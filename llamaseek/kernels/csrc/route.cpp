// Which experts a token goes to: DeepSeek-V3's choice (report, eq. 13-16), as `Router` makes it.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "driver.h"
#include "ops.h"

namespace llamaseek {
namespace {

// The sum of the two best of `count` numbers, or the only one.
float best_two(const float* from, int64_t count) {
  if (count == 1) return *from;
  float best = -INFINITY, second = -INFINITY;
  for (int64_t i = 0; i < count; i++) {
    second = std::max(second, std::min(best, from[i]));
    best = std::max(best, from[i]);
  }
  return best + second;
}

// Indices of the `most` largest numbers, in descending order; of equals the first.
void largest(const std::vector<float>& from, int64_t most, std::vector<int64_t>& to) {
  to.resize(from.size());
  std::iota(to.begin(), to.end(), 0);
  const auto better = [&](int64_t a, int64_t b) {
    return from[a] != from[b] ? from[a] > from[b] : a < b;
  };
  std::partial_sort(to.begin(), to.begin() + most, to.end(), better);
  to.resize(most);
}

// Minus infinity for experts of all but the `kept` best groups.
void limit_groups(std::vector<float>& biased, int64_t groups, int64_t kept) {
  const int64_t each = int64_t(biased.size()) / groups;
  std::vector<float> sums(groups), limited(biased.size(), -INFINITY);
  for (int64_t g = 0; g < groups; g++) sums[g] = best_two(&biased[g * each], each);
  std::vector<int64_t> best;
  largest(sums, kept, best);
  for (int64_t g : best) std::copy_n(&biased[g * each], each, &limited[g * each]);
  biased.swap(limited);
}

}  // namespace

std::tuple<Tensor, Tensor> route(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                 int64_t groups, int64_t kept, int64_t choices, bool normalize,
                                 double scale) {
  const int64_t count = x.size(0), experts = weight.size(0);
  const Tensor scores = float_products(x, weight);
  Tensor chosen = at::empty({count, choices}, x.options().dtype(at::kLong));
  Tensor gates = at::empty({count, choices}, scores.options());
  const float* by = bias.const_data_ptr<float>();
  std::vector<float> score(experts), biased(experts);
  std::vector<int64_t> best;
  for (int64_t m = 0; m < count; m++) {
    const float* from = scores.const_data_ptr<float>() + m * experts;
    for (int64_t e = 0; e < experts; e++) {
      score[e] = 1.0f / (1.0f + std::exp(-from[e]));
      biased[e] = score[e] + by[e];
    }
    if (kept < groups) limit_groups(biased, groups, kept);
    largest(biased, choices, best);
    float sum = 0;
    for (int64_t e : best) sum += score[e];
    const float share = float(scale) / (normalize ? sum + 1e-20f : 1.0f);
    for (int64_t c = 0; c < choices; c++) {
      chosen.data_ptr<int64_t>()[m * choices + c] = best[c];
      gates.data_ptr<float>()[m * choices + c] = score[best[c]] * share;
    }
  }
  return {chosen, gates};
}

}  // namespace llamaseek
