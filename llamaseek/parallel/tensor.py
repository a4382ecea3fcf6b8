"""Tensor parallel with sequence parallel: every matrix is split over the ranks of a node.

Between blocks each rank holds T / R of a row's tokens, and norms run on those. A block gathers
them, multiplies with its own heads or columns, and its last matrix's partial results are added
and split again (Megatron-LM, Shoeybi et al. 2019; sequence parallel, Korthikanti et al. 2022).
Weights are DTensors; the products run on each rank's own numbers. Gradients of what is not split
(norms, router, latent projections) are parts, one for each rank's tokens, and are added up once a
step with the replicas' (`parallel/weights.py`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor

from llamaseek.data.batch import IGNORE
from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from llamaseek.models.attention import GroupedQueryAttention, LatentAttention
from llamaseek.models.head import Head, Read, Score, Softmax
from llamaseek.models.layers import GatedMLP, widen
from llamaseek.parallel.collectives import Group, gather, gather_whole, own_ids, scatter, sum_whole
from llamaseek.parallel.context import Slices
from llamaseek.parallel.layers import (
    ColumnParallelLinear,
    ParallelLMHead,
    RowParallelLinear,
    VocabParallelEmbedding,
    local,
)
from llamaseek.parallel.mesh import Mesh

ROWS, COLUMNS = 0, 1  # of a weight (out, in)
TOKENS = -2  # of activations (B, T, D) or (N, D)


def split(parameter: nn.Parameter, mesh: Mesh, dim: int) -> nn.Parameter:
    """The parameter as a DTensor of which each tensor rank keeps its share along `dim`."""
    if mesh.tensor is None:
        return parameter
    if parameter.shape[dim] % mesh.tensor.size():
        size = parameter.shape[dim]
        raise UserError(f"parallel.tensor: {mesh.tensor.size()} does not divide a width of {size}")
    # Every rank holds the same weights already, so nothing is sent.
    shared = distribute_tensor(
        parameter.data, mesh.root["tensor"], [Shard(dim)], src_data_rank=None
    )
    return nn.Parameter(shared, requires_grad=parameter.requires_grad)


def split_linears(module: nn.Module, mesh: Mesh, dims: dict[str, int]) -> None:
    """Put split layers in place of the named linear layers that `module` has. Partial results are
    added up, and each rank keeps its tokens.
    """
    for name, dim in dims.items():
        linear = getattr(module, name, None)
        if linear is None:
            continue
        size = linear.in_features, linear.out_features
        with torch.device("meta"):
            if dim == ROWS:
                replaced = ColumnParallelLinear(*size, bias=False)
            else:
                replaced = RowParallelLinear(*size, bias=False)
                replaced.reduce = partial(scatter, dim=TOKENS, group=mesh.tensor)
        replaced.weight = split(linear.weight, mesh, dim)
        setattr(module, name, replaced)


def split_layer(layer: nn.Module, mesh: Mesh) -> None:
    """Split attention and dense feed-forward of a layer; routed experts are `expert.py`'s."""
    attention = getattr(layer, "self_attn", None)
    if isinstance(attention, LatentAttention):
        split_latent_attention(attention, mesh)
    elif isinstance(attention, GroupedQueryAttention):
        split_grouped_attention(attention, mesh)
    mlp = getattr(layer, "mlp", None)
    dense = mlp if isinstance(mlp, GatedMLP) else getattr(mlp, "shared_experts", None)
    if isinstance(dense, GatedMLP):
        split_feed_forward(dense, mesh)


def split_grouped_attention(attention: GroupedQueryAttention, mesh: Mesh) -> None:
    """Whole key-value heads, each with its query heads."""
    rows = dict.fromkeys(("q_proj", "k_proj", "v_proj"), ROWS)
    split_linears(attention, mesh, {**rows, "o_proj": COLUMNS})
    gather_before(attention, mesh.tensor)


def split_latent_attention(attention: LatentAttention, mesh: Mesh) -> None:
    """Whole heads. The latents, made of each rank's own tokens, are what is gathered: they are
    narrower than the hidden states.
    """
    rows = dict.fromkeys(("q_proj", "q_b_proj", "kv_b_proj"), ROWS)
    split_linears(attention, mesh, {**rows, "o_proj": COLUMNS})
    if attention.q_lora_rank is None:
        gather_before(attention.q_proj, mesh.tensor)
    else:
        gather_after(attention.q_a_proj, mesh.tensor)
    gather_after(attention.kv_a_proj_with_mqa, mesh.tensor)


def split_feed_forward(mlp: GatedMLP, mesh: Mesh) -> None:
    """Columns of the inner width."""
    split_linears(mlp, mesh, {"gate_proj": ROWS, "up_proj": ROWS, "down_proj": COLUMNS})
    gather_before(mlp, mesh.tensor)


def gather_before(module: nn.Module, group: Group) -> None:
    """The module sees the tokens of all ranks."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (gather(args[0], TOKENS, group), *args[1:])

    module.register_forward_pre_hook(hook)


def gather_after(module: nn.Module, group: Group) -> None:
    """What the module makes of its tokens is put together with the other ranks'."""
    module.register_forward_hook(lambda module, args, out: gather(out, TOKENS, group))


class SplitHead(ParallelLMHead):
    """Gathers hidden states over tensor ranks, reads them against its rows of the vocabulary, and
    puts the context ranks' results together: what comes out is whole and the same on all.
    """

    slices: Slices
    group: Group

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, read: Read | None = None
    ) -> Tensor:
        """As `Head.forward`, for hidden (B, T / C / R, D) and the targets (B, T) of whole rows."""
        hidden = gather(hidden, 1, self.group)
        if read is None or targets is None:
            return self.slices.whole_alike(super().forward(hidden))
        softmax = None if self.group is None else vocabulary_softmax(self.group)
        out = read(hidden, local(self.weight), self.slices.own(targets), softmax)
        return self.slices.whole_alike(out) if out.dim() else sum_whole(out, self.slices.group)


class SplitScore(Score):
    """Scores this rank's tokens, and puts all ranks' scores together: whole rows, alike on all."""

    slices: Slices
    group: Group

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, T / C / R, D) → (B, T)."""
        return self.slices.whole_alike(gather_whole(super().forward(hidden), 1, self.group))


def split_vocabulary(model: CausalLM, mesh: Mesh, slices: Slices) -> None:
    """Put split tables in place of embedding and head, those that the model has; a reward model's
    score stays whole, for a rank's own tokens. In place.
    """
    embedding = model.model.embed_tokens
    split_weight: dict[nn.Parameter, nn.Parameter] = {}  # a tied weight stays one

    def replaced(table: nn.Module, new: Any) -> Any:
        weight = table.get_parameter("weight")
        if weight not in split_weight:
            split_weight[weight] = split(weight, mesh, 0)
        new.weight = split_weight[weight]
        return new

    size = (model.config.vocab_size, model.config.hidden_size)
    with torch.device("meta"):
        new_embedding, new_head = VocabParallelEmbedding(*size), SplitHead(size[1], size[0])
    new_embedding.register_forward_pre_hook(lambda module, args: (slices.own(args[0]),))
    new_embedding.rank = None if mesh.tensor is None else mesh.tensor.rank()
    new_embedding.reduce = partial(scatter, dim=1, group=mesh.tensor)
    new_head.join = partial(gather_whole, dim=-1, group=mesh.tensor)
    new_head.slices, new_head.group = slices, mesh.tensor
    if isinstance(embedding, nn.Embedding):
        model.model.embed_tokens = replaced(embedding, new_embedding)
    elif embedding.embed_tokens is not None:  # a later stage's second copy
        embedding.embed_tokens = replaced(embedding.embed_tokens, new_embedding)
    if model.config.is_reward_model:
        if isinstance(model.score, Score):
            model.score = split_score(model.score, slices, mesh.tensor)
    elif isinstance(model.lm_head, Head):
        model.lm_head = replaced(model.lm_head, new_head)


def split_score(score: Score, slices: Slices, group: Group) -> SplitScore:
    """The score with its own weight, for rows that are split."""
    new = SplitScore(score.in_features, torch.device("meta"))
    new.weight, new.slices, new.group = score.weight, slices, group
    return new


def vocabulary_softmax(group: dist.ProcessGroup) -> Softmax:
    """`Softmax` over logits (N, V / R) of which each rank holds its columns."""

    def gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_p, share = _log_probs_and_shares(logits, targets, group)
        inside, place = own_ids(targets, logits.shape[1], group.rank())
        share.scatter_add_(1, place[:, None], -inside[:, None].to(share.dtype))
        return -log_p.masked_fill(targets == IGNORE, 0).sum(), share.to(logits.dtype)

    def log_probs(logits: Tensor, targets: Tensor) -> Tensor:
        out: Tensor = _LogProbs.apply(logits, targets, group)
        return out

    return Softmax(gradient, log_probs)


def _log_probs_and_shares(
    logits: Tensor, targets: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """log p(target) (N), and the probabilities (N, V / R) of this rank's columns."""
    wide = widen(logits)
    top = wide.amax(1)
    dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
    shifted = wide - top[:, None]
    inside, place = own_ids(targets, logits.shape[1], group.rank())
    at_target = shifted.gather(1, place[:, None]).squeeze(1).masked_fill(~inside, 0)
    exponents = shifted.exp()
    sums = torch.stack((at_target, exponents.sum(1)))
    dist.all_reduce(sums, group=group)
    return sums[0] - sums[1].log(), exponents / sums[1][:, None]


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, group: dist.ProcessGroup) -> Tensor:
        log_p, share = _log_probs_and_shares(logits, targets, group)
        inside, place = own_ids(targets, logits.shape[1], group.rank())
        ctx.save_for_backward(share, inside, place)
        ctx.dtype = logits.dtype
        return log_p

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        share, inside, place = ctx.saved_tensors
        at_target = torch.zeros_like(share).scatter_(1, place[:, None], inside[:, None].to(share))
        return ((at_target - share) * gradient[:, None]).to(ctx.dtype), None, None
