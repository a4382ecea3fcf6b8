// Matrices in GGUF's blocks as they lie in a file, and activations in the form that they are read in.
#pragma once
#include <vector>

#include "blocks.h"
#include "driver.h"
#include "products.h"

namespace llamaseek {

// Up to kTokens rows of activations, normalized and rounded.
class Rounded {
 public:
  Rounded(int count, int64_t width);
  // Fills token m from its row.
  void fill(int m, const void* row, bool row_is_float, const Prepared::Norm& norm);
  BlockTokens tokens{};

 private:
  float* wide_[kTokens];
  c10::DataPtr memory_;
};

// A matrix (N, K). Where rows of heads of `head` numbers alternate between their halves, what they
// make is put into halves.
struct BlockMatrix {
  const uint8_t* data;
  int64_t rows, width, stride, head;
  const BlockKind* kind;

  BlockMatrix(const Tensor& blocks, int64_t type, int64_t head, int64_t width);
  const uint8_t* row(int64_t n) const { return data + std::min(n, rows - 1) * stride; }
  int64_t bytes() const { return rows * stride; }
  int64_t place(int64_t n) const {
    if (!head) return n;
    const int64_t within = n % head;
    return n - within + (within & 1) * (head / 2) + within / 2;
  }
  // The row that makes output n: place(source(n)) is n.
  int64_t source(int64_t n) const {
    if (!head) return n;
    const int64_t within = n % head, half = head / 2;
    return n - within + within % half * 2 + within / half;
  }
  bool lows() const { return kind->lows; }
  // `count` inputs from k on of the rows that make outputs `first` ….
  void fill(int64_t first, int64_t k, int count, Panel& to) const;
  Rounded blank(int count) const { return Rounded(count, width); }
  // As `Matrix::times`.
  void times(int64_t first, int64_t last, const BlockTokens& tokens, float* found) const;
};

std::vector<BlockMatrix> matrices(at::TensorList weights, at::IntArrayRef kinds,
                                  at::IntArrayRef heads, int64_t width);
// As `product`, the way that is best for as many tokens.
void multiply_blocks(const std::vector<BlockMatrix>& all, const Input& x, const Target& to,
                     bool gate);

}  // namespace llamaseek
