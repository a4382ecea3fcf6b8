"""The tensors of a model, by name and shape, from its config alone: no model is built.

Names and order are those of a Hugging Face folder, each routed expert's matrices apart.
D width, F feed-forward width, H heads, K key-value heads, C latent rank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from llamaseek.herd.configs import ROUTING_BIAS, ModelConfig, Shape


def model_tensors(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """Every tensor that a folder of `config` holds; a tied head is not written again."""
    yield "model.embed_tokens.weight", (config.vocab_size, config.hidden_size)
    for layer in range(config.layer_count):
        for name, shape in layer_tensors(config, layer).items():
            yield f"model.layers.{layer}.{name}", shape
    yield "model.norm.weight", (config.hidden_size,)
    if config.is_reward_model:
        yield "score.weight", (1, config.hidden_size)
    elif not tied(config):
        yield "lm_head.weight", (config.vocab_size, config.hidden_size)


def tied(config: ModelConfig) -> bool:
    """Whether embedding and head are one table. A reward model has a score in the head's place."""
    return config.tie_word_embeddings and not config.is_reward_model


def layer_tensors(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """One layer's tensors, names relative to `model.layers.N.`."""
    width = config.hidden_size
    found = {f"self_attn.{name}": shape for name, shape in config.attention_tensors().items()}
    feed_forward = config.feed_forward_tensors(layer)
    found |= {f"mlp.{name}": shape for name, shape in feed_forward.items()}
    found |= {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
    return found | config.further_tensors(layer)


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
    head = config.hidden_size if config.is_reward_model else table
    parts["head"] = 0 if tied(config) else head
    parts["norms"] = config.hidden_size
    for run in config.layer_runs():
        if run.start < config.num_hidden_layers:
            for part, count in layer_parts(config, run.start).items():
                parts[part] += count * run.count
    extra = config.multi_token_depth
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
    return config.cache_width * config.num_hidden_layers


def _idle(config: ModelConfig, parts: dict[str, int]) -> int:
    """What one token of a mixture is not multiplied with."""
    if not config.num_experts:
        return 0
    chosen = parts["routed"] // config.num_experts * config.experts_per_token
    looked_up = 0 if tied(config) else parts["embedding"]
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
