// Products with matrices in GGUF's blocks. Few tokens are rounded to 15 bits and meet the blocks as
// they lie; for many, a few rows at a time are widened, and multiplied by whole matrices.
#include "block_matrix.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/silu.h>

#include <algorithm>

#include "ops.h"
#include "products.h"

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

// Rows [first, first + count) of a matrix, whole heads, as float32 (count, K), by halves.
void widen_rows(const BlockMatrix& matrix, int64_t first, int64_t count, int64_t width,
                float* out) {
  share(count, 8, count * width * 4, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      matrix.kind->widen(matrix.row(first + n), width, out + (matrix.place(first + n) - first) * width);
    }
  });
}

// x (M, K) times weight (N, K) in float32, by oneDNN where PyTorch has it: MKL leaves half of an AMD
// processor's vector units unused.
Tensor times_plain(const Tensor& x, const Tensor& weight) {
  using Linear = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, c10::string_view,
                        c10::List<std::optional<at::Scalar>>, std::optional<c10::string_view>);
  static const auto found =
      c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  if (!found) return at::mm(x, weight.t());
  const c10::List<std::optional<at::Scalar>> none;
  return found->typed<Linear>().call(x, weight, std::nullopt, "none", none, "");
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
      out.narrow(1, offset + first, count).copy_(times_plain(x, wide));
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

Tensor linear_blocks(const Tensor& x, const std::optional<Tensor>& norm, double eps,
                     at::TensorList weights, at::IntArrayRef kinds, at::IntArrayRef heads,
                     const std::optional<Tensor>& residual, bool gate) {
  const auto all = matrices(weights, kinds, heads, x.size(1));
  const int64_t width = outputs(all, gate);
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
  product(all, Input(x, by), to, gate);
  return out;
}

Tensor widen_blocks(const Tensor& blocks, int64_t kind) {
  const BlockKind& of = kind_of(kind);
  const int64_t width = blocks.size(1) / of.bytes * of.numbers;
  const BlockMatrix matrix(blocks, kind, 0, width);
  Tensor out = at::empty({matrix.rows, width}, blocks.options().dtype(at::kFloat));
  widen_rows(matrix, 0, matrix.rows, width, out.data_ptr<float>());
  return out;
}

}  // namespace llamaseek
