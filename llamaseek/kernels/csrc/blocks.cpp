// Products with matrices in GGUF's blocks: few tokens meet the blocks as they lie, many meet them
// unpacked.
#include "block_matrix.h"

#include <algorithm>

#include "many.h"
#include "ops.h"

namespace llamaseek {
namespace {

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

}  // namespace

Rounded::Rounded(int count, int64_t width) {
  const int64_t padded = (width + kStep - 1) / kStep * kStep;
  memory_ = c10::GetCPUAllocator()->allocate(count * padded * 8);
  auto* at = static_cast<uint8_t*>(memory_.get());
  tokens.count = count;
  tokens.width = width;
  for (int m = 0; m < count; m++) {
    const uint8_t* from = at + m * padded * 8;
    tokens.scale[m] = reinterpret_cast<const float*>(from);
    tokens.sums[m] = reinterpret_cast<const float*>(from + padded);
    tokens.coarse[m] = reinterpret_cast<const int8_t*>(from + 2 * padded);
    tokens.fine[m] = reinterpret_cast<const int8_t*>(from + 3 * padded);
    wide_[m] = reinterpret_cast<float*>(at + m * padded * 8 + 4 * padded);
  }
}

void Rounded::fill(int m, const void* row, bool row_is_float, const Prepared::Norm& norm) {
  kernels().normalize(row, row_is_float, norm.weight, norm.is_float, norm.eps, tokens.width,
                      wide_[m]);
  block_kernels().encode(wide_[m], tokens.width, const_cast<int8_t*>(tokens.coarse[m]),
                         const_cast<int8_t*>(tokens.fine[m]), const_cast<float*>(tokens.scale[m]),
                         const_cast<float*>(tokens.sums[m]));
}

BlockMatrix::BlockMatrix(const Tensor& blocks, int64_t type, int64_t head, int64_t width)
    : data(blocks.const_data_ptr<uint8_t>()),
      rows(blocks.size(0)),
      width(width),
      stride(blocks.stride(0)),
      head(head),
      kind(&kind_of(type)) {
  TORCH_CHECK(blocks.dim() == 2 && blocks.size(1) * kind->numbers == width * kind->bytes,
              "linear_blocks: rows of ", blocks.size(1), " bytes for ", width, " inputs");
}

void BlockMatrix::times(int64_t first, int64_t last, const BlockTokens& tokens,
                        float* found) const {
  for (int64_t n = first; n < last; n += kRows) {
    const uint8_t* some[kRows];
    for (int r = 0; r < kRows; r++) some[r] = row(n + r);
    kind->tile(some, tokens, n + 2 * kRows <= rows ? kRows * stride : 0,
               found + (n - first) * kTokens);
  }
}

std::vector<BlockMatrix> matrices(at::TensorList weights, at::IntArrayRef kinds,
                                  at::IntArrayRef heads, int64_t width) {
  TORCH_CHECK(weights.size() == kinds.size() && weights.size() == heads.size(),
              "linear_blocks: a kind and a head's width for each weight");
  std::vector<BlockMatrix> found;
  for (size_t i = 0; i < weights.size(); i++) {
    found.emplace_back(weights[i], kinds[i], heads[i], width);
  }
  return found;
}

void multiply_blocks(const std::vector<BlockMatrix>& all, const Input& x, const Target& to,
                     bool gate) {
  // Unpacked blocks are better from 9 tokens on, but tokens that are drafted, up to kTokens, are
  // to have the same bits as alone.
  if (x.count > kTokens) {
    product_of_many(all, x, to, gate);
  } else {
    product(all, x, to, gate);
  }
}

Tensor linear_blocks(const Tensor& x, const std::optional<Tensor>& norm, double eps,
                     at::TensorList weights, at::IntArrayRef kinds, at::IntArrayRef heads,
                     const std::optional<Tensor>& residual, bool gate) {
  const auto all = matrices(weights, kinds, heads, x.size(1));
  const int64_t width = outputs(all, gate);
  Tensor out = at::empty({x.size(0), width}, x.options());
  const Target to{out.data_ptr(), residual ? residual->const_data_ptr() : nullptr, is_float(x),
                  width};
  multiply_blocks(all, Input(x, norm_of(norm, eps)), to, gate);
  return out;
}

Tensor widen_blocks(const Tensor& blocks, int64_t kind) {
  const BlockKind& of = kind_of(kind);
  const int64_t width = blocks.size(1) / of.bytes * of.numbers;
  const BlockMatrix matrix(blocks, kind, 0, width);
  Tensor out = at::empty({matrix.rows, width}, blocks.options().dtype(at::kFloat));
  share(matrix.rows, 8, out.nbytes(), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      of.widen(matrix.row(n), width, out.data_ptr<float>() + n * width);
    }
  });
  return out;
}

}  // namespace llamaseek
