// The halves of the layers of `Layers`: what each adds to the sum over layers.
#include <ATen/ops/empty.h>

#include <cstring>

#include "latents.h"
#include "ops.h"

namespace llamaseek {
namespace {

Target added(const Tensor& sum) { return {sum.data_ptr(), sum.data_ptr(), true, sum.size(1)}; }

}  // namespace

Tensor& Step::blank(size_t place, at::IntArrayRef shape, at::ScalarType kind) {
  Tensor& found = kept[place];
  if (!found.defined() || found.sizes() != shape || found.scalar_type() != kind) {
    found = at::empty(shape, kind);
  }
  return found;
}

void Layers::grouped(Tensor norm, double eps, Shared qkv, Shared out, Tensor keys, Tensor values,
                     double scale) {
  const auto kind = keys.scalar_type();
  TORCH_CHECK(is_float(keys) || kind == at::kBFloat16, "Layers.grouped: keys are of two types");
  const int64_t width = keys.size(2), rows = qkv->outputs();
  groups_ = keys.size(0), heads_ = rows / width - 2 * groups_;
  halves_.push_back([=, heads = heads_](const Tensor& sum, Step& step) {
    const int64_t count = sum.size(0);
    const Tensor made = step.blank(0, {count, rows}, kind);
    Tensor &q = step.blank(1, {count, heads, width}, kind), &seen = step.blank(2, {count, heads * width}, kind);
    qkv->times(Input(sum, norm_of(norm, eps)), onto(made));
    rotate_store_into(made, step.cos, step.sin, step.slots, keys, values, q);
    step.attention(q, keys, values, scale, seen);
    out->times(Input(seen, {}), added(sum));
  });
}

void Layers::latent(c10::intrusive_ptr<LatentAttention> attention, Tensor w_uk, Tensor w_uv,
                    Shared out, Tensor kept) {
  halves_.push_back([=](const Tensor& sum, Step& step) {
    const Tensor made = attention->run(sum, w_uk, w_uv, step.cos, step.sin, step.slots,
                                       step.tables, step.lengths, step.size, kept);
    out->times(Input(made, {}), added(sum));
  });
}

void Layers::gated(Tensor norm, double eps, Shared gate_up, Shared down) {
  halves_.push_back([=](const Tensor& sum, Step& step) {
    const Tensor inner = step.blank(3, {sum.size(0), gate_up->outputs() / 2}, at::kFloat);
    gate_up->times(Input(sum, norm_of(norm, eps)), onto(inner), true);
    down->times(Input(inner, {}), added(sum));
  });
}

void Layers::mixture(c10::intrusive_ptr<Mixture> mixture) {
  halves_.push_back([=](const Tensor& sum, Step&) {
    const Tensor made = mixture->run(sum);
    std::memcpy(sum.data_ptr(), made.const_data_ptr(), sum.nbytes());
  });
}

}  // namespace llamaseek
