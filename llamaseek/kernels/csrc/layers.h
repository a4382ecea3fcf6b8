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
};

// Layers with grouped queries and a gated feed-forward, over the few tokens of a step, in one call:
// nothing of Python runs between them, and no thread is woken twice.
class Layers : public torch::CustomClassHolder {
 public:
  using Shared = c10::intrusive_ptr<Weights>;
  explicit Layers(double eps, double scale) : eps_(eps), scale_(scale) {}
  void append(Tensor before, Shared qkv, Shared out, Tensor after, Shared gate_up, Shared down);
  // x (M, D) in float32 → (M, D). cos and sin (M, W / 2), slots (M), keys and values (G, S, W) of
  // each layer, tables, lengths and size as `rotate_store` and `attend` have them.
  Tensor run(Tensor x, Tensor cos, Tensor sin, Tensor slots, Tensor tables, Tensor lengths,
             int64_t size, std::vector<Tensor> keys, std::vector<Tensor> values) const;

 private:
  struct Layer {
    Tensor before;
    Shared qkv, out;
    Tensor after;
    Shared gate_up, down;
  };
  double eps_, scale_;
  std::vector<Layer> layers_;
};

}  // namespace llamaseek
