#include "driver.h"

#include <cstdlib>
#include <cstring>

namespace llamaseek {

const Kernels& kernels() {
  static const Kernels& best = [&]() -> const Kernels& {
    const char* most = std::getenv("LLAMASEEK_KERNELS");
    const bool held = most && !std::strcmp(most, "avx2");
    const bool wide = __builtin_cpu_supports("avx512bf16") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw");
    return wide && !held ? avx512_kernels : avx2_kernels;
  }();
  return best;
}

namespace {

Tile tile_for(int64_t bits) {
  switch (bits) {
    case 4: return kernels().bits4;
    case 8: return kernels().bits8;
    case 16: return kernels().bf16;
    default: return kernels().wide;
  }
}

}  // namespace

Prepared::Norm norm_of(const std::optional<Tensor>& weight, double eps) {
  if (!weight) return {nullptr, false, 0.0f};
  return {weight->const_data_ptr(), is_float(*weight), float(eps)};
}

Prepared::Prepared(int count, int64_t width, int bits) : bits_(bits) {
  const int64_t blocks = (width + kBlock - 1) / kBlock, padded = blocks * kBlock;
  const int64_t one = padded * 8 + blocks * 4 * (kLanes + 1) + 64;
  memory_ = c10::GetCPUAllocator()->allocate(count * one);
  auto* at = static_cast<uint8_t*>(memory_.get());
  tokens.count = count;
  tokens.width = width;
  for (int m = 0; m < count; m++) {
    uint8_t* from = at + m * one;
    tokens.wide[m] = reinterpret_cast<float*>(from);
    tokens.bf16[m] = reinterpret_cast<uint16_t*>(from + padded * 4);
    tokens.codes[m] = reinterpret_cast<int8_t*>(from + padded * 6);
    tokens.bias[m] = reinterpret_cast<int32_t*>(from + padded * 8);
    tokens.scale[m] = reinterpret_cast<float*>(from + padded * 8 + blocks * 4 * kLanes);
  }
}

void Prepared::fill(int m, const void* row, bool row_is_float, const Norm& norm) {
  const Kernels& k = kernels();
  const int64_t width = tokens.width;
  float* wide = const_cast<float*>(tokens.wide[m]);
  k.normalize(row, row_is_float, norm.weight, norm.is_float, norm.eps, width, wide);
  if (bits_ <= 8) {
    k.encode(wide, width, bits_, const_cast<int8_t*>(tokens.codes[m]),
             const_cast<int32_t*>(tokens.bias[m]), const_cast<float*>(tokens.scale[m]));
  } else if (bits_ == 16) {
    k.narrow(wide, width, const_cast<uint16_t*>(tokens.bf16[m]));
  }
}

Input::Input(const Tensor& x, const Prepared::Norm& norm)
    : data(static_cast<const uint8_t*>(x.const_data_ptr())),
      wide(is_float(x)),
      count(x.size(0)),
      width(x.size(1)),
      stride(x.stride(0) * x.element_size()),
      norm(norm) {}

Matrix::Matrix(const Tensor& weight, const std::optional<Tensor>& scale, int64_t width,
               int64_t bits)
    : weight(static_cast<const uint8_t*>(weight.const_data_ptr())),
      scale(scale ? static_cast<const uint16_t*>(scale->const_data_ptr()) : nullptr),
      rows(weight.size(0)),
      width(width),
      stride(weight.stride(0) * weight.element_size()),
      scales(scale ? scale->size(-1) : 0),
      group(scales > 1 ? width / scales : 0),
      bits(int(bits)),
      tile(tile_for(bits)) {}

Matrix Matrix::part(int64_t first, int64_t count) const {
  Matrix found = *this;
  found.weight += first * stride;
  found.scale += first * scales;
  found.rows = count;
  return found;
}

void Matrix::times(int64_t first, int64_t last, const Tokens& tokens, float* found) const {
  Rows to{};
  to.group = group;
  for (int64_t n = first; n < last; n += kRows) {
    for (int r = 0; r < kRows; r++) {
      // Behind the end the last row is computed again, and dropped.
      const int64_t row = std::min(n + r, rows - 1), next = std::min(n + r + kRows, rows - 1);
      to.weight[r] = weight + row * stride;
      to.scale[r] = scale + row * scales;
      to.next[r] = weight + next * stride;
    }
    tile(to, tokens, found + (n - first) * kTokens);
  }
}

}  // namespace llamaseek
