"""DeepSeek-V3, top to bottom (technical report §2). Parameter names are Hugging Face's.

B batch, T time, D width, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llamaseek.herd import DeepseekV3Config
from llamaseek.models.attention import LatentAttention, Mask
from llamaseek.models.cache import Cache, LayerShape
from llamaseek.models.layers import GatedMLP, RMSNorm
from llamaseek.models.moe import MoE
from llamaseek.models.trunk import CausalLM, Trunk


class DeepseekV3Layer(nn.Module):
    """Latent attention, then a dense feed-forward (first layers) or a mixture of experts."""

    def __init__(self, config: DeepseekV3Config, layer: int) -> None:
        super().__init__()
        eps = config.rms_norm_eps
        self.self_attn = LatentAttention(config, layer)
        self.mlp = (
            GatedMLP(config.hidden_size, config.intermediate_size)
            if layer < config.first_k_dense_replace
            else MoE(config)
        )
        self.input_layernorm = RMSNorm(config.hidden_size, eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        positions: Tensor,
        mask: Mask | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x (B, T, D) → x, tokens an expert (E), balance loss a row (B); None for dense layers."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, positions, mask, cache)
        inner = self.post_attention_layernorm(x)
        if isinstance(self.mlp, GatedMLP):
            return x + self.mlp(inner), None, None
        out, load, balance = self.mlp(inner, cache is not None)
        return x + out, load, balance


class SharedHead(nn.Module):
    """The norm of a multi-token module; its head is the main model's."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MultiTokenLayer(DeepseekV3Layer):
    """One more token ahead: joins a hidden state with the next token's embedding (eq. 21-23)."""

    def __init__(self, config: DeepseekV3Config, layer: int) -> None:
        super().__init__(config, layer)
        eps = config.rms_norm_eps
        self.enorm = RMSNorm(config.hidden_size, eps)
        self.hnorm = RMSNorm(config.hidden_size, eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = SharedHead(config)

    def forward(  # type: ignore[override]
        self, hidden: Tensor, embedded: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Hidden states and embeddings (B, T, D), the rest as for any layer; x is ready for the
        head. The published weights take the embedding first.
        """
        joined = torch.cat((self.enorm(embedded), self.hnorm(hidden)), dim=-1)
        x, load, balance = super().forward(self.eh_proj(joined), *rest)
        return self.shared_head.norm(x), load, balance


class DeepseekV3(CausalLM):
    """`hidden = model(tokens, positions, cache)`, `logits = model.logits(hidden)`, and `mtp`."""

    config: DeepseekV3Config

    def __init__(self, config: DeepseekV3Config) -> None:
        main = config.num_hidden_layers
        layers: list[nn.Module] = [DeepseekV3Layer(config, layer) for layer in range(main)]
        depth = config.num_nextn_predict_layers
        layers += [MultiTokenLayer(config, layer) for layer in range(main, main + depth)]
        super().__init__(config, Trunk(config, config.qk_rope_head_dim, layers))
        self.initialize()

    def mtp(
        self,
        k: int,
        hidden: Tensor,
        next_tokens: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states that predict one token further than `hidden` does.

        k counts from 0; hidden (B, T, D) is the trunk's output (k = 0) or `mtp(k - 1, …)`'s;
        next_tokens (B, T) holds at i the token k + 1 places after i. Returns (B, T, D), ready for
        `logits`. Feed-forward, norm and cache slots are module k's own.
        """
        index = self.config.num_hidden_layers + k
        layer = self.model.layers[index]
        assert isinstance(layer, MultiTokenLayer)
        embedded = self.embed(next_tokens)
        rotary = self.model.rotary(positions)
        mask = None if cache is not None else self.mask(positions)
        return self.run_layer(index, hidden, embedded, rotary, positions, mask, cache)

    def cache_shapes(self) -> list[LayerShape]:
        """The latent of every layer, multi-token modules included."""
        return [LatentAttention.cache_shape(self.config)] * len(self.model.layers)
