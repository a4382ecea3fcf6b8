#include "layers.h"

#include "attention.h"

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
    multiply_blocks(matrices(weights, kinds, heads, x.width), x, to, gate);
  }
}

void Layers::append(Tensor before, Shared qkv, Shared out, Tensor after, Shared gate_up,
                    Shared down) {
  layers_.push_back({before, qkv, out, after, gate_up, down});
}

Tensor Layers::run(Tensor x, Tensor cos, Tensor sin, Tensor slots, Tensor tables, Tensor lengths,
                   int64_t size, std::vector<Tensor> keys, std::vector<Tensor> values) const {
  TORCH_CHECK(is_float(x) && x.is_contiguous() && keys.size() == layers_.size(),
              "Layers.run: x is contiguous and in float32, and every layer has keys");
  const int64_t count = x.size(0), groups = keys[0].size(0), width = keys[0].size(2);
  const int64_t heads = layers_[0].qkv->outputs() / width - 2 * groups;
  const bool wide = is_float(keys[0]);
  TORCH_CHECK(wide || keys[0].scalar_type() == at::kBFloat16, "Layers.run: keys are of two types");
  const auto blank = [&](int64_t columns) { return at::empty({count, columns}, keys[0].options()); };
  Tensor qkv = blank((heads + 2 * groups) * width), q = blank(heads * width), seen = blank(heads * width);
  Tensor queries = q.view({count, heads, width}), found = seen.view({count, heads, width});
  Tensor sum = x.clone(), inner = at::empty({count, layers_[0].gate_up->outputs() / 2}, x.options());
  const Attention attention(tables, lengths, size, heads, groups);
  const auto onto = [](const Tensor& to) {
    return Target{to.data_ptr(), nullptr, is_float(to), to.size(1)};
  };
  const Target added{sum.data_ptr(), sum.data_ptr(), true, sum.size(1)};
  with_team([&] {
    for (size_t i = 0; i < layers_.size(); i++) {
      const Layer& layer = layers_[i];
      layer.qkv->times(Input(sum, norm_of(layer.before, eps_)), onto(qkv));
      rotate_store_into(qkv, cos, sin, slots, keys[i], values[i], queries);
      attention(queries, keys[i], values[i], scale_, found);
      layer.out->times(Input(seen, {}), added);
      layer.gate_up->times(Input(sum, norm_of(layer.after, eps_)), onto(inner), true);
      layer.down->times(Input(inner, {}), added);
    }
  });
  return sum;
}

}  // namespace llamaseek
