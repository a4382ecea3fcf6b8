// Products with matrices in GGUF's blocks. Few tokens are rounded to 15 bits and meet the blocks as
// they lie; for many, a few rows at a time are widened, and multiplied by whole matrices.
#include "blocks.h"

#include <ATen/ops/mm.h>
#include <ATen/ops/silu.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ops.h"
#include "spans.h"

namespace llamaseek {
namespace {

constexpr int64_t kMany = 48;          // tokens from which rows are widened
constexpr int64_t kChunk = 1 << 19;    // numbers widened at once

const BlockKernels& block_kernels() {
  static const bool wide = &kernels() == &avx512_kernels && __builtin_cpu_supports("avx512vbmi");
  return wide ? avx512_blocks : avx2_blocks;
}

const BlockKind& kind_of(int64_t type) {
  for (const BlockKind& kind : block_kernels().kinds) {
    if (kind.type == type) return kind;
  }
  TORCH_CHECK(false, "linear_blocks: no kernel for type ", type);
}

// A matrix (N, K) of blocks. Where rows of heads of `head` numbers alternate between their halves,
// what they make is put into halves.
struct BlockMatrix {
  const uint8_t* data;
  int64_t rows, stride, head;
  const BlockKind* kind;

  const uint8_t* row(int64_t n) const { return data + std::min(n, rows - 1) * stride; }
  int64_t bytes() const { return rows * stride; }
  int64_t place(int64_t n) const {
    if (!head) return n;
    const int64_t within = n % head;
    return n - within + (within & 1) * (head / 2) + within / 2;
  }

  // Rows `first` to `last`, kRows at a time: found[(n - first) * kTokens + m].
  void times(int64_t first, int64_t last, const BlockTokens& tokens, float* found) const {
    for (int64_t n = first; n < last; n += kRows) {
      const uint8_t* some[kRows];
      for (int r = 0; r < kRows; r++) some[r] = row(n + r);
      kind->tile(some, tokens, n + 2 * kRows <= rows ? kRows * stride : 0,
                 found + (n - first) * kTokens);
    }
  }
};

std::vector<BlockMatrix> matrices(at::TensorList weights, at::IntArrayRef kinds,
                                  at::IntArrayRef heads, int64_t width) {
  TORCH_CHECK(weights.size() == kinds.size() && weights.size() == heads.size(),
              "linear_blocks: a kind and a head's width for each weight");
  std::vector<BlockMatrix> found;
  for (size_t i = 0; i < weights.size(); i++) {
    const Tensor& weight = weights[i];
    const BlockKind& kind = kind_of(kinds[i]);
    TORCH_CHECK(weight.scalar_type() == at::kByte && weight.dim() == 2 &&
                    weight.size(1) * kind.numbers == width * kind.bytes,
                "linear_blocks: rows of ", weight.size(1), " bytes for ", width, " inputs");
    found.push_back({weight.const_data_ptr<uint8_t>(), weight.size(0), weight.stride(0), heads[i],
                     &kind});
  }
  return found;
}

// Up to kTokens rows of x (M, K), normalized and rounded.
class Rounded {
 public:
  Rounded(const Tensor& x, int64_t first, const Prepared::Norm& norm) {
    const int64_t width = x.size(1), padded = (width + kStep - 1) / kStep * kStep;
    const int64_t one = padded * 4;
    tokens.count = int(std::min<int64_t>(x.size(0) - first, kTokens));
    tokens.width = width;
    memory_ = at::empty({tokens.count * one + width * 4 * tokens.count}, at::kByte);
    uint8_t* at = memory_.data_ptr<uint8_t>();
    float* wide = reinterpret_cast<float*>(at + tokens.count * one);
    share(tokens.count, 1, tokens.count * width * 16, [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; m++) {
        uint8_t* from = at + m * one;
        float* scale = reinterpret_cast<float*>(from);
        float* sums = scale + padded / 4;
        int8_t* coarse = reinterpret_cast<int8_t*>(sums + padded / 4);
        int8_t* fine = coarse + padded;
        kernels().normalize(row_of(x, first + m), is_float(x), norm.weight, norm.is_float,
                            norm.eps, width, wide + m * width);
        block_kernels().encode(wide + m * width, width, coarse, fine, scale, sums);
        tokens.coarse[m] = coarse, tokens.fine[m] = fine;
        tokens.scale[m] = scale, tokens.sums[m] = sums;
      }
    });
  }
  BlockTokens tokens{};

 private:
  Tensor memory_;
};

struct Target {
  void* out;
  const void* residual;
  bool wide;
  int64_t width;

  void put(int64_t m, int64_t n, float value) const {
    const int64_t at = m * width + n;
    store(out, wide, at, residual ? value + load(residual, wide, at) : value);
  }
};

// out[first + m, offset + n] = matrix n · token m, for each matrix behind the one before.
void multiply(const std::vector<BlockMatrix>& all, const BlockTokens& tokens, int64_t first,
              const Target& to) {
  std::vector<int64_t> ends, offsets;
  int64_t units = 0, offset = 0, bytes = 0;
  for (const BlockMatrix& one : all) {
    offsets.push_back(offset);
    offset += one.rows;
    bytes += one.bytes();
    ends.push_back(units += (one.rows + kRows - 1) / kRows);
  }
  share(units, piece(units), bytes, [&](int64_t begin, int64_t end) {
    alignas(64) float found[kRows * kTokens];
    for (int64_t unit = begin; unit < end; unit++) {
      const size_t i = std::upper_bound(ends.begin(), ends.end(), unit) - ends.begin();
      const int64_t row = (unit - (i ? ends[i - 1] : 0)) * kRows;
      const int64_t last = std::min(row + kRows, all[i].rows);
      all[i].times(row, last, tokens, found);
      for (int64_t n = row; n < last; n++) {
        const int64_t at = offsets[i] + all[i].place(n);
        for (int m = 0; m < tokens.count; m++) {
          to.put(first + m, at, found[(n - row) * kTokens + m]);
        }
      }
    }
  });
}

void multiply_gated(const BlockMatrix& gate, const BlockMatrix& up, const BlockTokens& tokens,
                    int64_t first, const Target& to) {
  share(gate.rows, span(gate.rows), gate.bytes() + up.bytes(), [&](int64_t begin, int64_t end) {
    alignas(64) float gates[kSpan * kTokens], ups[kSpan * kTokens];
    gate.times(begin, end, tokens, gates);
    up.times(begin, end, tokens, ups);
    for (int64_t n = begin; n < end; n++) {
      for (int m = 0; m < tokens.count; m++) {
        const int64_t at = (n - begin) * kTokens + m;
        to.put(first + m, n, gated(gates[at], ups[at]));
      }
    }
  });
}

// Rows [first, first + count) of a matrix, whole heads, as float32 (count, K), by halves.
void widen_rows(const BlockMatrix& matrix, int64_t first, int64_t count, int64_t width,
                float* out) {
  share(count, 8, count * width * 4, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      matrix.kind->widen(matrix.row(first + n), width, out + (matrix.place(first + n) - first) * width);
    }
  });
}

// x (M, K) in float32 times the matrices → out (M, ΣN), without residual.
void multiply_widened(const std::vector<BlockMatrix>& all, const Tensor& x, Tensor& out) {
  const int64_t width = x.size(1);
  int64_t offset = 0;
  for (const BlockMatrix& one : all) {
    const int64_t whole = one.head ? one.head : 64;
    const int64_t rows = std::max(kChunk / width / whole * whole, whole);
    for (int64_t first = 0; first < one.rows; first += rows) {
      const int64_t count = std::min(rows, one.rows - first);
      Tensor wide = at::empty({count, width}, x.options());
      widen_rows(one, first, count, width, wide.data_ptr<float>());
      out.narrow(1, offset + first, count).copy_(at::mm(x, wide.t()));
    }
    offset += one.rows;
  }
}

Tensor normalized(const Tensor& x, const Prepared::Norm& norm) {
  Tensor wide = at::empty(x.sizes(), x.options().dtype(at::kFloat));
  for (int64_t m = 0; m < x.size(0); m++) {
    kernels().normalize(row_of(x, m), is_float(x), norm.weight, norm.is_float, norm.eps,
                        x.size(1), wide.data_ptr<float>() + m * x.size(1));
  }
  return wide;
}

}  // namespace

Tensor linear_blocks(const Tensor& x, const std::optional<Tensor>& norm, double eps,
                     at::TensorList weights, at::IntArrayRef kinds, at::IntArrayRef heads,
                     const std::optional<Tensor>& residual, bool gate) {
  const auto all = matrices(weights, kinds, heads, x.size(1));
  int64_t width = 0;
  for (const BlockMatrix& one : all) width += one.rows;
  if (gate) width /= 2;
  Tensor out = at::empty({x.size(0), width}, x.options());
  const Prepared::Norm by = norm_of(norm, eps);
  if (x.size(0) >= kMany) {
    Tensor made = at::empty({x.size(0), gate ? 2 * width : width}, x.options().dtype(at::kFloat));
    multiply_widened(all, is_float(x) && !norm ? x : normalized(x, by), made);
    if (gate) made = at::silu(made.narrow(1, 0, width)).mul_(made.narrow(1, width, width));
    if (residual) made.add_(*residual);
    return made.to(x.scalar_type());
  }
  const Target to{out.data_ptr(), residual ? residual->const_data_ptr() : nullptr, is_float(x),
                  width};
  for (int64_t first = 0; first < x.size(0); first += kTokens) {
    const Rounded ready(x, first, by);
    if (gate) {
      multiply_gated(all[0], all[1], ready.tokens, first, to);
    } else {
      multiply(all, ready.tokens, first, to);
    }
  }
  return out;
}

Tensor widen_blocks(const Tensor& blocks, int64_t kind) {
  const BlockKind& of = kind_of(kind);
  const int64_t width = blocks.size(1) / of.bytes * of.numbers;
  const BlockMatrix matrix{blocks.const_data_ptr<uint8_t>(), blocks.size(0), blocks.stride(0), 0,
                           &of};
  Tensor out = at::empty({matrix.rows, width}, blocks.options().dtype(at::kFloat));
  widen_rows(matrix, 0, matrix.rows, width, out.data_ptr<float>());
  return out;
}

}  // namespace llamaseek
