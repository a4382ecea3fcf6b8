"""The halves of a layer, attention and feed-forward, by a few fused operators for few tokens.

They read the weights of the plain model, whose code training uses, and compute the same; norms,
residual sums and the gate are done by the operators on the way. Queries, keys and values (and gate
and up) share one operator, so that their weights stay where they are. The kernels' `Layers` run the
same without Python in between (`kernels/csrc/halves.cpp`).

N tokens of the step, D width, H query heads, P qk_nope_head_dim, R rotary width, C latent rank,
V v_head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llamaseek.engine.forward.paged import PagedCache
from llamaseek.engine.forward.step_layout import StepLayout
from llamaseek.engine.ranks.shards import SummedExperts
from llamaseek.models.attention import GroupedQueryAttention, LatentAttention
from llamaseek.models.deepseek_v3 import DeepseekV3Layer, MultiTokenLayer
from llamaseek.models.head import Head
from llamaseek.models.layers import GatedMLP, RMSNorm, dense_weight
from llamaseek.models.llama3 import Llama3Layer
from llamaseek.models.moe import Experts, MoE
from llamaseek.models.quant.blocks import BlockExperts, BlockLinear
from llamaseek.models.quant.packed import PackedExperts, PackedLinear
from llamaseek.parallel.layers import ParallelLMHead, RowParallelLinear

BITS = {torch.float32: 32, torch.bfloat16: 16}
DENSE = (nn.Linear, Head, RowParallelLinear, ParallelLMHead)


@dataclass(frozen=True)
class Weights:
    """Weights (N_i, K) of layers that read the same input, as one operator takes them.

    They have `bits` bits and, where packed, scales; or `bits` is 0, and they are in GGUF's blocks,
    of `kinds` and with the heads' widths `heads`. Where `split` is a layer, each rank has a share
    of the inputs, and the products are added up.
    """

    weights: list[Tensor]
    scales: list[Tensor]
    bits: int
    kinds: list[int]
    heads: list[int]
    split: RowParallelLinear | None = None

    def __call__(
        self,
        x: Tensor,
        norm: RMSNorm | None = None,
        residual: Tensor | None = None,
        gate: bool = False,
    ) -> Tensor:
        """x (N, K), normalized first and added to `residual` after → (N, ΣN_i)."""
        weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        if self.split is not None and self.split.rank > 0:
            residual = None  # it is added once
        out: Tensor
        if self.bits:
            out = torch.ops.llamaseek.linear(
                x, weight, eps, self.weights, self.scales, self.bits, residual, gate
            )
        else:
            out = torch.ops.llamaseek.linear_blocks(
                x, weight, eps, self.weights, self.kinds, self.heads, residual, gate
            )
        return out if self.split is None else self.split.reduce(out)

    def shared(self) -> Any:
        """The same for the kernels' `Layers`."""
        parts = self.weights, self.scales, self.bits, self.kinds, self.heads
        return torch.classes.llamaseek.Weights(*parts)


def weights(*layers: nn.Module) -> Weights:
    """The layers' weights. ValueError where they are of different kinds, or none we know."""
    blocks = [layer for layer in layers if isinstance(layer, BlockLinear)]
    if len(blocks) == len(layers):
        found = [layer.weight_blocks for layer in blocks]
        return Weights(found, [], 0, [b.kind for b in blocks], [b.head for b in blocks])
    if all(type(layer) in DENSE for layer in layers):
        found = [layer.get_parameter("weight") for layer in layers]
        bits = {BITS.get(weight.dtype, 0) for weight in found}
        scales: list[Tensor] = []
    elif all(isinstance(layer, PackedLinear) for layer in layers):
        found = [layer.get_buffer("weight_packed") for layer in layers]
        scales = [layer.get_buffer("weight_scale") for layer in layers]
        bits = {layer.bits for layer in layers if isinstance(layer, PackedLinear)}
    else:
        bits = set()
    if len(bits) != 1 or 0 in bits:
        raise ValueError("no fused operator supports these layers")
    split = layers[0] if isinstance(layers[0], RowParallelLinear) else None
    return Weights(found, scales, bits.pop(), [], [], split)


def normalized(x: Tensor, norm: RMSNorm) -> Tensor:
    """x (N, D) normalized, where more than one operator reads it."""
    out: Tensor = torch.ops.llamaseek.rms_norm(x, norm.weight, norm.eps)
    return out


class FusedStep(Protocol):
    """Attention or feed-forward of one layer: x (N, D) → x plus its result."""

    def __call__(self, x: Tensor, where: Where) -> Tensor: ...

    @property
    def whole(self) -> bool:
        """Whether the kernels' `Layers` have it: no ranks add up, no expert is in GGUF's blocks."""

    def put(self, layers: Any, cache: PagedCache) -> None:
        """Add it to the kernels' `Layers`."""


@dataclass(frozen=True)
class Where:
    """The positions of a step's tokens: rotary tables (N, R / 2) in float32, layout and cache."""

    cos: Tensor
    sin: Tensor
    layout: StepLayout
    cache: PagedCache


class GroupedQueries:
    """Llama 3's attention."""

    def __init__(self, layer: GroupedQueryAttention, norm: RMSNorm) -> None:
        self.norm, self.index, self.scale = norm, layer.layer, layer.scale
        self.qkv = weights(layer.q_proj, layer.k_proj, layer.v_proj)
        self.out = weights(layer.o_proj)

    def __call__(self, x: Tensor, where: Where) -> Tensor:
        """See `FusedStep`."""
        keys, values = where.cache.stores[self.index].kept
        qkv = self.qkv(x, self.norm).to(keys.dtype)
        slots = where.layout.slots
        q = torch.ops.llamaseek.rotate_store(qkv, where.cos, where.sin, slots, keys, values)
        seen = where.cache.attend_few(self.index, q, self.scale)
        return self.out(seen.flatten(1).to(x.dtype), residual=x)

    @property
    def whole(self) -> bool:
        """See `FusedStep`."""
        return self.out.split is None

    def put(self, layers: Any, cache: PagedCache) -> None:
        """See `FusedStep`."""
        keys, values = cache.stores[self.index].kept
        norm, qkv, out = self.norm, self.qkv.shared(), self.out.shared()
        layers.grouped(norm.weight, norm.eps, qkv, out, keys, values, self.scale)


class Latents:
    """DeepSeek-V3's attention over the latents (see `LatentAttention`)."""

    def __init__(self, layer: LatentAttention, norm: RMSNorm) -> None:
        self.layer, self.norm = layer, norm
        self.kept: tuple[int, Tensor, Tensor] | None = None
        first = layer.q_proj if layer.q_lora_rank is None else layer.q_a_proj
        self.first = weights(first, layer.kv_a_proj_with_mqa)
        self.second = None if layer.q_lora_rank is None else weights(layer.q_b_proj)
        self.out = weights(layer.o_proj)
        self.made: Any = None  # when the kernels are there

    def __call__(self, x: Tensor, where: Where) -> Tensor:
        """See `FusedStep`."""
        layout, kept = where.layout, where.cache.stores[self.layer.layer].kept[0]
        places = layout.slots, layout.tables, layout.lengths, layout.size
        out = self.kernel().run(x, *self.parts(kept.dtype), where.cos, where.sin, *places, kept)
        return self.out(out.to(x.dtype), residual=x)

    @property
    def whole(self) -> bool:
        """See `FusedStep`."""
        return self.out.split is None

    @property
    def version(self) -> int:
        """Changes with the weight that `parts` are copies of."""
        layer = self.layer.kv_b_proj
        return layer.weight._version if isinstance(layer, nn.Linear) else 0

    def put(self, layers: Any, cache: PagedCache) -> None:
        """See `FusedStep`."""
        kept = cache.stores[self.layer.layer].kept[0]
        layers.latent(self.kernel(), *self.parts(kept.dtype), self.out.shared(), kept)

    def kernel(self) -> Any:
        """All of it but the output projection, as the kernels' `LatentAttention`."""
        if self.made is None:
            self.made = self._make()
        return self.made

    def _make(self) -> Any:
        layer, found, norms = self.layer, [self.first], [self.norm, self.layer.kv_a_layernorm]
        if self.second is not None:
            found.append(self.second)
            norms.append(layer.q_a_layernorm)
        return torch.classes.llamaseek.LatentAttention(
            [each.shared() for each in found],
            [norm.weight for norm in norms],
            self.norm.eps,
            layer.kv_a_layernorm.eps,
            layer.heads,
            layer.nope,
            layer.rank,
            layer.scale,
        )

    def parts(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """W_UK turned (H, C, P) and W_UV (H, V, C), made again when the weight has changed."""
        layer = self.layer.kv_b_proj
        if self.kept is None or self.kept[0] != self.version:
            dense = dense_weight(layer, dtype).unflatten(0, (self.layer.heads, -1))
            w_uk, w_uv = dense.split((self.layer.nope, self.layer.value), dim=1)
            self.kept = self.version, w_uk.transpose(1, 2).contiguous(), w_uv.contiguous()
        return self.kept[1:]


class Gated:
    """The gated feed-forward."""

    def __init__(self, layer: GatedMLP, norm: RMSNorm | None) -> None:
        self.norm = norm
        self.gate_up = weights(layer.gate_proj, layer.up_proj)
        self.down = weights(layer.down_proj)

    def __call__(self, x: Tensor, where: Where) -> Tensor:
        """See `FusedStep`."""
        return self.add(x, x)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """x (N, D) → residual (N, D) with the outcome added."""
        return self.down(self.gate_up(x, self.norm, gate=True), residual=residual)

    @property
    def whole(self) -> bool:
        """See `FusedStep`."""
        return self.down.split is None

    def put(self, layers: Any, cache: PagedCache) -> None:
        """See `FusedStep`."""
        assert self.norm is not None
        gate_up, down = self.gate_up.shared(), self.down.shared()
        layers.gated(self.norm.weight, self.norm.eps, gate_up, down)


class Mixture:
    """Routed and shared experts."""

    def __init__(self, layer: MoE, norm: RMSNorm) -> None:
        self.router, self.norm = layer.gate, norm
        shared = layer.shared_experts
        self.shared = None if shared is None else Gated(shared, None)
        routed = layer.experts
        self.group = routed.group if isinstance(routed, SummedExperts) else None
        self.routed = routed
        self.experts: tuple[list[Tensor | None], list[int]] | None = None
        self.made: Any = None  # when the kernels are there
        if isinstance(routed, BlockExperts):
            return
        if isinstance(routed, PackedExperts):
            gate_up = [routed.gate_up_proj_packed, routed.gate_up_proj_scale]
            down = [routed.down_proj_packed, routed.down_proj_scale]
            bits = [routed.bits, routed.down_bits]
            self.experts = [*(each.flatten(1, 2) for each in gate_up), *down], bits
        elif type(routed) in (Experts, SummedExperts) and routed.down_proj.dtype in BITS:
            both = routed.gate_up_proj.flatten(1, 2)
            self.experts = [both, None, routed.down_proj, None], [BITS[both.dtype]] * 2
        else:
            raise ValueError("no fused operator supports these experts")

    def __call__(self, x: Tensor, where: Where) -> Tensor:
        """See `FusedStep`."""
        if self.whole:
            out: Tensor = self.kernel().run(x)
            return out
        inner = normalized(x, self.norm)
        chosen, gates = torch.ops.llamaseek.route(inner, *self._router())
        routed: Tensor = (
            torch.ops.llamaseek.experts(inner, chosen, gates, *self.experts[0], *self.experts[1])
            if self.experts is not None
            else self.routed(inner, chosen, gates)
        )
        out = x + (routed if self.group is None else self.group.sum(routed))
        return out if self.shared is None else self.shared.add(inner, out)

    @property
    def whole(self) -> bool:
        """See `FusedStep`."""
        return self.experts is not None and self.group is None

    def put(self, layers: Any, cache: PagedCache) -> None:
        """See `FusedStep`."""
        layers.mixture(self.kernel())

    def kernel(self) -> Any:
        """All of it as the kernels' `Mixture`."""
        if self.made is None:
            assert self.experts is not None
            self.made = self._make(*self.experts)
        return self.made

    def _make(self, experts: list[Tensor | None], bits: list[int]) -> Any:
        shared = [] if self.shared is None else [self.shared.gate_up, self.shared.down]
        weight, bias, *numbers, normalize, scale = self._router()
        return torch.classes.llamaseek.Mixture(
            self.norm.weight,
            self.norm.eps,
            weight,
            bias,
            numbers,
            normalize,
            float(scale),
            experts,
            bits,
            [each.shared() for each in shared],
        )

    def _router(self) -> tuple[Any, ...]:
        """The arguments of `route` behind its input."""
        router, config = self.router, self.router.config
        return (
            router.weight,
            router.e_score_correction_bias,
            config.n_group,
            config.topk_group,
            config.num_experts_per_tok,
            config.norm_topk_prob,
            config.routed_scaling_factor,
        )


LAYERS = (Llama3Layer.forward, DeepseekV3Layer.forward, MultiTokenLayer.forward)
ATTENTIONS: dict[Any, Callable[[Any, Any], FusedStep]] = {
    GroupedQueryAttention.forward: GroupedQueries,
    LatentAttention.forward: Latents,
}


def halves_of(layer: nn.Module) -> tuple[FusedStep, FusedStep]:
    """A layer's two halves; ValueError where its forward is not one that the operators compute,
    as in a subclass that computes something else.
    """
    attention: Any = layer.self_attn
    if type(layer).forward not in LAYERS or type(attention).forward not in ATTENTIONS:
        raise ValueError(f"no operators compute {type(layer).__name__}")
    mlp: Any = layer.mlp
    after: Any = layer.post_attention_layernorm
    first: FusedStep = ATTENTIONS[type(attention).forward](attention, layer.input_layernorm)
    return first, Mixture(mlp, after) if isinstance(mlp, MoE) else Gated(mlp, after)
