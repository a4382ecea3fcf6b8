"""DeepSeek-V3's training products in fp8: e4m3 numbers, a float32 scale for each small tile.

What is multiplied, after report §3.3.1 and §3.3.2; scales are computed from the numbers at hand:

- forward, y = x Wᵀ: x in tiles of 1 token × 128 inputs, W in blocks of 128 × 128;
- gradient of x, dy W: dy in tiles of 1 token × 128 outputs, W in the same blocks;
- gradient of W, dyᵀ x: both in tiles of 128 tokens × 1. As there (§3.5.2), x is kept from the
  forward pass in fp8, and goes from its tiles into the new ones.

Sums are taken in float32. A Hopper GPU multiplies the e4m3 numbers themselves (cuBLAS of CUDA 12.9
or later, through `torch.nn.functional.scaled_mm`). Elsewhere the same numbers are widened to
float32 and multiplied there: equal but for the order of the sums, and no faster. Routed experts
are multiplied one after the other, as PyTorch has no grouped product of tiles.

N tokens, I inputs, O outputs, R rows, K inner width of a product, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamaseek.errors import UserError
from llamaseek.herd.formats import BLOCK
from llamaseek.kernels.fp8 import dequantize_fp8
from llamaseek.models import CausalLM
from llamaseek.models.layers import matmul_dtype
from llamaseek.models.moe import Experts
from llamaseek.models.quant.fp8 import FP8_MAX, SMALLEST, quantize

if TYPE_CHECKING:
    from torchao.float8 import Float8LinearConfig

    from llamaseek.recipe.schema import Float8


HOPPER = (9, 0)
OLDEST_CUDA = (12, 9)


@dataclass(frozen=True)
class Scaled:
    """A matrix (R, K), padded to whole blocks, as e4m3 numbers and float32 scales.

    scales are (R, K / 128) of tiles, (R / 128, K / 128) of blocks. `rows` and `columns` count what
    is no padding.
    """

    numbers: Tensor
    scales: Tensor
    rows: int
    columns: int

    @property
    def blocks(self) -> bool:
        """Whether rows share scales too."""
        return len(self.scales) != len(self.numbers)

    def dense(self) -> Tensor:
        """The values in float32, padding included."""
        if self.blocks:
            return dequantize_fp8(self.numbers, self.scales, torch.float32)
        return self.numbers.float() * self.scales.repeat_interleave(BLOCK, -1)

    def transposed(self) -> Scaled:
        """Blocks, turned."""
        numbers, scales = self.numbers.T.contiguous(), self.scales.T
        return Scaled(numbers, scales, self.columns, self.rows)


def padded(x: Tensor) -> Tensor:
    """x (R, K) in float32, with zeros up to whole blocks."""
    return F.pad(x.float(), (0, -x.shape[1] % BLOCK, 0, -x.shape[0] % BLOCK))


def in_tiles(x: Tensor) -> Scaled:
    """x (R, K) with a scale for every 128 numbers of a row, the largest of which becomes 448."""
    tiles = padded(x).unflatten(-1, (-1, BLOCK))
    scales = tiles.abs().amax(-1).clamp(min=SMALLEST) / FP8_MAX
    numbers = (tiles / scales[..., None]).flatten(-2).to(torch.float8_e4m3fn)
    return Scaled(numbers, scales, *x.shape)


def in_blocks(weight: Tensor) -> Scaled:
    """weight (R, K) with a scale for every block of 128 × 128."""
    return Scaled(*quantize(padded(weight)), *weight.shape)


def product(a: Scaled, b: Scaled, dtype: torch.dtype) -> Tensor:
    """a (R, K) in tiles, b (S, K) in tiles or blocks → a bᵀ (R, S), summed in float32."""
    if multiplies_tiles(a.numbers.device):
        out = _native(a, b, torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    else:
        with torch.autocast(a.numbers.device.type, enabled=False):
            out = a.dense() @ b.dense().T
    return out[: a.rows, : b.rows].to(dtype)


def multiplies_tiles(device: torch.device) -> bool:
    """Whether products of tiles have a kernel there."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    version = tuple(map(int, torch.version.cuda.split(".")[:2]))
    return version >= OLDEST_CUDA and torch.cuda.get_device_capability(device) == HOPPER


def _native(a: Scaled, b: Scaled, dtype: torch.dtype) -> Tensor:
    """cuBLAS's product, which wants scales laid out with the rows innermost, those of blocks with
    the inner width innermost, padded to a multiple of four.
    """
    kinds = F.ScalingType
    scales_a, scales_b = a.scales.T.contiguous().T, b.scales.T.contiguous().T
    if b.blocks:
        scales_b = F.pad(b.scales, (0, -b.scales.shape[1] % 4)).T
    return F.scaled_mm(
        a.numbers,
        b.numbers.T,
        scales_a,
        kinds.BlockWise1x128,
        scales_b,
        kinds.BlockWise128x128 if b.blocks else kinds.BlockWise1x128,
        output_dtype=dtype,
    )


class _Linear(torch.autograd.Function):
    """x (N, I), weight (O, I) → (N, O) in `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        own = in_tiles(x)
        ctx.save_for_backward(own.numbers, own.scales, weight)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return product(own, in_blocks(weight), dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        numbers, scales, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = product(in_tiles(gradient), in_blocks(weight).transposed(), ctx.dtype)
        if ctx.needs_input_grad[1]:
            tokens, inputs = ctx.shape
            x = Scaled(numbers, scales, *ctx.shape).dense()[:tokens, :inputs]
            dw = product(in_tiles(gradient.T), in_tiles(x.T), weight.dtype)
        return dx, dw, None


class BlockScaledLinear(nn.Linear):
    """A linear layer without bias whose three products are made of e4m3 tiles and blocks."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) → (..., O) in the dtype that matrix products run in."""
        out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), self.weight, matmul_dtype(x))
        return out.view(*x.shape[:-1], -1)


@torch.compiler.disable  # how many tokens an expert has is known on the host only
def grouped_product(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """`moe.grouped_product` of tiles and blocks: a product a group, so no tile spans two."""
    dtype = matmul_dtype(x)
    parts = x.split(ends.diff(prepend=ends.new_zeros(1)).tolist())
    outs = [
        _Linear.apply(part, weight, dtype)
        for part, weight in zip(parts, weights.unbind(), strict=True)
        if len(part)
    ]
    return torch.cat(outs) if outs else x.new_empty(0, weights.shape[1], dtype=dtype)


LEAST = (8, 9)  # compute capability with fp8 products
MULTIPLE = 16  # of both widths of a matrix, for cuBLAS


def use_float8(model: CausalLM, kind: Float8, device: torch.device) -> None:
    """Put fp8 layers in place of the linear ones of every layer, with the same weights.

    `UserError` for torchao's kinds where there is no GPU that has such products, or no torchao.
    """
    if kind == "deepseek":
        use_block_scaled(model)
    elif kind != "none":
        check_gpu(kind, device)
        in_torchao(model, torchao_config(kind))


def use_block_scaled(model: CausalLM) -> None:
    """DeepSeek-V3's tiles and blocks, routed experts included."""
    for layer in model.model.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, Experts):
                module.product = grouped_product
            elif type(module) is nn.Linear:
                layer.set_submodule(name, _block_scaled(module))


def _block_scaled(linear: nn.Linear) -> BlockScaledLinear:
    sizes = linear.in_features, linear.out_features
    made = BlockScaledLinear(*sizes, bias=False, device="meta")
    made.weight = linear.weight
    return made


def check_gpu(kind: str, device: torch.device) -> None:
    """Whether `device` multiplies fp8."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < LEAST:
        raise UserError(
            f"train.float8: {kind} needs a GPU of compute capability "
            f"{'.'.join(map(str, LEAST))} or more; allowed here: none, and deepseek, which is "
            "emulated"
        )


def torchao_config(kind: str) -> Float8LinearConfig:
    """torchao's own recipe: one scale a tensor, or one a row."""
    try:
        from torchao.float8 import Float8LinearConfig
    except ImportError:
        raise UserError("train.float8: needs torchao; pip install 'llamaseek[float8]'") from None
    return Float8LinearConfig.from_recipe_name(kind)


def in_torchao(model: CausalLM, config: Float8LinearConfig) -> None:
    """torchao's layers in place of those that `is_converted`."""
    from torchao.float8 import convert_to_float8_training

    convert_to_float8_training(model, module_filter_fn=is_converted, config=config)


def is_converted(module: nn.Module, name: str) -> bool:
    """Whether torchao multiplies this module of a model in fp8: a layer's, of widths it takes."""
    widths = module.weight.shape if type(module) is nn.Linear else (1,)
    return name.startswith("model.layers.") and not any(size % MULTIPLE for size in widths)
