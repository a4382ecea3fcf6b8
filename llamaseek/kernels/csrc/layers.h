// The classes `Weights` and `Layers` that llamaseek/engine/forward/fused.py and halves.py make.
#pragma once
#include <torch/custom_class.h>

#include <array>
#include <functional>
#include <tuple>
#include <vector>

#include "attention.h"
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

// Rows `which` of a table (N, K) → (M, K).
Tensor picked(const Tensor& table, const Whole& which);
// The first of the largest of `count` numbers, and that one; NaN is larger than all.
std::pair<int64_t, double> largest(const float* from, int64_t count);

// Of each token of a step its position, its slot, the tokens it sees and its sequence's blocks.
struct Places {
  Whole positions;
  Tensor slots, lengths, tables;

  // As `Layers::run` has them, `count` tokens in all.
  Places(const Whole& starts, const Whole& counts, const Whole& rows, const Tensor& blocks,
         int64_t size, int64_t count);
};

// Hidden states (M, D), logits (R, V) of some of them in float32, and of each row of these the first
// of the largest with its value.
using Outcome = std::tuple<Tensor, Tensor, Whole, std::vector<double>>;

class LatentAttention;
class Mixture;

// What the halves of all layers share in a step of M tokens: where they stand, cos and sin (M, W / 2).
struct Step {
  Tensor slots, tables, lengths, cos, sin;
  int64_t size;
  const Attention& attention;  // over keys and values
  std::array<Tensor, 4> kept{};

  // Memory for what nobody reads after the half that asks for it.
  Tensor& blank(size_t place, at::IntArrayRef shape, at::ScalarType kind);
};

// A model over the few tokens of a step, in one call: nothing of Python runs in between, and no thread
// is woken twice. It takes plain numbers, since between two readings of all weights every operator's
// own code is a cache miss. Each layer is two halves, attention and feed-forward, which add what they
// make to the sum over layers (M, D); halves.py has the same as operators.
class Layers : public torch::CustomClassHolder {
 public:
  using Shared = c10::intrusive_ptr<Weights>;
  // The embedding (V, D), the final norm's weight (D) and epsilon, the head (V, D).
  Layers(Shared embed, Tensor norm, double eps, Shared head)
      : embed_(embed), norm_(norm), eps_(eps), head_(head) {}
  // Llama 3's attention, and the keys and values (G, S, W) of its cache.
  void grouped(Tensor norm, double eps, Shared qkv, Shared out, Tensor keys, Tensor values,
               double scale);
  // DeepSeek-V3's attention; w_uk, w_uv and kept (1, S, C + R) as it runs on.
  void latent(c10::intrusive_ptr<LatentAttention> attention, Tensor w_uk, Tensor w_uv, Shared out,
              Tensor kept);
  // The gated feed-forward.
  void gated(Tensor norm, double eps, Shared gate_up, Shared down);
  // Routed and shared experts.
  void mixture(c10::intrusive_ptr<Mixture> mixture);
  // M tokens of chunks (B) that begin at `starts` and have their blocks, of `size` slots, in `rows`
  // of blocks (N, most). cos and sin (positions, W / 2) in float32. Logits of the rows `wanted` (R).
  Outcome run(Whole tokens, Whole starts, Whole counts, Whole rows, Tensor blocks, int64_t size,
              Tensor cos, Tensor sin, Whole wanted) const;

 private:
  Outcome say(const Tensor& hidden, const Whole& wanted) const;

  Shared embed_;
  Tensor norm_;
  double eps_;
  Shared head_;
  int64_t heads_ = 1, groups_ = 1;  // of keys and values, alike in all layers
  std::vector<std::function<void(const Tensor& sum, Step& step)>> halves_;
};

}  // namespace llamaseek
