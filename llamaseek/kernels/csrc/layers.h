// The classes `Weights` and `Layers` that llamaseek/engine/forward/fused.py makes.
#pragma once
#include <torch/custom_class.h>

#include <vector>

#include "block_matrix.h"
#include "products.h"

namespace llamaseek {

// Matrices that read the same input: of `bits` bits, packed ones with scales, or, where bits is 0, in
// GGUF's blocks of these kinds and heads' widths. See the operators `linear` and `linear_blocks`.
struct Weights : torch::CustomClassHolder {
  using Whole = std::vector<int64_t>;
  std::vector<Tensor> weights, scales;
  int64_t bits;
  Whole kinds, heads;

  Weights(std::vector<Tensor> weights, std::vector<Tensor> scales, int64_t bits, Whole kinds,
          Whole heads)
      : weights(weights), scales(scales), bits(bits), kinds(kinds), heads(heads) {}
  int64_t outputs() const;
  void times(const Input& x, const Target& to, bool gate = false) const;
  // Of the first matrix (N, K), the rows `which` (M) → (M, K) in float32.
  Tensor rows(const Tensor& which) const;
};

// A model without its head whose layers have grouped queries and a gated feed-forward, over the few
// tokens of a step, in one call: nothing of Python runs in between, and no thread is woken twice.
class Layers : public torch::CustomClassHolder {
 public:
  using Shared = c10::intrusive_ptr<Weights>;
  // The embedding (V, D), the final norm's weight (D), and all norms' epsilon.
  Layers(Shared embed, Tensor norm, double eps, double scale)
      : embed_(embed), norm_(norm), eps_(eps), scale_(scale) {}
  // A layer, and the keys and values (G, S, W) of its cache.
  void append(Tensor before, Shared qkv, Shared out, Tensor after, Shared gate_up, Shared down,
              Tensor keys, Tensor values);
  // tokens and positions (M) → hidden (M, D) in the final norm's dtype. slots (M), tables, lengths
  // and size as `rotate_store` and `attend` have them; cos and sin (positions, W / 2) in float32.
  Tensor run(Tensor tokens, Tensor positions, Tensor slots, Tensor tables, Tensor lengths,
             int64_t size, Tensor cos, Tensor sin) const;

 private:
  struct Layer {
    Tensor before;
    Shared qkv, out;
    Tensor after;
    Shared gate_up, down;
    Tensor keys, values;
  };
  Shared embed_;
  Tensor norm_;
  double eps_, scale_;
  std::vector<Layer> layers_;
};

}  // namespace llamaseek
