// Matrix products of a few tokens: every weight is read once, whatever the number of tokens.
#include <ATen/ops/linear.h>

#include <vector>

#include "ops.h"
#include "products.h"

namespace llamaseek {
std::vector<Matrix> matrices(at::TensorList weights, at::TensorList scales,
                             int64_t width, int64_t bits) {
  std::vector<Matrix> found;
  for (size_t i = 0; i < weights.size(); i++) {
    found.emplace_back(weights[i], scales.empty() ? std::nullopt : std::optional(scales[i]), width,
                       bits);
  }
  return found;
}

namespace {

// x (M, K) in bf16 times packed matrices → out (M, ΣN), by products of whole matrices.
void multiply_widened(const std::vector<Matrix>& all, Widen widen, const Tensor& x, Tensor& out) {
  const int64_t width = x.size(1), rows = std::max<int64_t>(kChunk / width, 1);
  int64_t offset = 0;
  for (const Matrix& one : all) {
    for (int64_t first = 0; first < one.rows; first += rows) {
      const int64_t count = std::min(rows, one.rows - first);
      Tensor wide = at::empty({count, width}, x.options());
      auto* to = static_cast<uint16_t*>(wide.data_ptr());
      share(count, 8, count * width * 2, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; n++) {
          const Matrix row = one.part(first + n, 1);
          widen(row.weight, row.scale, one.group, width, to + n * width);
        }
      });
      out.narrow(1, offset + first, count).copy_(at::linear(x, wide));
    }
    offset += one.rows;
  }
}

}  // namespace

Tensor linear(const Tensor& x, const std::optional<Tensor>& norm, double eps,
              at::TensorList weights, at::TensorList scales, int64_t bits,
              const std::optional<Tensor>& residual, bool gate) {
  const auto all = matrices(weights, scales, x.size(1), bits);
  const int64_t width = outputs(all, gate);
  Tensor out = at::empty({x.size(0), width}, x.options());
  const Widen widen = bits == 4 ? kernels().widen4 : bits == 8 ? kernels().widen8 : nullptr;
  const bool plain = !norm && !residual && !gate && x.scalar_type() == at::kBFloat16;
  const int64_t group = all[0].group;
  if (widen && plain && x.size(0) >= kMany && x.size(1) % 32 == 0 && group % 32 == 0) {
    multiply_widened(all, widen, x, out);
    return out;
  }
  const Target to{out.data_ptr(), residual ? residual->const_data_ptr() : nullptr, is_float(x),
                  width};
  product(all, Input(x, norm_of(norm, eps)), to, gate);
  return out;
}

Tensor float_products(const Tensor& x, const Tensor& weight) {
  const int bits = is_float(weight) ? 32 : 16;
  const std::vector<Matrix> all{Matrix(weight, std::nullopt, x.size(1), bits)};
  Tensor out = at::empty({x.size(0), weight.size(0)}, x.options().dtype(at::kFloat));
  product(all, Input(x, {}), Target{out.data_ptr(), nullptr, true, weight.size(0)}, false);
  return out;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const int64_t width = x.size(1);
  const bool wide = is_float(x);
  const Prepared::Norm by = norm_of(weight, eps);
  Tensor out = at::empty({x.size(0), width}, x.options());
  std::vector<float> scaled(width);
  for (int64_t m = 0; m < x.size(0); m++) {
    kernels().normalize(row_of(x, m), wide, by.weight, by.is_float, by.eps, width, scaled.data());
    for (int64_t i = 0; i < width; i++) store(out.data_ptr(), wide, m * width + i, scaled[i]);
  }
  return out;
}

Tensor linear_heads(const Tensor& x, const Tensor& weight) {
  const int64_t tokens = x.size(0), heads = x.size(1), width = x.size(2), rows = weight.size(1);
  const int bits = is_float(weight) ? 32 : 16;
  Tensor out = at::empty({tokens, heads, rows}, x.options());
  const int64_t units = (rows + kRows - 1) / kRows;
  const int64_t head_bytes = x.stride(1) * x.element_size();
  const Matrix whole(weight.flatten(0, 1), std::nullopt, width, bits);
  for (int64_t first = 0; first < tokens; first += kTokens) {
    const int count = int(std::min<int64_t>(tokens - first, kTokens));
    share(heads, 1, weight.nbytes(), [&](int64_t begin, int64_t end) {
      Prepared ready(count, width, bits);
      alignas(64) float found[kRows * kTokens];
      for (int64_t head = begin; head < end; head++) {
        for (int m = 0; m < count; m++) {
          ready.fill(m, row_of(x, first + m) + head * head_bytes, is_float(x), {});
        }
        const Matrix matrix = whole.part(head * rows, rows);
        for (int64_t unit = 0; unit < units; unit++) {
          matrix.times(unit * kRows, std::min((unit + 1) * kRows, rows), ready.tokens, found);
          for (int r = 0; r < kRows && unit * kRows + r < rows; r++) {
            for (int m = 0; m < count; m++) {
              const int64_t at = ((first + m) * heads + head) * rows + unit * kRows + r;
              store(out.data_ptr(), is_float(x), at, found[r * kTokens + m]);
            }
          }
        }
      }
    });
  }
  return out;
}

}  // namespace llamaseek
