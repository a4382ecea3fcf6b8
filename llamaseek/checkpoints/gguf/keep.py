"""Layers over a GGUF file's blocks in place of a model's own: no matrix is widened.

Types without a kernel, and matrices that decoding takes apart (`kv_b_proj`), are widened as before.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llamaseek.checkpoints.gguf.read import Blocks, GgufLazy
from llamaseek.kernels.blocks import KINDS
from llamaseek.models import CausalLM
from llamaseek.models.lazy import Lazy, lazy
from llamaseek.models.moe import Experts
from llamaseek.models.quant.blocks import SUFFIX, BlockEmbedding, BlockExperts, BlockLinear

PARTS = ("gate", "up", "down")


def keep_blocks(model: CausalLM, stored: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """Change the model, and give the tensors as it then wants them: blocks by their own names."""
    found = dict(stored)
    for name, module in list(model.named_modules()):
        if isinstance(module, Experts):
            _keep_experts(model, name, module, found)
        elif isinstance(module, (nn.Linear, nn.Embedding)) and not name.endswith("kv_b_proj"):
            shared = model.tied and name == "lm_head"
            weight = "model.embed_tokens.weight" if shared else f"{name}.weight"
            if blocks := _blocks(stored.get(weight)):
                _keep_matrix(model, name, module, blocks)
                found.pop(weight, None)
                found[f"{name}.{SUFFIX}"] = _mapped(torch.from_numpy(blocks.data))
    return found


def _blocks(tensor: Lazy | None) -> Blocks | None:
    """A tensor's blocks if there are kernels for them."""
    blocks = tensor.blocks if isinstance(tensor, GgufLazy) else None
    return blocks if blocks is not None and blocks.kind.name in KINDS else None


def _keep_matrix(
    model: CausalLM, name: str, module: nn.Linear | nn.Embedding, blocks: Blocks
) -> None:
    rows, row_bytes = blocks.data.shape
    kind = int(blocks.kind)
    if isinstance(module, nn.Embedding):
        kept: nn.Module = BlockEmbedding(rows, row_bytes, kind)
    else:
        kept = BlockLinear(rows, module.in_features, row_bytes, kind, blocks.head)
    model.set_submodule(name, kept)


def _keep_experts(model: CausalLM, name: str, module: Experts, found: dict[str, Lazy]) -> None:
    count = len(module.down_proj)
    names = {part: [f"{name}.{e}.{part}_proj.weight" for e in range(count)] for part in PARTS}
    blocks = {part: _blocks(found.get(names[part][0])) for part in PARTS}
    stacked: dict[str, Tensor] = {}
    kinds: dict[str, int] = {}
    for part, some in blocks.items():
        if some is None:
            return
        stacked[part] = torch.from_numpy(some.whole).view(count, *some.data.shape)
        kinds[part] = int(some.kind)
    shapes = {part: tuple(tensor.shape) for part, tensor in stacked.items()}
    model.set_submodule(name, BlockExperts(shapes, kinds))
    for part, tensor in stacked.items():
        for each in names[part]:
            del found[each]
        found[f"{name}.{part}_blocks"] = _mapped(tensor)


def _mapped(tensor: Tensor) -> Lazy:
    plain = lazy(tensor)
    return Lazy(plain.dtype, plain.shape, plain.rows, lambda: tensor)
