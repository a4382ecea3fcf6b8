// The halves of the layers of `Layers`: what each adds to the sum over layers.
#include <ATen/ops/empty.h>

#include "layers.h"
#include "ops.h"

namespace llamaseek {
namespace {

Target added(const Tensor& sum) { return {sum.data_ptr(), sum.data_ptr(), true, sum.size(1)}; }

// sum (M, D) plus what a gated feed-forward makes of x.
void add_gated(const Input& x, const Weights& gate_up, const Weights& down, const Tensor& sum,
               Step& step) {
  const Tensor inner = step.blank(3, {sum.size(0), gate_up.outputs() / 2}, at::kFloat);
  gate_up.times(x, onto(inner), true);
  down.times(Input(inner, {}), added(sum));
}

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

void Layers::latent(Tensor norm, double eps, Shared first, Shared second, Tensor second_norm,
                    Tensor latent_norm, double latent_eps, Tensor w_uk, Tensor w_uv, Shared out,
                    Tensor kept, double scale) {
  const auto kind = kept.scalar_type();
  TORCH_CHECK(is_float(kept) || kind == at::kBFloat16, "Layers.latent: latents are of two types");
  const int64_t heads = w_uk.size(0), rank = w_uk.size(1), nope = w_uk.size(2);
  const int64_t width = kept.size(2), rows = first->outputs();
  const Tensor values = kept.narrow(2, 0, rank);
  groups_ = 1, heads_ = heads;
  halves_.push_back([=](const Tensor& sum, Step& step) {
    const int64_t count = sum.size(0);
    const Tensor both = step.blank(0, {count, rows}, kind);
    first->times(Input(sum, norm_of(norm, eps)), onto(both));
    Tensor q = both.narrow(1, 0, rows - width);
    if (second->outputs()) {
      const Tensor wide = step.blank(1, {count, second->outputs()}, kind);
      second->times(Input(q, norm_of(second_norm, latent_eps)), onto(wide));
      q = wide;
    }
    const int64_t each = q.size(1) / heads;
    q = q.as_strided({count, heads, each}, {q.stride(0), each, 1});
    const Tensor queries = rotate_store_latent(
        q, linear_heads(q.narrow(2, 0, nope), w_uk), both.narrow(1, rows - width, width),
        latent_norm, latent_eps, step.cos, step.sin, step.slots, kept);
    Tensor& seen = step.blank(2, {count, heads, rank}, kind);
    step.attention(queries, kept, values, scale, seen);
    const Tensor made = linear_heads(seen, w_uv).view({count, -1});
    out->times(Input(made, {}), added(sum));
  });
}

void Layers::gated(Tensor norm, double eps, Shared gate_up, Shared down) {
  halves_.push_back([=](const Tensor& sum, Step& step) {
    add_gated(Input(sum, norm_of(norm, eps)), *gate_up, *down, sum, step);
  });
}

void Layers::mixture(Tensor norm, double eps, Tensor router, Tensor bias, int64_t groups,
                     int64_t kept, int64_t choices, bool normalize, double factor,
                     Tensor experts_gate_up, std::optional<Tensor> gate_up_scale,
                     Tensor experts_down, std::optional<Tensor> down_scale, int64_t bits,
                     int64_t down_bits, Shared gate_up, Shared down) {
  halves_.push_back([=](const Tensor& sum, Step& step) {
    const Tensor inner = rms_norm(sum, norm, eps);
    const auto [chosen, gates] =
        route(inner, router, bias, groups, kept, choices, normalize, factor);
    const Tensor routed = experts(inner, chosen, gates, experts_gate_up, gate_up_scale,
                                  experts_down, down_scale, bits, down_bits);
    auto* to = sum.data_ptr<float>();
    for (int64_t i = 0; i < sum.numel(); i++) to[i] += routed.const_data_ptr<float>()[i];
    if (gate_up->outputs()) add_gated(Input(inner, {}), *gate_up, *down, sum, step);
  });
}

}  // namespace llamaseek
