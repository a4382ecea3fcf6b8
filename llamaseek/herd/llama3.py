"""The Llama 3 family (The Llama 3 Herd of Models §3.2; transformers' `LlamaConfig`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from llamaseek.errors import bad_value
from llamaseek.herd.configs import ModelConfig, Shape
from llamaseek.herd.panels import Box, Panel, Row


@dataclass(frozen=True, kw_only=True)
class Llama3Config(ModelConfig):
    """Llama 3, 3.1, 3.2 and 3.3: grouped-query attention and SwiGLU (Llama 3 paper §3.2)."""

    model_type: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"
    title: ClassVar[str] = "Llama 2 and 3 and what shares their architecture"
    derived: ClassVar[tuple[str, ...]] = ("num_key_value_heads", "head_dim")
    published_defaults: ClassVar[dict[str, Any]] = {
        **ModelConfig.published_defaults,
        "max_position_embeddings": 2048,
    }
    published_values: ClassVar[dict[str, tuple[Any, ...]]] = {
        **ModelConfig.published_values,
        "mlp_bias": (False,),
    }

    num_key_value_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_attention_heads % self.num_key_value_heads:
            raise bad_value(
                "model.num_key_value_heads",
                self.num_key_value_heads,
                f"a divisor of num_attention_heads ({self.num_attention_heads})",
            )
        if self.head_dim % 2:
            raise bad_value("model.head_dim", self.head_dim, "an even number (rotary pairs)")

    @classmethod
    def default_sizes(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        if sizes.get("head_dim") or not sizes.get("num_attention_heads"):
            return {}
        return {"head_dim": sizes.get("hidden_size", 0) // sizes["num_attention_heads"]}

    @classmethod
    def default_published(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        return {**cls.published_defaults, "num_key_value_heads": sizes.get("num_attention_heads")}

    def attention_tensors(self) -> dict[str, Shape]:
        width, head = self.hidden_size, self.head_dim
        queries, keys = self.num_attention_heads * head, self.num_key_value_heads * head
        return {
            "q_proj.weight": (queries, width),
            "k_proj.weight": (keys, width),
            "v_proj.weight": (keys, width),
            "o_proj.weight": (width, queries),
        }

    @property
    def query_head_width(self) -> int:
        return self.head_dim

    @property
    def key_heads(self) -> int:
        return self.num_key_value_heads

    @property
    def cache_width(self) -> int:
        return 2 * self.num_key_value_heads * self.head_dim

    @property
    def rotary_width(self) -> int:
        return self.head_dim

    @property
    def head_widths(self) -> int:
        return 2 * self.head_dim

    @property
    def tensor_parallel_heads(self) -> int:
        return self.num_key_value_heads

    def tensor_parallel_sizes(self) -> dict[str, int]:
        sizes = super().tensor_parallel_sizes()
        return {"the key-value heads": sizes.pop("the attention heads"), **sizes}

    def tensor_shard(self, ranks: int) -> Self:
        own = self.num_key_value_heads // ranks
        return replace(super().tensor_shard(ranks), num_key_value_heads=own)

    def attention_panel(self) -> Panel:
        heads, keys, width = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        rotary = Box("RoPE", self.rotary_detail())
        rows: tuple[Row, ...] = (
            (Box("hidden", f"{self.hidden_size:,}"),),
            (
                Box("q_proj", f"{heads} × {width}", "linear"),
                Box("k_proj", f"{keys} × {width}", "linear"),
                Box("v_proj", f"{keys} × {width}", "linear"),
            ),
            (rotary, rotary, None),
            (None, Box("keys", "cached", "cache"), Box("values", "cached", "cache")),
            (Box("softmax(q kᵀ / √d) v", f"{heads // keys} query heads share a key-value head"),),
            (Box("o_proj", f"{heads * width:,} → {self.hidden_size:,}", "linear"),),
        )
        return Panel("Grouped-query attention", rows)
