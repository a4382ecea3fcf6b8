"""A look inside a model while it reads a text: attention, experts, what each layer would say.

L layers, H query heads, T tokens, R kept rows, K experts a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamaseek.errors import bad_value
from llamaseek.models import CausalLM
from llamaseek.models.cache import Cache, LayerShape
from llamaseek.models.layers import widen
from llamaseek.models.moe import MoE

LONGEST = 1024  # tokens: attention weights grow with their square


@dataclass(frozen=True)
class Internals:
    """What `read_internals` saw.

    `tokens` (T) are the ids. `attention` has a tensor (H, R, T) for each layer: the row of a token
    is what it reads, and sums to 1. `experts` has, for each mixture-of-experts layer by its number,
    the chosen experts (T, K) and their gates (T, K), the best first. `layers` (L, R, N) are the N
    likeliest next tokens if the head were applied after each layer, `probabilities` (L, R, N)
    theirs. R is T, or 1 where only the last token was asked for. `cache_bytes` is what a token
    takes in the cache in 16 bits, over all layers; `full_cache_bytes` what keys and values of
    every head would take.
    """

    tokens: list[int]
    attention: list[Tensor]
    experts: dict[int, tuple[Tensor, Tensor]]
    num_experts: int
    layers: Tensor
    probabilities: Tensor
    cache_bytes: int
    full_cache_bytes: int

    @property
    def expert_load(self) -> dict[int, Tensor]:
        """How many of the tokens chose each expert, by layer: a tensor (E) int64."""
        return {
            layer: torch.bincount(chosen.flatten(), minlength=self.num_experts)
            for layer, (chosen, _) in self.experts.items()
        }


def read_internals(
    network: CausalLM, tokens: Sequence[int], top: int = 5, *, last: bool = False
) -> Internals:
    """Run the model over a row of tokens and keep what it did; nothing of the model is changed.

    `last` keeps the attention and the layers' next tokens of the last token alone.
    UserError for no tokens, or more than LONGEST or the model's context.
    """
    longest = min(LONGEST, network.config.max_position_embeddings)
    if not 0 < len(tokens) <= longest:
        raise bad_value("text", f"{len(tokens)} tokens", f"1 to {longest} tokens")
    count = network.config.num_hidden_layers
    rows = slice(-1, None) if last else slice(None)
    training = network.training
    network.eval()
    with torch.no_grad(), watched_experts(network) as experts:
        attention, states = _run(network, tokens, rows)
        scores = network.logits(network.model.norm(torch.stack(states))).softmax(-1)
    network.train(training)
    likeliest = scores.topk(top, dim=-1)
    return Internals(
        list(tokens),
        attention,
        experts,
        network.config.num_experts,
        likeliest.indices.cpu(),
        likeliest.values.cpu(),
        2 * sum(shape.numbers_per_token for shape in network.cache_shapes()[:count]),
        2 * full_numbers(network, count),
    )


def _run(
    network: CausalLM, tokens: Sequence[int], rows: slice
) -> tuple[list[Tensor], list[Tensor]]:
    """Attention (H, R, T) and output (R, D) of each layer."""
    device = network.model.norm.weight.device
    positions = torch.arange(len(tokens), device=device)[None]
    cache = WatchedAttention(network.cache_shapes(), network.config.is_causal, rows)
    rotary = network.model.rotary(positions)
    x = widen(network.embed(torch.tensor([list(tokens)], device=device)))
    states = []
    for index in range(network.config.num_hidden_layers):
        x = network.run_layer(index, x, rotary, positions, None, cache)
        states.append(x[0, rows])
    return cache.weights, states


class WatchedAttention(Cache):
    """A cache for one row that is computed at once, and keeps what its
    tokens read: `weights` has (H, R, T) of each layer, in their order.
    """

    def __init__(self, shapes: Sequence[LayerShape], causal: bool, rows: slice) -> None:
        self.shapes, self.causal, self.rows = shapes, causal, rows
        self.weights: list[Tensor] = []

    def attend(
        self, layer: int, q: Tensor, new: tuple[Tensor, ...], positions: Tensor, scale: float
    ) -> Tensor:
        """q (1, T, H, W), keys and values in `new` (1, T, K, W) → (1, T, H, V)."""
        weights = attention_weights(q, new[0], self.causal, scale)
        self.weights.append(weights[0, :, self.rows].cpu())
        values = new[-1][..., : self.shapes[layer].value_width]
        values = values.repeat_interleave(q.shape[2] // values.shape[2], dim=2)
        return (weights.to(values.dtype) @ values.transpose(1, 2)).transpose(1, 2)


def attention_weights(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """q (B, T, H, W), k (B, T, G, W) → softmax(q kᵀ scale) (B, H, T, T), in float32."""
    share = q.shape[2] // k.shape[2]
    keys = widen(k).repeat_interleave(share, dim=2).permute(0, 2, 3, 1)
    scores = widen(q).transpose(1, 2) @ keys * scale
    if causal:
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(-1)


@contextmanager
def watched_experts(network: CausalLM) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Experts (T, K) and gates (T, K) by layer of the forward inside, by hooks that it removes."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def watch(index: int, moe: MoE) -> Any:
        def see(module: Any, given: tuple[Tensor, ...]) -> None:
            chosen, gates = moe.gate.choose(moe.gate.scores(given[0].flatten(0, 1)))
            order = gates.argsort(-1, descending=True)
            seen[index] = chosen.gather(1, order).cpu(), gates.gather(1, order).cpu()

        return moe.register_forward_pre_hook(see)

    hooks = [watch(index, moe) for index, moe in network.moe_layers().items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def full_numbers(network: CausalLM, count: int) -> int:
    """Numbers a token in the first `count` layers if keys and values of every head were kept."""
    total = 0
    for layer in network.model.layers[:count]:
        part: Any = layer.self_attn
        heads = network.config.num_attention_heads
        key = part.head_dim if hasattr(part, "head_dim") else part.nope + part.rope
        total += heads * (key + (part.head_dim if hasattr(part, "head_dim") else part.value))
    return total
