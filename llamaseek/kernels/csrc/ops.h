// The operations; their arguments and shapes are told in llamaseek/kernels/ops.py.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace llamaseek {

using at::Tensor;

Tensor linear(const Tensor& x, const std::optional<Tensor>& norm, double eps,
              at::TensorList weights, at::TensorList scales, int64_t bits,
              const std::optional<Tensor>& residual, bool gate);
Tensor linear_blocks(const Tensor& x, const std::optional<Tensor>& norm, double eps,
                     at::TensorList weights, at::IntArrayRef kinds, at::IntArrayRef heads,
                     const std::optional<Tensor>& residual, bool gate);
Tensor widen_blocks(const Tensor& blocks, int64_t kind);
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);
Tensor linear_heads(const Tensor& x, const Tensor& weight);
std::tuple<Tensor, Tensor> route(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                 int64_t groups, int64_t kept, int64_t choices, bool normalize,
                                 double scale);
Tensor experts(const Tensor& x, const Tensor& chosen, const Tensor& gates, const Tensor& gate_up,
               const std::optional<Tensor>& gate_up_scale, const Tensor& down,
               const std::optional<Tensor>& down_scale, int64_t bits, int64_t down_bits);
Tensor attend(const Tensor& q, const Tensor& keys, const Tensor& values, const Tensor& tables,
              const Tensor& lengths, int64_t size, double scale);
Tensor rotate_store(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& slots,
                    Tensor keys, Tensor values);
Tensor rotate_store_latent(const Tensor& q, const Tensor& absorbed, const Tensor& latent,
                           const Tensor& norm, double eps, const Tensor& cos, const Tensor& sin,
                           const Tensor& slots, Tensor kept);

}  // namespace llamaseek
