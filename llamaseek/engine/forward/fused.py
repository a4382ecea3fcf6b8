"""The forward pass of a decoding step with few tokens, by the kernels for CPUs.

A whole model is one call where the kernels have all of it; else each half of a layer calls its
operators (`halves`).

N tokens of the step, D width, R rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from llamaseek.engine.forward.halves import (
    BITS,
    FusedStep,
    Gated,
    GroupedQueries,
    Latents,
    Weights,
    Where,
    halves_of,
    normalized,
    weights,
)
from llamaseek.engine.forward.paged import PagedCache
from llamaseek.engine.forward.step_layout import FEW, Inputs, Ints, StepLayout, StepResult
from llamaseek.kernels.build import builder
from llamaseek.models import CausalLM
from llamaseek.models.deepseek_v3 import MultiTokenLayer
from llamaseek.models.layers import widen
from llamaseek.models.quant.blocks import BlockEmbedding
from llamaseek.parallel.layers import ParallelLMHead

PIECES = 1 << 20  # tokens of a step times the longest sequence's, attended in one call


def embedding_table(model: CausalLM) -> Weights:
    """The embedding. ValueError where its rows are not simply what a token's are."""
    layer: nn.Module = model.model.embed_tokens
    plain = type(model).embed is CausalLM.embed
    if plain and isinstance(layer, BlockEmbedding):
        return Weights([layer.weight_blocks], [], 0, [layer.kind], [0])
    if plain and type(layer) is nn.Embedding and layer.weight.dtype in BITS:
        return Weights([layer.weight], [], BITS[layer.weight.dtype], [], [])
    raise ValueError("no fused operator reads this embedding")


class Ahead:
    """DeepSeek-V3's module that predicts one token further (see `MultiTokenLayer`)."""

    def __init__(self, layer: MultiTokenLayer) -> None:
        self.layer, self.joined, self.steps = layer, weights(layer.eh_proj), halves_of(layer)

    def __call__(self, hidden: Tensor, embedded: Tensor, where: Where) -> Tensor:
        """Hidden states and the next tokens' embeddings (N, D) → (N, D), ready for the head."""
        layer = self.layer
        hidden = hidden.to(embedded.dtype)
        both = normalized(embedded, layer.enorm), normalized(hidden, layer.hnorm)
        x = self.joined(torch.cat(both, dim=-1))
        for step in self.steps:
            x = step(x, where)
        return normalized(x, layer.shared_head.norm)


def in_blocks(step: FusedStep) -> bool:
    """Whether a half of a layer is GGUF's blocks alone, whose products are fit for any tokens."""
    if isinstance(step, GroupedQueries):
        return not (step.qkv.bits or step.out.bits)
    return isinstance(step, Gated) and not (step.gate_up.bits or step.down.bits)


class Whole:
    """A model in one call."""

    def __init__(self, model: CausalLM, steps: Sequence[FusedStep], head: Weights) -> None:
        """ValueError where a step or the embedding is of another kind than the kernels have."""
        if not all(step.whole for step in steps):
            raise ValueError("these layers are called one by one")
        self.embed, self.norm, self.head = embedding_table(model), model.model.norm, head
        self.steps = steps
        self.unpacks = not head.bits and all(in_blocks(step) for step in steps)
        self.latents = [step for step in steps if isinstance(step, Latents)]
        self.made: tuple[list[int], Any] | None = None  # when the kernels are there
        self.blocks: tuple[Ints, Tensor] | None = None

    def _layers(self, cache: PagedCache) -> Any:
        """The kernels' `Layers`, made anew where weights have changed that they have copies of."""
        versions = [step.version for step in self.latents]
        if self.made is None or self.made[0] != versions:
            ends = self.embed.shared(), self.norm.weight, self.norm.eps, self.head.shared()
            layers = torch.classes.llamaseek.Layers(*ends)
            for step in self.steps:
                step.put(layers, cache)
            self.made = versions, layers
        return self.made[1]

    def __call__(
        self, inputs: Inputs, cache: PagedCache, angles: tuple[Tensor, Tensor], rows: list[int]
    ) -> StepResult:
        """A step that is for one call, with logits of some rows; the cache is always the same."""
        if self.blocks is None or self.blocks[0] is not inputs.blocks:
            self.blocks = inputs.blocks, torch.from_numpy(inputs.blocks)  # the same memory
        size = cache.stores[0].size
        found = self._layers(cache).run(
            inputs.tokens, inputs.starts, inputs.counts, inputs.rows, self.blocks[1], size,
            *angles, rows
        )  # fmt: skip
        return StepResult(*found)


class Fused:
    """A model whose layers are steps, and its modules for tokens further ahead."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        main = model.config.num_hidden_layers
        self.steps: list[FusedStep] = []
        for layer in model.model.layers[:main]:
            self.steps += halves_of(layer)
        further = [each for each in model.model.layers if isinstance(each, MultiTokenLayer)]
        self.ahead = [Ahead(layer) for layer in further]
        self.head = weights(model.lm_head)
        self.whole: Whole | None = None
        with suppress(ValueError):
            self.whole = Whole(model, self.steps, self.head)
        self.where: Where | None = None
        self.turns: tuple[Tensor, Tensor] | None = None

    @property
    def ready(self) -> bool:
        """Whether the kernels are there; without them the plain model is faster."""
        return builder().ready

    def takes(self, inputs: Inputs) -> bool:
        """Whether a step is for `whole`: of few tokens, or of more where all weights are GGUF's
        blocks and what attention keeps of each stretch of keys is not large.
        """
        whole, count = self.whole, len(inputs.tokens)
        if whole is None or not self.ready:
            return False
        return count <= FEW or (whole.unpacks and count * inputs.longest <= PIECES)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (R, D), R up to `layout.FEW` → logits (R, V) in float32."""
        head = self.model.lm_head
        own = self.head(hidden.float())
        return head.join(own) if isinstance(head, ParallelLMHead) else own

    def __call__(
        self, tokens: Tensor, layout: StepLayout, cache: PagedCache, before: Tensor | None = None
    ) -> Tensor:
        """tokens (N), N up to `layout.FEW` → hidden (N, D).

        With hidden states `before` (N, D), those of the first multi-token module on them and on the
        tokens that follow.
        """
        x = widen(self.model.embed(tokens))  # the sum over layers is kept in float32
        where, norm = self._where(layout, cache), self.model.model.norm
        if before is not None:
            return self.ahead[0](before, x, where).to(norm.weight.dtype)
        for step in self.steps:
            x = step(x, where)
        return normalized(x, norm).to(norm.weight.dtype)

    def _where(self, layout: StepLayout, cache: PagedCache) -> Where:
        """The module often follows the model at the same places."""
        if self.where is None or self.where.layout is not layout:
            assert layout.tables is not None
            angles = self.angles(layout.tables.shape[1] * layout.size)
            cos, sin = (table[layout.positions] for table in angles)
            self.where = Where(cos, sin, layout, cache)
        return self.where

    def angles(self, most: int) -> tuple[Tensor, Tensor]:
        """Rotary tables of at least `most` first positions, (S, R / 2)."""
        if self.turns is None or len(self.turns[0]) < most:
            # Twice as many as needed, so that few steps make them again.
            cos, sin = self.model.model.rotary(torch.arange(2 * most)[None])
            self.turns = cos[0, :, 0], sin[0, :, 0]
        return self.turns


def fuse(model: CausalLM) -> Fused | None:
    """The model fused, or None where a layer is of a kind that no operator takes (an adapter)."""
    if model.model.norm.weight.device.type != "cpu" or model.config.is_reward_model:
        return None
    try:
        return Fused(model)
    except ValueError:
        return None
