"""The DeepSeek-V3 family (technical report §2 and §4.2; transformers' `DeepseekV3Config`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from llamaseek.errors import bad_value
from llamaseek.herd.configs import (
    ROUTING_BIAS,
    LatentWidths,
    LayerRun,
    ModelConfig,
    Shape,
    gated_tensors,
)
from llamaseek.herd.panels import Box, Panel, Row


@dataclass(frozen=True, kw_only=True)
class DeepseekV3Config(ModelConfig):
    """DeepSeek-V3: latent attention, mixture of experts, multi-token prediction (report §2)."""

    model_type: ClassVar[str] = "deepseek_v3"
    architecture: ClassVar[str] = "DeepseekV3ForCausalLM"
    title: ClassVar[str] = "DeepSeek-V3 and R1"
    derived: ClassVar[tuple[str, ...]] = ("num_key_value_heads", "head_dim", "qk_head_dim")
    published_defaults: ClassVar[dict[str, Any]] = {
        **ModelConfig.published_defaults,
        "max_position_embeddings": 4096,
        "q_lora_rank": 1536,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
        "num_experts_per_tok": 8,
        "num_nextn_predict_layers": 1,
    }
    published_values: ClassVar[dict[str, tuple[Any, ...]]] = {
        **ModelConfig.published_values,
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
        "moe_layer_freq": (1,),
        "rope_interleave": (True,),
    }
    may_be_zero: ClassVar[frozenset[str]] = frozenset(
        ("first_k_dense_replace", "num_nextn_predict_layers", "n_shared_experts")
    )
    yarn_scales_softmax: ClassVar[bool] = True

    q_lora_rank: int | None = None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int = 1
    n_group: int = 1
    topk_group: int = 1
    first_k_dense_replace: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    num_nextn_predict_layers: int = 0
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        experts, groups = self.n_routed_experts, self.n_group
        if experts % groups:
            raise bad_value("model.n_group", groups, f"a divisor of n_routed_experts ({experts})")
        if self.topk_group > groups:
            raise bad_value("model.topk_group", self.topk_group, f"at most n_group ({groups})")
        if self.num_experts_per_tok > experts // groups * self.topk_group:
            raise bad_value(
                "model.num_experts_per_tok",
                self.num_experts_per_tok,
                f"at most the experts of the kept groups ({experts // groups * self.topk_group})",
            )
        if self.qk_rope_head_dim % 2:
            raise bad_value("model.qk_rope_head_dim", self.qk_rope_head_dim, "an even number")

    @classmethod
    def check_published(cls, data: dict[str, Any]) -> None:
        """Three keys repeat what others say."""
        same = {
            "num_key_value_heads": ("num_attention_heads",),
            "head_dim": ("qk_rope_head_dim",),
            "qk_head_dim": ("qk_nope_head_dim", "qk_rope_head_dim"),
        }
        for key, others in same.items():
            values = [data[other] for other in others if type(data.get(other)) is int]
            if len(values) == len(others) and data.get(key) not in (None, sum(values)):
                allowed = f"{sum(values)}, as {' and '.join(others)} say"
                raise bad_value(f"config.json {key}", data[key], allowed)

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head when expanded."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        data["num_key_value_heads"] = self.num_attention_heads
        data["head_dim"] = self.qk_rope_head_dim
        data.update(scoring_func="sigmoid", topk_method="noaux_tc", rope_interleave=True)
        data.setdefault("q_lora_rank", None)
        return data

    @property
    def _dense_layers(self) -> int:
        """How many of the main layers have a dense feed-forward; they are the first ones."""
        return min(self.first_k_dense_replace, self.num_hidden_layers)

    @property
    def multi_token_depth(self) -> int:
        return self.num_nextn_predict_layers

    def without_multi_token(self) -> Self:
        return replace(self, num_nextn_predict_layers=0)

    def layer_runs(self) -> Iterator[LayerRun]:
        dense, main = self._dense_layers, self.num_hidden_layers
        ahead = "multi-token prediction, shares embedding and head"
        runs = (
            LayerRun(0, dense, "dense"),
            LayerRun(dense, main, "mixture of experts"),
            LayerRun(main, self.layer_count, ahead),
        )
        yield from (run for run in runs if run.count)

    def is_moe_layer(self, layer: int) -> bool:
        return layer >= self.first_k_dense_replace

    @property
    def num_experts(self) -> int:
        return self.n_routed_experts

    @property
    def experts_per_token(self) -> int:
        return self.num_experts_per_tok

    @property
    def expert_width(self) -> int:
        return self.moe_intermediate_size

    @property
    def shared_experts(self) -> int:
        return self.n_shared_experts

    @property
    def latents(self) -> LatentWidths:
        return LatentWidths(
            self.q_lora_rank,
            self.kv_lora_rank,
            self.qk_nope_head_dim,
            self.qk_rope_head_dim,
            self.v_head_dim,
        )

    @property
    def query_head_width(self) -> int:
        return self.qk_head_dim

    @property
    def cache_heads(self) -> int:
        return 1

    @property
    def cache_width(self) -> int:
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def rotary_width(self) -> int:
        return self.qk_rope_head_dim

    @property
    def head_widths(self) -> int:
        return self.qk_head_dim + self.v_head_dim

    def inner_widths(self) -> dict[str, int]:
        return super().inner_widths() | {"moe_intermediate_size": self.moe_intermediate_size}

    def attention_tensors(self) -> dict[str, Shape]:
        width, heads, rank = self.hidden_size, self.num_attention_heads, self.kv_lora_rank
        queries = heads * self.qk_head_dim
        query: dict[str, Shape] = {"q_proj.weight": (queries, width)}
        if self.q_lora_rank is not None:
            query = {
                "q_a_proj.weight": (self.q_lora_rank, width),
                "q_a_layernorm.weight": (self.q_lora_rank,),
                "q_b_proj.weight": (queries, self.q_lora_rank),
            }
        return query | {
            "kv_a_proj_with_mqa.weight": (rank + self.qk_rope_head_dim, width),
            "kv_a_layernorm.weight": (rank,),
            "kv_b_proj.weight": (heads * (self.qk_nope_head_dim + self.v_head_dim), rank),
            "o_proj.weight": (width, heads * self.v_head_dim),
        }

    def feed_forward_tensors(self, layer: int) -> dict[str, Shape]:
        width, inner, experts = (
            self.hidden_size,
            self.moe_intermediate_size,
            self.n_routed_experts,
        )
        if not self.is_moe_layer(layer):
            return super().feed_forward_tensors(layer)
        found: dict[str, Shape] = {
            "gate.weight": (experts, width),
            f"gate.{ROUTING_BIAS}": (experts,),
        }
        one = gated_tensors(width, inner)
        found |= {
            f"experts.{e}.{name}": shape for e in range(experts) for name, shape in one.items()
        }
        if self.n_shared_experts:
            shared = gated_tensors(width, inner * self.n_shared_experts)
            found |= {f"shared_experts.{name}": shape for name, shape in shared.items()}
        return found

    def further_tensors(self, layer: int) -> dict[str, Shape]:
        if layer < self.num_hidden_layers:
            return {}
        width = self.hidden_size
        return {
            "enorm.weight": (width,),
            "hnorm.weight": (width,),
            "eh_proj.weight": (width, 2 * width),
            "shared_head.norm.weight": (width,),
        }

    def attention_panel(self) -> Panel:
        heads, rank, rope = self.num_attention_heads, self.kv_lora_rank, self.qk_rope_head_dim
        nope, value = self.qk_nope_head_dim, self.v_head_dim
        query = Box("q_proj", f"{heads} × ({nope} + {rope})", "linear")
        first, norm, last = query, None, None
        if self.q_lora_rank is not None:
            first = Box("q_a_proj", f"→ {self.q_lora_rank:,}", "linear")
            norm, last = Box("RMSNorm", kind="norm"), Box("q_b_proj", query.detail, "linear")
        rows: tuple[Row, ...] = (
            (Box("hidden", f"{self.hidden_size:,}"),),
            (first, Box("kv_a_proj", f"→ {rank} + {rope}", "linear")),
            (norm, Box("RMSNorm, RoPE", f"on {rank}; on {rope}", "norm")),
            (None, Box("latent + rotary key", f"{rank + rope} numbers cached", "cache")),
            (last, Box("kv_b_proj", f"{heads} × ({nope} k + {value} v)", "linear")),
            (Box("RoPE", f"on {rope}, {self.rotary_detail()}"), None),
            (Box("softmax(q kᵀ · scale) v", f"one rotary key for all {heads} heads"),),
            (Box("o_proj", f"{heads * value:,} → {self.hidden_size:,}", "linear"),),
        )
        return Panel("Latent attention", rows)

    def feed_forward_box(self) -> Box:
        dense = self._dense_layers
        if dense == self.num_hidden_layers:
            return super().feed_forward_box()
        first = f"first {dense}: SwiGLU, {self.intermediate_size:,} wide" if dense else ""
        return Box("Mixture of experts", first, "part")

    def feed_forward_panel(self) -> Panel:
        if self._dense_layers == self.num_hidden_layers:
            return super().feed_forward_panel()
        experts, chosen, inner = (
            self.n_routed_experts,
            self.num_experts_per_tok,
            self.moe_intermediate_size,
        )
        shared = None
        if self.n_shared_experts:
            count = self.n_shared_experts
            shared = Box("Shared expert" + "s" * (count > 1), f"{count} × SwiGLU {inner:,}", "part")
        groups = f"{self.topk_group} of {self.n_group} groups, "
        gates = f"no bias, {'sum' if self.norm_topk_prob else '×'} {self.routed_scaling_factor:g}"
        rows: tuple[Row, ...] = (
            (Box("hidden", f"{self.hidden_size:,}"),),
            (Box("Router", "sigmoid, + bias to choose", "linear"), shared),
            (
                Box("top-k", (groups if self.n_group > 1 else "") + f"{chosen} of {experts}"),
                None,
            ),
            (Box(f"{chosen} routed experts", f"SwiGLU {inner:,} each", "part"), None),
            (Box("gates", gates), None),
            (Box("+"),),
        )
        return Panel("Mixture of experts", rows)

    def further_panels(self) -> Iterator[Panel]:
        if not self.num_nextn_predict_layers:
            return
        width = self.hidden_size
        rows: tuple[Row, ...] = (
            (Box("hidden", "of the model"), Box("Embedding", "of the next token", "linear")),
            (Box("RMSNorm", "hnorm", "norm"), Box("RMSNorm", "enorm", "norm")),
            (Box("eh_proj", f"{2 * width:,} → {width:,}", "linear"),),
            (Box("One layer", "attention and experts of its own", "part"),),
            (Box("RMSNorm", "shared_head.norm", "norm"),),
            (Box("Head", "shared with the model", "linear"),),
            (Box("logits", "of the token after the next"),),
        )
        depth = self.num_nextn_predict_layers
        yield Panel(f"Multi-token prediction × {depth}", rows)
