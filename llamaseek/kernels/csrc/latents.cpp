#include "latents.h"

#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>

#include "ops.h"

namespace llamaseek {

Tensor LatentAttention::run(Tensor x, Tensor w_uk, Tensor w_uv, Tensor cos, Tensor sin,
                            Tensor slots, Tensor tables, Tensor lengths, int64_t size,
                            Tensor kept) const {
  const int64_t count = x.size(0), own = kept.size(2);
  const auto blank = [&](const Weights& of) {
    return at::empty({count, of.outputs()}, kept.options());
  };
  Tensor out;
  with_team([&] {
    const Tensor both = blank(*weights_[0]);
    weights_[0]->times(Input(x, norm_of(norms_[0], eps_)), onto(both));
    Tensor q = both.narrow(1, 0, both.size(1) - own);
    const Tensor latent = both.narrow(1, both.size(1) - own, own);
    if (weights_.size() > 1) {
      const Tensor wider = blank(*weights_[1]);
      weights_[1]->times(Input(q, norm_of(norms_[2], inner_)), onto(wider));
      q = wider;
    }
    q = q.unflatten(1, {heads_, q.size(1) / heads_});
    const Tensor absorbed = linear_heads(q.narrow(2, 0, nope_), w_uk);
    const Tensor queries =
        rotate_store_latent(q, absorbed, latent, norms_[1], inner_, cos, sin, slots, kept);
    const Tensor seen =
        attend(queries, kept, kept.narrow(2, 0, rank_), tables, lengths, size, scale_);
    out = linear_heads(seen, w_uv).flatten(1);
  });
  return out;
}

Tensor Mixture::run(Tensor x) const {
  Tensor sum;
  with_team([&] {
    const Tensor inner = rms_norm(x, norm_, eps_);
    const auto [chosen, gates] = route(inner, router_, bias_, numbers_[0], numbers_[1],
                                       numbers_[2], normalize_, scale_);
    sum = at::add(x, experts(inner, chosen, gates, *experts_[0], experts_[1], *experts_[2],
                             experts_[3], bits_[0], bits_[1]));
    if (shared_.empty()) return;
    const Tensor between = at::empty({x.size(0), shared_[0]->outputs() / 2}, x.options());
    shared_[0]->times(Input(inner, {}), onto(between), true);
    shared_[1]->times(Input(between, {}), {sum.data_ptr(), sum.data_ptr(), true, sum.size(1)});
  });
  return sum;
}

Whole MultiToken::run(Tensor hidden, Whole following, int64_t start, int64_t row, Tensor blocks,
                      int64_t size, Tensor w_uk, Tensor w_uv, Tensor cos, Tensor sin, Tensor kept,
                      int64_t count) const {
  Whole drafts;
  const auto next = [&] {
    const int64_t own = int64_t(following.size());
    const Places at({start}, {own}, {row}, blocks, size, own);
    const Tensor embedded = weights_[0]->rows(following);
    const Tensor both = at::cat({rms_norm(embedded, norms_[0], eps_),
                                 rms_norm(hidden.to(at::kFloat), norms_[1], eps_)}, 1);
    Tensor x = at::empty_like(embedded);
    weights_[1]->times(Input(both, {}), onto(x));
    const Tensor seen =
        attention_->run(x, w_uk, w_uv, picked(cos, at.positions), picked(sin, at.positions),
                        at.slots, at.tables, at.lengths, size, kept);
    weights_[2]->times(Input(seen, {}), {x.data_ptr(), x.data_ptr(), true, x.size(1)});
    x = rms_norm(mixture_->run(x), norms_[2], eps_).to(norms_[2].scalar_type());
    start += own;
    hidden = x.narrow(0, own - 1, 1);
  };
  next();
  const Tensor logits = at::empty({1, weights_[3]->outputs()}, at::kFloat);
  while (int64_t(drafts.size()) < count) {
    if (!drafts.empty()) following = {drafts.back()}, next();
    weights_[3]->times(Input(hidden, {}), onto(logits));
    drafts.push_back(largest(logits.const_data_ptr<float>(), logits.size(1)).first);
  }
  return drafts;
}

}  // namespace llamaseek
