"""A rank's shard of a model for inference: a narrower model of the same family.

It has 1 / R of the heads, of the inner width of every feed-forward and expert, and of the
vocabulary (Megatron-LM, Shoeybi et al. 2019); what a matrix with a share of its inputs makes is
added up over the ranks. Grouped queries cache their own key-value heads, latent attention the whole
latent. Only the share is read from the folder: rows where they lie in the file, columns copied.

N tokens, D width, V vocabulary, R ranks.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from llamaseek.checkpoints.hf import SkipInit, materialise, read_folder
from llamaseek.checkpoints.widen import dequantized
from llamaseek.engine.ranks.tensor_group import TensorGroup
from llamaseek.herd.folder import read_config
from llamaseek.herd.formats import BLOCK
from llamaseek.models import CausalLM, build_model
from llamaseek.models.lazy import Lazy
from llamaseek.models.moe import Experts
from llamaseek.parallel.layers import ParallelLMHead, RowParallelLinear, VocabParallelEmbedding

CPU = torch.device("cpu")
ROWS = {"q_proj", "q_b_proj", "k_proj", "v_proj", "kv_b_proj", "gate_proj", "up_proj"}
TABLES = {"embed_tokens", "lm_head"}
COLUMNS = {"o_proj", "down_proj"}


def load_share(
    folder: Path, dtype: torch.dtype, group: TensorGroup, device: torch.device = CPU
) -> CausalLM:
    """This rank's share of a folder's model, in `dtype` on `device`; fp8 blocks are widened.

    Raises `UserError` as `load_model` does. The degree is checked before, by
    `check.answering_problems`.
    """
    config = read_config(folder)
    tensors = dequantized(read_folder(folder, config), dtype)
    with torch.device("meta"), SkipInit():
        model = build_model(config.tensor_shard(group.size))
        add_up(model, group)
        model = model.to(dtype)
    mine = {name: own_share(name, tensor, group) for name, tensor in tensors.items()}
    return materialise(model, mine, mapped=True, device=device)


def own_share(name: str, tensor: Lazy, group: TensorGroup) -> Lazy:
    """This rank's rows or columns of a folder's tensor, or all of it."""
    layer = name.removesuffix(".weight").rpartition(".")[2]
    if layer in ROWS | TABLES:
        return _rows(tensor, group)
    return _columns(tensor, group) if layer in COLUMNS else tensor


def _rows(tensor: Lazy, group: TensorGroup) -> Lazy:
    count = tensor.shape[0] // group.size
    first, mapped = group.rank * count, tensor.mapped

    def rows(start: int, stop: int) -> Tensor:
        begin = (first + start) // BLOCK * BLOCK  # no block of an fp8 matrix is cut
        return tensor.rows(begin, first + stop)[first + start - begin :]

    own = None if mapped is None else lambda: mapped()[first : first + count]
    return Lazy(tensor.dtype, (count, *tensor.shape[1:]), rows, own)


def _columns(tensor: Lazy, group: TensorGroup) -> Lazy:
    height, width = tensor.shape
    count = width // group.size
    own = slice(group.rank * count, (group.rank + 1) * count)
    return Lazy(tensor.dtype, (height, count), lambda a, b: tensor.rows(a, b)[:, own])


class SummedExperts(Experts):
    """Routed experts with this rank's share of their inner width."""

    group: TensorGroup

    def forward(self, x: Tensor, chosen: Tensor, gates: Tensor, load: Tensor) -> Tensor:
        """As `Experts.forward`, the same on every rank."""
        return self.group.sum(super().forward(x, chosen, gates, load))


def add_up(model: CausalLM, group: TensorGroup) -> None:
    """Put layers that add up over ranks where a narrow model has shares of sums. In place."""
    config = model.config
    size, rows = config.hidden_size, config.vocab_size // group.size
    embedding, head = VocabParallelEmbedding(rows, size), ParallelLMHead(size, rows)
    embedding.rank, embedding.reduce, head.join = group.rank, group.sum, group.beside
    model.model.embed_tokens, model.lm_head = embedding, head
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, Experts):
            _, _, hidden, width = module.gate_up_proj.shape
            experts = SummedExperts(len(module.down_proj), width, hidden)
            experts.group = group
            model.model.layers.set_submodule(name, experts)
        elif name.rpartition(".")[2] in COLUMNS and isinstance(module, nn.Linear):
            linear = RowParallelLinear(module.in_features, module.out_features, bias=False)
            linear.rank, linear.reduce = group.rank, group.sum
            model.model.layers.set_submodule(name, linear)
