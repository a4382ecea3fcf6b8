"""Choosing experts for the tokens of a decoding step, in Triton: what `llamaseek.models.moe.Router`
computes in a dozen small kernels, in one.

N tokens, E experts, G groups of experts, K experts a token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def limited(
    steered: tl.tensor,
    LIMIT: tl.constexpr,
    BEST: tl.constexpr,
    GROUPS: tl.constexpr,
    EACH: tl.constexpr,
) -> tl.tensor:
    """steered (GROUPS, EACH), -inf in all groups but the LIMIT whose BEST scores sum highest."""
    group, column = tl.arange(0, GROUPS), tl.arange(0, EACH)[None, :]
    top = tl.max(steered, 1)
    if BEST == 2:
        first = tl.argmax(steered, 1)
        top += tl.max(tl.where(column == first[:, None], float("-inf"), steered), 1)
    kept = tl.zeros((GROUPS,), tl.int32)
    for _ in tl.static_range(LIMIT):
        found = tl.argmax(top, 0)
        kept = tl.where(group == found, 1, kept)
        top = tl.where(group == found, float("-inf"), top)
    return tl.where(kept[:, None] == 1, steered, float("-inf"))


@triton.jit
def choose(
    logits: tl.tensor,
    bias: tl.tensor,
    chosen: tl.tensor,
    gates: tl.tensor,
    load: tl.tensor,
    groups: tl.tensor,
    each: tl.tensor,
    factor: tl.tensor,
    LIMIT: tl.constexpr,
    BEST: tl.constexpr,
    CHOICES: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    EACH: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    """A token's experts and gates from its logits (E); adds them to load (E).

    Experts lie as `groups` of `each`, padded to (GROUPS, EACH). LIMIT of the groups are kept, all
    where it is 0, by the sum of their BEST (1 or 2) highest scores.
    """
    token = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, GROUPS)[:, None], tl.arange(0, EACH)[None, :]
    real = (row < groups) & (column < each)
    expert = row * each + column
    logit = tl.load(logits + token * groups * each + expert, mask=real, other=0.0)
    score = tl.sigmoid(logit.to(tl.float32))
    steered = score + tl.load(bias + expert, mask=real, other=0.0)
    # Scores that are no numbers may be chosen, so that the answer shows them; padding may not.
    steered = tl.where(steered == steered, steered, -1e30)
    steered = tl.where(real, steered, float("-inf"))
    if LIMIT > 0:
        steered = limited(steered, LIMIT, BEST, GROUPS, EACH)
    steered = tl.reshape(steered, (GROUPS * EACH,))
    score = tl.reshape(score, (GROUPS * EACH,))
    place, slot = tl.arange(0, GROUPS * EACH), tl.arange(0, SLOTS)
    mine, weight = tl.zeros((SLOTS,), tl.int64), tl.zeros((SLOTS,), tl.float32)
    for choice in tl.static_range(CHOICES):
        found = tl.argmax(steered, 0)
        steered = tl.where(place == found, float("-inf"), steered)
        gate = tl.sum(tl.where(place == found, score, 0.0), 0)
        weight = tl.where(slot == choice, gate, weight)
        mine = tl.where(slot == choice, found // EACH * each + found % EACH, mine)
    if NORMALIZE:
        weight = weight / (tl.sum(weight, 0) + 1e-20)
    used = slot < CHOICES
    tl.store(chosen + token * CHOICES + slot, mine, mask=used)
    tl.store(gates + token * CHOICES + slot, weight * factor, mask=used)
    tl.atomic_add(load + mine, tl.full((SLOTS,), 1, tl.int64), mask=used)


def choose_experts(
    logits: Tensor,
    bias: Tensor,
    groups: int,
    kept: int,
    choices: int,
    normalize: bool,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """logits (N, E) and bias (E) → experts (N, K) int64, gates (N, K) float32 and how many tokens
    chose each expert (E) int64.
    """
    tokens, experts = logits.shape
    each = experts // groups
    chosen = torch.empty(tokens, choices, dtype=torch.int64, device=logits.device)
    gates = torch.empty(tokens, choices, dtype=torch.float32, device=logits.device)
    load = torch.zeros(experts, dtype=torch.int64, device=logits.device)
    limit = 0 if kept == groups else kept
    rounded = (triton.next_power_of_2(size) for size in (groups, each, choices))
    with torch.cuda.device_of(logits):
        choose[(tokens,)](
            logits.contiguous(), bias, chosen, gates, load, groups, each, factor,
            limit, min(2, each), choices, normalize, *rounded,
        )  # fmt: skip
    return chosen, gates, load
