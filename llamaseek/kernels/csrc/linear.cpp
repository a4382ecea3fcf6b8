// Matrix products of a few tokens: every weight is read once, whatever the number of tokens.
#include <algorithm>
#include <vector>

#include "ops.h"
#include "spans.h"

namespace llamaseek {
namespace {

Prepared prepare(const Tensor& x, int64_t first, int bits, const Prepared::Norm& norm) {
  const int count = int(std::min<int64_t>(x.size(0) - first, kTokens));
  Prepared ready(count, x.size(1), bits);
  const int64_t bytes = count * x.size(1) * x.element_size();
  share(count, 1, bytes, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) {
      ready.fill(int(m), row_of(x, first + m), is_float(x), norm);
    }
  });
  return ready;
}

std::vector<Matrix> matrices(at::TensorList weights, at::TensorList scales,
                             int64_t width) {
  std::vector<Matrix> found;
  for (size_t i = 0; i < weights.size(); i++) {
    found.emplace_back(weights[i], scales.empty() ? std::nullopt : std::optional(scales[i]), width);
  }
  return found;
}

// Where tiles put what they made: rows of out (M, N) from `first` on, on top of a residual.
struct Target {
  void* out;
  const void* residual;
  bool wide;
  int64_t width, first;

  void put(int64_t m, int64_t n, float value) const {
    const int64_t at = (first + m) * width + n;
    store(out, wide, at, residual ? value + load(residual, wide, at) : value);
  }
};

// out[:, offset + n] = matrix n · tokens, for each matrix behind the one before.
void multiply(const std::vector<Matrix>& all, const Tokens& tokens, Tile tile, const Target& to) {
  std::vector<int64_t> ends, offsets;
  int64_t units = 0, offset = 0, bytes = 0;
  for (const Matrix& one : all) {
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
      Rows rows{};
      for (int r = 0; r < kRows; r++) all[i].point(rows, r, row + r, kRows);
      tile(rows, tokens, found);
      for (int r = 0; r < kRows && row + r < all[i].rows; r++) {
        for (int m = 0; m < tokens.count; m++) {
          to.put(m, offsets[i] + row + r, found[r * kTokens + m]);
        }
      }
    }
  });
}

}  // namespace

Tensor linear(const Tensor& x, const std::optional<Tensor>& norm, double eps,
              at::TensorList weights, at::TensorList scales, int64_t bits,
              const std::optional<Tensor>& residual, bool gate) {
  const auto all = matrices(weights, scales, x.size(1));
  int64_t width = 0;
  for (const Matrix& one : all) width += one.rows;
  if (gate) width /= 2;
  Tensor out = at::empty({x.size(0), width}, x.options());
  const Tile tile = tile_for(bits);
  Target to{out.data_ptr(), residual ? residual->const_data_ptr() : nullptr, is_float(x), width, 0};
  for (; to.first < x.size(0); to.first += kTokens) {
    const Prepared ready = prepare(x, to.first, int(bits), norm_of(norm, eps));
    if (!gate) {
      multiply(all, ready.tokens, tile, to);
      continue;
    }
    share(width, span(width), 2 * all[0].bytes(), [&](int64_t begin, int64_t end) {
      gate_span(all[0], all[1], begin, end, ready.tokens, tile,
                [&](int m, int64_t n, float value) { to.put(m, n, value); });
    });
  }
  return out;
}

Tensor float_products(const Tensor& x, const Tensor& weight) {
  const int bits = is_float(weight) ? 32 : 16;
  const std::vector<Matrix> all{Matrix(weight, std::nullopt, x.size(1))};
  Tensor out = at::empty({x.size(0), weight.size(0)}, x.options().dtype(at::kFloat));
  Target to{out.data_ptr(), nullptr, true, weight.size(0), 0};
  for (; to.first < x.size(0); to.first += kTokens) {
    multiply(all, prepare(x, to.first, bits, {}).tokens, tile_for(bits), to);
  }
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
  const Tile tile = tile_for(bits);
  Tensor out = at::empty({tokens, heads, rows}, x.options());
  const int64_t units = (rows + kRows - 1) / kRows;
  const int64_t head_bytes = x.stride(1) * x.element_size();
  for (int64_t first = 0; first < tokens; first += kTokens) {
    const int count = int(std::min<int64_t>(tokens - first, kTokens));
    share(heads, 1, weight.nbytes(), [&](int64_t begin, int64_t end) {
      Prepared ready(count, width, bits);
      alignas(64) float found[kRows * kTokens];
      for (int64_t head = begin; head < end; head++) {
        for (int m = 0; m < count; m++) {
          ready.fill(m, row_of(x, first + m) + head * head_bytes, is_float(x), {});
        }
        const Matrix matrix(weight[head], std::nullopt, width);
        for (int64_t unit = 0; unit < units; unit++) {
          Rows tile_of{};
          for (int r = 0; r < kRows; r++) matrix.point(tile_of, r, unit * kRows + r, kRows);
          tile(tile_of, ready.tokens, found);
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
