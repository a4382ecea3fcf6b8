// The classes `Weights` and `Layers` that llamaseek/engine/forward/fused.py makes.
#pragma once
#include <torch/custom_class.h>

#include <tuple>
#include <vector>

#include "block_matrix.h"
#include "products.h"

namespace llamaseek {

using Whole = std::vector<int64_t>;

// Matrices that read the same input: of `bits` bits, packed ones with scales, or, where bits is 0, in
// GGUF's blocks of these kinds and heads' widths. See the operators `linear` and `linear_blocks`.
struct Weights : torch::CustomClassHolder {
  std::vector<Tensor> weights, scales;
  int64_t bits;
  Whole kinds, heads;

  Weights(std::vector<Tensor> weights, std::vector<Tensor> scales, int64_t bits, Whole kinds,
          Whole heads)
      : weights(weights), scales(scales), bits(bits), kinds(kinds), heads(heads) {}
  int64_t outputs() const;
  void times(const Input& x, const Target& to, bool gate = false) const;
  // Of the first matrix (N, K), the rows `which` (M) → (M, K) in float32.
  Tensor rows(const Whole& which) const;
};

// Hidden states (M, D), logits (R, V) of some of them in float32, and of each row of these the first
// of the largest with its value.
using Outcome = std::tuple<Tensor, Tensor, Whole, std::vector<double>>;

// A model whose layers have grouped queries and a gated feed-forward, over the few tokens of a step,
// in one call: nothing of Python runs in between, and no thread is woken twice. It takes plain
// numbers, since between two readings of all weights every operator's own code is a cache miss.
class Layers : public torch::CustomClassHolder {
 public:
  using Shared = c10::intrusive_ptr<Weights>;
  // The embedding (V, D), the final norm's weight (D), the head (V, D), and all norms' epsilon.
  Layers(Shared embed, Tensor norm, Shared head, double eps, double scale)
      : embed_(embed), norm_(norm), head_(head), eps_(eps), scale_(scale) {}
  // A layer, and the keys and values (G, S, W) of its cache.
  void append(Tensor before, Shared qkv, Shared out, Tensor after, Shared gate_up, Shared down,
              Tensor keys, Tensor values);
  // M tokens of chunks (B) that begin at `starts` and have their blocks, of `size` slots, in `rows`
  // of blocks (N, most). cos and sin (positions, W / 2) in float32. Logits of the rows `wanted` (R).
  Outcome run(Whole tokens, Whole starts, Whole counts, Whole rows, Tensor blocks, int64_t size,
              Tensor cos, Tensor sin, Whole wanted) const;

 private:
  struct Layer {
    Tensor before;
    Shared qkv, out;
    Tensor after;
    Shared gate_up, down;
    Tensor keys, values;
  };
  Outcome say(const Tensor& hidden, const Whole& wanted) const;

  Shared embed_;
  Tensor norm_;
  Shared head_;
  double eps_, scale_;
  std::vector<Layer> layers_;
};

}  // namespace llamaseek
