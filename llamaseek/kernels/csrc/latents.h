// The classes `LatentAttention` and `Mixture` that llamaseek/engine/forward/halves.py makes: halves of
// a DeepSeek-V3 layer over the few tokens of a step, in one call each.
#pragma once
#include "layers.h"

namespace llamaseek {

// Up to the heads' outputs, which the output projection is to follow.
class LatentAttention : public torch::CustomClassHolder {
 public:
  using All = std::vector<c10::intrusive_ptr<Weights>>;
  // Weights of queries and latents, and where queries have a rank of their own those behind it; norms
  // (weights) of the input, the latent and, likewise, the queries. `inner` is the latter two's eps.
  LatentAttention(All weights, std::vector<Tensor> norms, double eps, double inner, int64_t heads,
                  int64_t nope, int64_t rank, double scale)
      : weights_(weights), norms_(norms), eps_(eps), inner_(inner), heads_(heads), nope_(nope),
        rank_(rank), scale_(scale) {}
  // x (M, D) in float32, w_uk (H, C, P) and w_uv (H, V, C) → (M, H * V) in the cache's dtype. kept
  // (1, S, C + R) and the rest as `rotate_store_latent` and `attend` have them.
  Tensor run(Tensor x, Tensor w_uk, Tensor w_uv, Tensor cos, Tensor sin, Tensor slots,
             Tensor tables, Tensor lengths, int64_t size, Tensor kept) const;

 private:
  All weights_;
  std::vector<Tensor> norms_;
  double eps_, inner_;
  int64_t heads_, nope_, rank_;
  double scale_;
};

// Norm, router, routed and shared experts.
class Mixture : public torch::CustomClassHolder {
 public:
  using All = std::vector<c10::intrusive_ptr<Weights>>;
  using Maybe = std::vector<std::optional<Tensor>>;
  // The router's weight, bias and numbers are `route`'s, the experts' weights, scales and bits
  // `experts`'s; shared experts' gate and up, and down, where there are any.
  Mixture(Tensor norm, double eps, Tensor router, Tensor bias, std::vector<int64_t> numbers,
          bool normalize, double scale, Maybe experts, std::vector<int64_t> bits, All shared)
      : norm_(norm), eps_(eps), router_(router), bias_(bias), numbers_(numbers),
        normalize_(normalize), scale_(scale), experts_(experts), bits_(bits), shared_(shared) {}
  // x (M, D) in float32 → x plus its result.
  Tensor run(Tensor x) const;

 private:
  Tensor norm_;
  double eps_;
  Tensor router_, bias_;
  std::vector<int64_t> numbers_;
  bool normalize_;
  double scale_;
  Maybe experts_;
  std::vector<int64_t> bits_;
  All shared_;
};

// DeepSeek-V3's module that predicts one token further, over one sequence: it drafts token after
// token, and nothing of Python runs in between.
class MultiToken : public torch::CustomClassHolder {
 public:
  using Shared = c10::intrusive_ptr<Weights>;
  // Weights: the embedding, of both inputs joined, of the attention's output, the head. Norms
  // (weights) of the embedding, the hidden states and the outcome.
  MultiToken(std::vector<Shared> weights, std::vector<Tensor> norms, double eps,
             c10::intrusive_ptr<LatentAttention> attention, c10::intrusive_ptr<Mixture> mixture)
      : weights_(weights), norms_(norms), eps_(eps), attention_(attention), mixture_(mixture) {}
  // hidden (N, D) of the places from `start` on and the tokens that follow each → the `count`
  // likeliest tokens behind these, one after the other. The rest is `LatentAttention::run`'s and
  // `Layers::run`'s.
  Whole run(Tensor hidden, Whole following, int64_t start, int64_t row, Tensor blocks, int64_t size,
            Tensor w_uk, Tensor w_uv, Tensor cos, Tensor sin, Tensor kept, int64_t count) const;

 private:
  std::vector<Shared> weights_;
  std::vector<Tensor> norms_;
  double eps_;
  c10::intrusive_ptr<LatentAttention> attention_;
  c10::intrusive_ptr<Mixture> mixture_;
};

}  // namespace llamaseek
