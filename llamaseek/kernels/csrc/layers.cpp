#include "layers.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops.h"

namespace llamaseek {

Tensor picked(const Tensor& table, const Whole& which) {
  Tensor out = at::empty({int64_t(which.size()), table.size(1)}, table.options());
  const int64_t bytes = table.size(1) * table.element_size();
  auto* to = static_cast<uint8_t*>(out.data_ptr());
  for (const int64_t row : which) {
    TORCH_CHECK(0 <= row && row < table.size(0), "Layers.run: no row ", row, " of ", table.size(0));
    std::memcpy(to, row_of(table, row), bytes);
    to += bytes;
  }
  return out;
}

std::pair<int64_t, double> largest(const float* from, int64_t count) {
  float top = -INFINITY;
  int unsound = 0;
#pragma omp simd reduction(max : top) reduction(+ : unsound)
  for (int64_t i = 0; i < count; i++) {
    top = std::max(top, from[i]);
    unsound += from[i] != from[i];
  }
  if (unsound) return {0, NAN};
  return {std::find(from, from + count, top) - from, top};
}

Places::Places(const Whole& starts, const Whole& counts, const Whole& rows, const Tensor& blocks,
               int64_t size, int64_t count) {
  int64_t used = 0;
  for (size_t b = 0; b < starts.size(); b++) {
    TORCH_CHECK(0 <= rows[b] && rows[b] < blocks.size(0), "Layers.run: no blocks ", rows[b]);
    used = std::max(used, (starts[b] + counts[b] + size - 1) / size);
  }
  TORCH_CHECK(used <= blocks.size(1), "Layers.run: ", used, " blocks of ", blocks.size(1));
  slots = at::empty({count}, at::kLong), lengths = at::empty({count}, at::kLong);
  tables = at::empty({count, used}, at::kLong);
  auto *slot = slots.data_ptr<int64_t>(), *length = lengths.data_ptr<int64_t>();
  auto* table = tables.data_ptr<int64_t>();
  for (size_t b = 0; b < starts.size(); b++) {
    const auto* own = reinterpret_cast<const int64_t*>(row_of(blocks, rows[b]));
    for (int64_t at = starts[b]; at < starts[b] + counts[b]; at++) {
      positions.push_back(at);
      *slot++ = own[at / size] * size + at % size;
      *length++ = at + 1;
      table = std::copy(own, own + used, table);
    }
  }
}

int64_t Weights::outputs() const {
  int64_t rows = 0;
  for (const Tensor& weight : weights) rows += weight.size(0);
  return rows;
}

void Weights::times(const Input& x, const Target& to, bool gate) const {
  if (bits) {
    product(matrices(weights, scales, x.width, bits), x, to, gate);
  } else {
    multiply_blocks(matrices(weights, kinds, heads, x.width), x, to, gate);
  }
}

Tensor Weights::rows(const Whole& which) const {
  const Tensor found = picked(weights[0], which);
  return bits ? found.to(at::kFloat) : widen_blocks(found, kinds[0]);
}

Outcome Layers::run(Whole tokens, Whole starts, Whole counts, Whole rows, Tensor blocks,
                    int64_t size, Tensor cos, Tensor sin, Whole wanted) const {
  const Places places(starts, counts, rows, blocks, size, int64_t(tokens.size()));
  const Attention attention(places.tables, places.lengths, size, heads_, groups_);
  Step step{places.slots, places.tables, places.lengths, picked(cos, places.positions),
            picked(sin, places.positions), size, attention};
  const Tensor sum = embed_->rows(tokens);
  Outcome made;
  with_team([&] {
    for (const auto& half : halves_) half(sum, step);
    made = say(rms_norm(sum, norm_, eps_).to(norm_.scalar_type()), wanted);
  });
  return made;
}

Outcome Layers::say(const Tensor& hidden, const Whole& wanted) const {
  const int64_t count = int64_t(wanted.size()), width = head_->outputs();
  const Tensor logits = at::empty({count, width}, at::kFloat);
  Whole best(count);
  std::vector<double> most(count);
  if (count) head_->times(Input(picked(hidden, wanted), {}), onto(logits));
  share(count, 1, logits.nbytes(), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      std::tie(best[row], most[row]) = largest(logits.const_data_ptr<float>() + row * width, width);
    }
  });
  return {hidden, logits, best, most};
}

}  // namespace llamaseek
