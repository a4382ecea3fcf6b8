"""`train.float8`: the layers' matrix products in fp8, forward and backward.

What stays as it is: embedding, head, routers, norms and attention (DeepSeek-V3 report §3.3.1), and
with torchao's scales routed experts too. Weights, gradients and moments stay float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from llamaseek.models.block_scaled import BlockScaledLinear, grouped_product
from llamaseek.models.moe import Experts
from llamaseek.recipe import Float8

if TYPE_CHECKING:
    from torchao.float8 import Float8LinearConfig

LEAST = (8, 9)  # compute capability with fp8 products
MULTIPLE = 16  # of both widths of a matrix, for cuBLAS


def use_float8(model: CausalLM, kind: Float8, device: torch.device) -> None:
    """Put fp8 layers in place of the linear ones of every layer, with the same weights.

    `UserError` for torchao's kinds where there is no GPU that has such products, or no torchao.
    """
    if kind == "deepseek":
        in_blocks(model)
    elif kind != "none":
        check_gpu(kind, device)
        in_torchao(model, torchao_config(kind))


def in_blocks(model: CausalLM) -> None:
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
