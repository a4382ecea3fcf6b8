"""What all families share: embedding, layers, final norm, head.

B batch, T time, D width, V vocabulary, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from llamaseek.errors import UserError
from llamaseek.herd import ModelConfig
from llamaseek.models.attention import Mask, row_mask
from llamaseek.models.cache import Cache, LayerShape
from llamaseek.models.head import Head, Score
from llamaseek.models.layers import RMSNorm, matmul_dtype, widen
from llamaseek.models.moe import Experts, MoE, Router
from llamaseek.models.rope import Rotary


class Trunk(nn.Module):
    """Embedding, layers and final norm; `model.` in every checkpoint name."""

    def __init__(self, config: ModelConfig, rotary_width: int, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(rotary_width, config)


class CausalLM(nn.Module):
    """A trunk and a head. Subclasses add `cache_shapes` and, where they have it, `mtp`."""

    def __init__(self, config: ModelConfig, trunk: Trunk) -> None:
        super().__init__()
        self.config = config
        self.model = trunk
        if config.is_reward_model:
            self.score = Score(config.hidden_size)
        else:
            self.lm_head = Head(config.hidden_size, config.vocab_size)
        self.tie()
        # Of the latest forward: the balance loss summed over its MoE layers, one a row (B).
        self.balance_loss: Tensor | None = None
        # Tokens an expert since the last reset, one tensor (E) a MoE layer, by layer number.
        self.expert_load: dict[int, Tensor] = {}

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one table."""
        return self.config.tie_word_embeddings and not self.config.is_reward_model

    def tie(self) -> None:
        """Tie embedding and head if the config says so; call it again after moving off `meta`.

        Layers over a GGUF file's blocks share them as they are read.
        """
        if self.tied and isinstance(self.model.embed_tokens, nn.Embedding):
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache | None = None) -> Tensor:
        """tokens, positions (B, T) int64 → hidden (B, T, D), after the final norm."""
        self.balance_loss = None
        x = self.embed(tokens)
        if cache is not None:
            x = widen(x)  # where answers are made, the sum over layers is kept in float32
        rotary = self.model.rotary(positions)
        mask = None if cache is not None else self.mask(positions)
        for index in range(self.config.num_hidden_layers):
            x = self.run_layer(index, x, rotary, positions, mask, cache)
        out: Tensor = self.model.norm(x)
        return out

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) → (B, T, D) in the dtype that matrix products run in."""
        x: Tensor = self.model.embed_tokens(tokens)
        return x.to(matmul_dtype(x))

    def mtp(
        self,
        k: int,
        hidden: Tensor,
        next_tokens: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
    ) -> Tensor:
        """Multi-token module `k`, where `config.multi_token_depth` says that there are any."""
        raise AssertionError("the family has no multi-token modules")

    def mask(self, positions: Tensor) -> Mask | None:
        """Which keys each query sees; None where plain attention is right."""
        return row_mask(positions, self.config.is_causal)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) → logits (..., V) in at least float32, whatever the weights are in: in
        bf16 the best two of 100,000 are often equal. UserError for a reward model.
        """
        if self.config.is_reward_model:
            raise UserError("model: is a reward model: it returns scores and has no logits")
        out: Tensor = self.lm_head(widen(hidden))
        return out

    def run_layer(self, index: int, x: Tensor, *rest: Any) -> Tensor:
        """One layer; its expert load is counted once, and in training alone.

        Load and balance loss leave the layer as outputs, so recomputing cannot count them again.
        """
        x, load, balance = self.model.layers[index](x, *rest)
        if load is not None:
            self._record(index, load, balance)
        return x

    def _record(self, index: int, load: Tensor, balance: Tensor) -> None:
        if self.training:
            seen = self.expert_load.get(index)
            self.expert_load[index] = load if seen is None else seen + load
        self.balance_loss = balance if self.balance_loss is None else self.balance_loss + balance

    def initialize(self) -> None:
        """Normal(0, initializer_range) for every matrix, ones for norms."""
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding, Router)):
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, Experts):
                nn.init.normal_(module.gate_up_proj, std=std)
                nn.init.normal_(module.down_proj, std=std)

    def moe_layers(self) -> dict[int, MoE]:
        """Every mixture-of-experts layer by number, those of multi-token modules included."""
        layers = ((i, getattr(layer, "mlp", None)) for i, layer in enumerate(self.model.layers))
        return {index: mlp for index, mlp in layers if isinstance(mlp, MoE)}

    def cache_shapes(self) -> list[LayerShape]:
        """What each layer keeps a token; the length is the number of cache slots a token has."""
        raise AssertionError("each family defines its own")
