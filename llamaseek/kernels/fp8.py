"""Products with weights in fp8 blocks: the operator `fp8_linear`, and what it computes in PyTorch.

A weight is e4m3 numbers with a float32 scale for every block of 128 × 128, as DeepSeek-V3 is
published (report §3.3.2; inference/kernel.py `weight_dequant` of the release). Activations stay as
they are. On GPUs that know e4m3 few tokens go through the Triton kernel of `fp8_few`, which widens
what it reads on the way; for many the widened weight is made once, and dropped.

M tokens, K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llamaseek.herd.formats import BLOCK
from llamaseek.kernels.ops import TRITON, few_on_gpu, library

E4M3 = (8, 9)  # the first compute capability that reads it

library.define("fp8_linear(Tensor x, Tensor weight, Tensor scale) -> Tensor")


def dequantize_fp8(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """weight (..., N, K) e4m3 × scale (..., ⌈N/128⌉, ⌈K/128⌉) → (..., N, K) in `dtype`."""
    rows, columns = weight.shape[-2:]
    wide = scale.repeat_interleave(BLOCK, -2)[..., :rows, :]
    wide = wide.repeat_interleave(BLOCK, -1)[..., :columns]
    return (weight.float() * wide).to(dtype)


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x (M, K) times a weight (N, K) in fp8 blocks → (M, N), in x's dtype."""
    return F.linear(x, dequantize_fp8(weight, scale, x.dtype))


def on_cuda(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The same; see `fp8_linear`."""
    if not few_on_gpu(len(x), x.dtype) or torch.cuda.get_device_capability(x.device) < E4M3:
        return fp8_linear(x, weight, scale)
    from llamaseek.kernels.fp8_few import multiply

    with torch.cuda.device_of(x):
        return multiply(x, weight, scale)


library.impl("fp8_linear", fp8_linear, "CompositeExplicitAutograd")
if TRITON:
    library.impl("fp8_linear", on_cuda, "CUDA")
torch.library.register_fake(
    "llamaseek::fp8_linear", lambda x, weight, scale: x.new_empty(len(x), len(weight)), lib=library
)
