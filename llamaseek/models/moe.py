"""Mixture of experts with sigmoid scores, a balancing bias and shared experts (V3 report §2.1.2).

N tokens, B batch, T time, D width, E routed experts, K experts per token, F expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamaseek.herd import DeepseekV3Config
from llamaseek.kernels.fused import in_one_pass
from llamaseek.kernels.wide import wide_product
from llamaseek.models.layers import GatedMLP, gated, widen

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of x (N, I) sorted by group, weights (G, O, I) and the groups' ends (G): (N, O)."""


class Router(nn.Module):
    """Picks K experts a token by score plus bias; weighs them by score alone (eq. 13-16)."""

    e_score_correction_bias: Tensor

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        # The bias steers the choice and is moved by load, not by gradients; it stays float32.
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, D) → expert ids and gates (N, K), tokens an expert (E); in two kernels on a GPU."""
        if not in_one_pass(x) or torch.is_grad_enabled():
            chosen, gates = self.choose(self.scores(x))
            return chosen, gates, count_choices(chosen, len(self.weight))
        config = self.config
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.llamaseek.choose_experts(
            wide_product(x, self.weight), self.e_score_correction_bias, config.n_group,
            config.topk_group, config.num_experts_per_tok, config.norm_topk_prob,
            config.routed_scaling_factor,
        )  # fmt: skip
        return found

    def scores(self, x: Tensor) -> Tensor:
        """x (N, D) → sigmoid affinities (N, E), in float32 whatever the model computes in."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(widen(x), widen(self.weight)).sigmoid()

    def choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """scores (N, E) → expert ids (N, K) and gates (N, K)."""
        config = self.config
        biased = self._limit_groups(scores.detach() + self.e_score_correction_bias)
        chosen = biased.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices
        gates = scores.gather(1, chosen)
        if config.norm_topk_prob:
            gates = gates / (gates.sum(-1, keepdim=True) + 1e-20)
        return chosen, gates * config.routed_scaling_factor

    def _limit_groups(self, biased: Tensor) -> Tensor:
        """Keep the topk_group groups whose two best experts sum highest; -inf for the rest.

        Zero in place of -inf would let a dropped expert win where all biased scores are negative.
        """
        config = self.config
        if config.n_group == config.topk_group:
            return biased
        grouped = biased.unflatten(1, (config.n_group, -1))
        best = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept = best.topk(config.topk_group, dim=-1).indices
        dropped = torch.ones_like(best, dtype=torch.bool).scatter(1, kept, False)
        return grouped.masked_fill(dropped[..., None], -torch.inf).flatten(1)


def grouped_product(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """x (N, I) sorted by group, weights (G, O, I), group g ending at ends[g] → (N, O)."""
    weights = weights.to(x.dtype)
    if x.dtype == torch.bfloat16:
        return F.grouped_mm(x, weights.transpose(1, 2), offs=ends)
    return wide_grouped_product(x, weights, ends)


def wide_grouped_product(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """`grouped_product` in more than 16 bits."""
    if x.dtype != torch.float64:
        return F.grouped_mm(x, weights.transpose(1, 2), offs=ends)
    # No grouped kernel takes float64, which only references and tests run in.
    parts = x.tensor_split(ends[:-1].tolist())
    return torch.cat([part @ w.T for part, w in zip(parts, weights, strict=True)])


def leave_wide_products() -> None:
    """Before layers are compiled: the compiler knows the grouped product of bf16 alone, and calls
    that of other dtypes as it is.
    """
    global wide_grouped_product
    wide_grouped_product = torch.compiler.disable(wide_grouped_product)


class Experts(nn.Module):
    """All routed experts' weights, stacked for grouped matrix products, which `product` makes."""

    multiple = 32  # rows of a group on a CPU; see `sorted_places`

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.product: Product = grouped_product
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2, hidden, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, hidden))

    def forward(self, x: Tensor, chosen: Tensor, gates: Tensor, load: Tensor) -> Tensor:
        """x (N, D), chosen and gates (N, K), load (E) tokens an expert → (N, D). Dropless."""
        gate_up = self.gate_up_proj.flatten(1, 2)
        # A recorder of inputs and products in fp8 tiles take the rows alone.
        plain = self.product is grouped_product and x.dtype == torch.bfloat16
        few = chosen.numel() < 16 * self.multiple * len(load)
        multiple = 1 if few or not plain or x.device.type != "cpu" else self.multiple
        weights = (gate_up, self.down_proj)
        return run_experts(x, chosen, gates, load, *weights, self.product, multiple)


def run_experts(
    x: Tensor,
    chosen: Tensor,
    gates: Tensor,
    load: Tensor,
    gate_up: Tensor,
    down: Tensor,
    product: Product = grouped_product,
    multiple: int = 1,
) -> Tensor:
    """`Experts.forward` with weights gate_up (E, 2F, D) and down (E, D, F).

    Experts that no token chose may be left out of load and weights alike.
    """
    tokens, places, ends = sorted_places(chosen, load, multiple)
    gate, up = product(take_rows(x, tokens, places), gate_up, ends).chunk(2, dim=-1)
    inner = gated(gate, up) * sort_gates(gates, tokens, places)[:, None].to(x.dtype)
    return add_rows(product(inner, down, ends), tokens, places)


def sorted_places(chosen: Tensor, load: Tensor, multiple: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Rows sorted by expert: each row's token (M), each choice's row (N, K), the groups' ends (E).

    M is N × K, or more where groups are filled up to a `multiple` of rows with token 0: oneDNN
    compiles a product for each number of rows it has not had lately, for a millisecond.
    """
    order = chosen.flatten().argsort(stable=True)
    rows, tokens = torch.arange(len(order), device=order.device), order // chosen.shape[1]
    filled = load
    if multiple > 1:
        filled, ends = (load + multiple - 1) // multiple * multiple, load.cumsum(0)
        before = filled.cumsum(0) - filled - (ends - load)  # rows added before each group
        rows = rows + before[torch.searchsorted(ends, rows, right=True)]
        room = order.new_zeros(len(order) + len(load) * (multiple - 1))
        tokens = room.scatter(0, rows, tokens)
    places = torch.empty_like(order).scatter(0, order, rows)
    return tokens, places.view_as(chosen), filled.cumsum(0, dtype=torch.int32)


def sort_gates(gates: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    """gates (N, K) of each row (M); 0 of rows that fill up a group, which so have no gradient."""
    blank = gates.new_empty if len(tokens) == places.numel() else gates.new_zeros
    return blank(len(tokens)).scatter(0, places.flatten(), gates.flatten())


class _TakeRows(torch.autograd.Function):
    """PyTorch's own gradient of `x[tokens]` adds row after row, on one core of a CPU, where
    `embedding` copies rows and `embedding_bag` adds them many times as fast as indexing does.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.places = places
        return F.embedding(tokens, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _summed(gradient, ctx.places), None, None


class _AddRows(torch.autograd.Function):
    """Keeps the places as they are, apart from what recomputation drops: a layer computed again
    stops at the products before it, whose results nothing needs.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.tokens = tokens
        return _summed(rows, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return F.embedding(ctx.tokens, gradient), None, None


def _summed(rows: Tensor, places: Tensor) -> Tensor:
    """rows (M, D) at places (N, K) added up, (N, D)."""
    return F.embedding_bag(places, rows, mode="sum")


def take_rows(x: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    """x (N, D) → (M, D), row i that of tokens[i]; a token's rows are at places (N, K)."""
    return _TakeRows.apply(x, tokens, places)  # type: ignore[no-any-return]


def add_rows(rows: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    """The other way: each token's rows added up, (M, D) → (N, D)."""
    return _AddRows.apply(rows, tokens, places)  # type: ignore[no-any-return]


def row_mean(x: Tensor) -> Tensor:
    """The mean (B, E) over a row's tokens (B, T, E)."""
    return x.mean(1)


class MoE(nn.Module):
    """Routed experts plus the shared ones, which see every token."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        hidden = config.moe_intermediate_size
        self.row_mean: Callable[[Tensor], Tensor] = (
            row_mean  # another one where a row is split over ranks
        )
        # Where rows are padded to be split: which of T columns are not padding, bool (T).
        self.real: Callable[[int, torch.device], Tensor] | None = None
        self.gate = Router(config)
        self.experts = Experts(config.n_routed_experts, config.hidden_size, hidden)
        self.shared_experts = (
            GatedMLP(config.hidden_size, hidden * config.n_shared_experts)
            if config.n_shared_experts
            else None
        )

    def forward(
        self, x: Tensor, answers: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x (B, T, D) → out (B, T, D), tokens an expert (E) int64, balance loss a row (B); these
        two, which training asks for, are None where the model `answers`.
        """
        flat, balance = x.flatten(0, 1), None
        if answers:
            chosen, gates, load = self.gate(flat)
        else:
            scores = self.gate.scores(flat)
            chosen, gates = self.gate.choose(scores)
            load = count_choices(chosen, scores.shape[1])
            rows = scores.unflatten(0, x.shape[:2])
            balance = sequence_balance(rows, chosen.shape[1], self.row_mean)
        shared = self.shared_experts(flat) if self.shared_experts is not None else None
        # Last, so that a layer computed again need not send their results again.
        out = self.experts(flat, chosen, gates, load)
        if self.real is not None:
            real = self.real(x.shape[1], x.device).repeat(x.shape[0])
            load = count_choices(chosen, len(load), real)
        out = out if shared is None else out + shared
        return out.view_as(x), None if answers else load, balance


def count_choices(chosen: Tensor, experts: int, real: Tensor | None = None) -> Tensor:
    """How many tokens chose each expert, of those that are `real` (N): (N, K) → (E) int64."""
    ones = torch.ones_like(chosen)
    ones = (ones if real is None else ones * real[:, None]).flatten()
    return torch.zeros(experts, dtype=torch.int64, device=chosen.device).scatter_add(
        0, chosen.flatten(), ones
    )


def sequence_balance(
    scores: Tensor, top_k: int, mean: Callable[[Tensor], Tensor] = row_mean
) -> Tensor:
    """The sequence-wise balance loss before its factor alpha (eq. 17-20): (B, T, E) → (B).

    f counts the top K by score without the bias; P is the mean normalized score.
    """
    experts = scores.shape[-1]
    picked = torch.zeros_like(scores).scatter(-1, scores.detach().topk(top_k, -1).indices, 1.0)
    f = mean(picked) * experts / top_k
    p = mean(scores / scores.sum(-1, keepdim=True))
    return (f * p).sum(-1)
