"""Llama 3, top to bottom (The Llama 3 Herd of Models §3.2). Parameter names are Hugging Face's.

B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from llamaseek.herd import Llama3Config
from llamaseek.models.attention import GroupedQueryAttention, Mask
from llamaseek.models.cache import Cache, LayerShape
from llamaseek.models.layers import GatedMLP, RMSNorm
from llamaseek.models.trunk import CausalLM, Trunk


class Llama3Layer(nn.Module):
    """Attention, then feed-forward, each on a normalized copy and added back."""

    def __init__(self, config: Llama3Config, layer: int) -> None:
        super().__init__()
        eps = config.rms_norm_eps
        self.self_attn = GroupedQueryAttention(config, layer)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        positions: Tensor,
        mask: Mask | None,
        cache: Cache | None,
    ) -> tuple[Tensor, None, None]:
        """x (B, T, D) → (B, T, D); a dense layer has no expert load and no balance loss."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, positions, mask, cache)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x, None, None


class Llama3(CausalLM):
    """`hidden = model(tokens, positions, cache)`, then `logits = model.logits(hidden)`."""

    config: Llama3Config

    def __init__(self, config: Llama3Config) -> None:
        layers = [Llama3Layer(config, layer) for layer in range(config.num_hidden_layers)]
        super().__init__(config, Trunk(config, config.head_dim, layers))
        self.initialize()

    def cache_shapes(self) -> list[LayerShape]:
        """What each layer keeps a token."""
        return [GroupedQueryAttention.cache_shape(self.config)] * self.config.num_hidden_layers
