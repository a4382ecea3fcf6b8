"""A look inside a model while it reads a text: attention, experts, what each layer would say.

L layers, H query heads, T tokens, K experts a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llamaseek.errors import bad_value
from llamaseek.models import CausalLM
from llamaseek.models.attention import attend_in_row
from llamaseek.models.layers import widen

LONGEST = 1024  # tokens: attention weights grow with their square


@dataclass(frozen=True)
class Internals:
    """What `read_internals` saw.

    `tokens` (T) are the ids. `attention` has a tensor (H, T, T) for each layer: row t is what
    token t reads, and sums to 1. `experts` has, for each mixture-of-experts layer by its number,
    the chosen experts (T, K) and their gates (T, K), the best first. `layers` (L, T, N) are the N
    likeliest next tokens if the head were applied after each layer, `probabilities` (L, T, N)
    theirs. `cache_bytes` is what a token takes in the cache in 16 bits, over all layers;
    `full_cache_bytes` what keys and values of every head would take.
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


def read_internals(network: CausalLM, tokens: Sequence[int], top: int = 5) -> Internals:
    """Run the model over a row of tokens without a cache and keep what it did.

    Attention and choices are observed, not changed. UserError for no tokens, or more than LONGEST.
    """
    if not 0 < len(tokens) <= LONGEST:
        raise bad_value("text", f"{len(tokens)} tokens", f"1 to {LONGEST} tokens")
    count = network.config.num_hidden_layers
    device = network.model.embed_tokens.weight.device
    row = torch.tensor([list(tokens)], device=device)
    positions = torch.arange(len(tokens), device=device)[None]
    attention: dict[int, Tensor] = {}
    experts: dict[int, tuple[Tensor, Tensor]] = {}
    states: list[Tensor] = []
    training = network.training
    network.eval()
    with torch.no_grad(), observed(network, attention, experts, states):
        network(row, positions)
        scores = network.logits(network.model.norm(torch.cat(states))).softmax(-1)
    network.train(training)
    likeliest = scores.topk(top, dim=-1)
    numbers = sum(shape.numbers_per_token for shape in network.cache_shapes()[:count])
    return Internals(
        list(tokens),
        [attention[layer].cpu() for layer in range(count)],
        {layer: experts[layer] for layer in sorted(experts)},
        network.config.num_experts,
        likeliest.indices.cpu(),
        likeliest.values.cpu(),
        2 * numbers,
        2 * full_numbers(network, count),
    )


def full_numbers(network: CausalLM, count: int) -> int:
    """Numbers a token if keys and values of every query head were kept."""
    total = 0
    for layer in network.model.layers[:count]:
        part: Any = layer.self_attn
        heads = network.config.num_attention_heads
        key = part.head_dim if hasattr(part, "head_dim") else part.nope + part.rope
        total += heads * (key + (part.head_dim if hasattr(part, "head_dim") else part.value))
    return total


@contextmanager
def observed(
    network: CausalLM,
    attention: dict[int, Tensor],
    experts: dict[int, tuple[Tensor, Tensor]],
    states: list[Tensor],
) -> Iterator[None]:
    """While it lasts, a forward pass writes what it does into the three containers."""
    count = network.config.num_hidden_layers
    undo = []
    for index, layer in enumerate(network.model.layers[:count]):
        undo.append(_watch_attention(layer.self_attn, index, attention))
        router = getattr(getattr(layer, "mlp", None), "gate", None)
        if router is not None:
            undo.append(_watch_router(router, index, experts))
        hook = layer.register_forward_hook(lambda _, __, out: states.append(out[0]))
        undo.append(hook.remove)
    try:
        yield
    finally:
        for step in undo:
            step()


def _watch_attention(part: Any, index: int, seen: dict[int, Tensor]) -> Any:
    before = part.attend

    def attend(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        seen[index] = attention_weights(q, k, mask, causal, scale)[0]
        return attend_in_row(q, k, v, mask, causal, scale)

    part.attend = attend
    return lambda: setattr(part, "attend", before)


def _watch_router(router: nn.Module, index: int, seen: dict[int, tuple[Tensor, Tensor]]) -> Any:
    before: Any = router.choose

    def choose(scores: Tensor) -> tuple[Tensor, Tensor]:
        chosen, gates = before(scores)
        order = gates.argsort(-1, descending=True)
        seen[index] = chosen.gather(1, order).cpu(), gates.gather(1, order).cpu()
        return chosen, gates

    router.choose = choose  # type: ignore[assignment]
    return lambda: delattr(router, "choose")


def attention_weights(
    q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """q (B, T, H, W), k (B, T, G, W) → softmax(q kᵀ scale) (B, H, T, T), in float32."""
    share = q.shape[2] // k.shape[2]
    keys = widen(k).repeat_interleave(share, dim=2).permute(0, 2, 3, 1)
    scores = widen(q).transpose(1, 2) @ keys * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif causal:
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(-1)
