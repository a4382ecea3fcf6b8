"""How many parameters a config has, by part, and how many numbers its cache keeps a token."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from llamaseek.herd.configs import DeepseekV3Config, Llama3Config, ModelConfig
from llamaseek.herd.tensors import ROUTING_BIAS, layer_tensors

PARTS = ("embedding", "attention", "dense", "routed", "shared", "router", "norms", "head")
"""Feed-forward is `dense`, or for a mixture `routed` and `shared` experts and their `router`."""


@dataclass(frozen=True)
class ParameterCount:
    """Trained parameters. The routing bias is moved by load, not trained, and not counted.

    `parts` is the main model by PARTS (a tied head counts with the embedding). `activated` is, as
    the field reports it, all of a dense model, and of a mixture what one token is multiplied
    with: the chosen experts, and not the embedding, of which it reads one row. `multi_token` is
    what the extra modules add, apart from the embedding and head they share, and
    `multi_token_activated` what one token is multiplied with of that.
    """

    parts: dict[str, int]
    activated: int
    multi_token: int
    multi_token_activated: int

    @property
    def total(self) -> int:
        """The main model's parameters."""
        return sum(self.parts.values())

    @property
    def embedding(self) -> int:
        """The token embedding's parameters."""
        return self.parts["embedding"]


def count_parameters(config: ModelConfig) -> ParameterCount:
    """The parameters of `config`, from the shapes of its tensors."""
    table = config.vocab_size * config.hidden_size
    parts = dict.fromkeys(PARTS, 0)
    parts["embedding"] = table
    parts["head"] = 0 if config.tie_word_embeddings else table
    parts["norms"] = config.hidden_size
    for kind, layers in _kinds(config).items():
        for part, count in layer_parts(config, kind).items():
            parts[part] += count * layers
    extra = config.num_nextn_predict_layers if isinstance(config, DeepseekV3Config) else 0
    module = layer_parts(config, config.num_hidden_layers) if extra else dict.fromkeys(PARTS, 0)
    return ParameterCount(
        parts,
        sum(parts.values()) - _idle(config, parts),
        extra * sum(module.values()),
        extra * (sum(module.values()) - _idle(config, module)),
    )


def layer_parts(config: ModelConfig, layer: int) -> dict[str, int]:
    """One layer's parameters by part; a multi-token module's projection counts as dense."""
    parts = dict.fromkeys(PARTS, 0)
    for name, shape in layer_tensors(config, layer).items():
        if not name.endswith(ROUTING_BIAS):
            parts[_part(name)] += prod(shape)
    return parts


def cache_numbers_per_token(config: ModelConfig) -> int:
    """Numbers that decoding keeps a token: keys and values, or the latent and its rotary key."""
    if isinstance(config, DeepseekV3Config):
        width = config.kv_lora_rank + config.qk_rope_head_dim
    else:
        assert isinstance(config, Llama3Config)
        width = 2 * config.num_key_value_heads * config.head_dim
    return width * config.num_hidden_layers


def _kinds(config: ModelConfig) -> dict[int, int]:
    """A layer of each kind among the main ones, and how many there are of it."""
    dense = config.num_hidden_layers
    if isinstance(config, DeepseekV3Config):
        dense = min(config.first_k_dense_replace, dense)
    kinds = {0: dense, config.num_hidden_layers - 1: config.num_hidden_layers - dense}
    return {layer: count for layer, count in kinds.items() if count} or {0: dense}


def _idle(config: ModelConfig, parts: dict[str, int]) -> int:
    """What one token of a mixture is not multiplied with."""
    if not isinstance(config, DeepseekV3Config):
        return 0
    chosen = parts["routed"] // config.n_routed_experts * config.num_experts_per_tok
    looked_up = 0 if config.tie_word_embeddings else parts["embedding"]
    return parts["routed"] - chosen + looked_up


def _part(name: str) -> str:
    if "norm" in name:
        return "norms"
    if name.startswith("self_attn."):
        return "attention"
    if name.startswith("mlp.experts."):
        return "routed"
    if name.startswith("mlp.shared_experts."):
        return "shared"
    return "router" if name.startswith("mlp.gate.") else "dense"
