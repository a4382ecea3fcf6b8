#include "layers.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>

#include "attention.h"
#include "ops.h"

namespace llamaseek {

int64_t Weights::outputs() const {
  int64_t rows = 0;
  for (const Tensor& weight : weights) rows += weight.size(0);
  return rows;
}

void Weights::times(const Input& x, const Target& to, bool gate) const {
  if (bits) {
    product(matrices(weights, scales, x.width, bits), x, to, gate);
  } else {
    product(matrices(weights, kinds, heads, x.width), x, to, gate);
  }
}

Tensor Weights::rows(const Tensor& which) const {
  const Tensor found = at::index_select(weights[0], 0, which);
  return bits ? found.to(at::kFloat) : widen_blocks(found, kinds[0]);
}

void Layers::append(Tensor before, Shared qkv, Shared out, Tensor after, Shared gate_up,
                    Shared down, Tensor keys, Tensor values) {
  TORCH_CHECK(is_float(keys) || keys.scalar_type() == at::kBFloat16,
              "Layers.append: keys are of two types");
  layers_.push_back({before, qkv, out, after, gate_up, down, keys, values});
}

Tensor Layers::run(Tensor tokens, Tensor positions, Tensor slots, Tensor tables, Tensor lengths,
                   int64_t size, Tensor cos, Tensor sin) const {
  const Tensor& kept = layers_[0].keys;
  const int64_t count = tokens.size(0), groups = kept.size(0), width = kept.size(2);
  const int64_t heads = layers_[0].qkv->outputs() / width - 2 * groups;
  const auto blank = [&](int64_t columns) { return at::empty({count, columns}, kept.options()); };
  Tensor qkv = blank((heads + 2 * groups) * width), q = blank(heads * width), seen = blank(heads * width);
  Tensor queries = q.view({count, heads, width}), found = seen.view({count, heads, width});
  const Tensor sum = embed_->rows(tokens);
  const Tensor inner = at::empty({count, layers_[0].gate_up->outputs() / 2}, sum.options());
  cos = at::index_select(cos, 0, positions), sin = at::index_select(sin, 0, positions);
  const Attention attention(tables, lengths, size, heads, groups);
  const auto onto = [](const Tensor& to) {
    return Target{to.data_ptr(), nullptr, is_float(to), to.size(1)};
  };
  const Target added{sum.data_ptr(), sum.data_ptr(), true, sum.size(1)};
  with_team([&] {
    for (const Layer& layer : layers_) {
      layer.qkv->times(Input(sum, norm_of(layer.before, eps_)), onto(qkv));
      rotate_store_into(qkv, cos, sin, slots, layer.keys, layer.values, queries);
      attention(queries, layer.keys, layer.values, scale_, found);
      layer.out->times(Input(seen, {}), added);
      layer.gate_up->times(Input(sum, norm_of(layer.after, eps_)), onto(inner), true);
      layer.down->times(Input(inner, {}), added);
    }
  });
  return rms_norm(sum, norm_, eps_).to(norm_.scalar_type());
}

}  // namespace llamaseek
