"""The tensors of a model, by name and shape, from its config alone: no model is built.

Names and order are those of a Hugging Face folder, each routed expert's matrices apart.
D width, F feed-forward width, H heads, K key-value heads, C latent rank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from llamaseek.herd.configs import DeepseekV3Config, Llama3Config, ModelConfig

ROUTING_BIAS = "e_score_correction_bias"
"""A buffer of routers: no parameter, and float32 in every folder."""
Shape = tuple[int, ...]


def model_tensors(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """Every tensor that a folder of `config` holds; a tied head is not written again."""
    yield "model.embed_tokens.weight", (config.vocab_size, config.hidden_size)
    for layer in range(layer_count(config)):
        for name, shape in layer_tensors(config, layer).items():
            yield f"model.layers.{layer}.{name}", shape
    yield "model.norm.weight", (config.hidden_size,)
    if config.is_reward_model:
        yield "score.weight", (1, config.hidden_size)
    elif not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, config.hidden_size)


def layer_count(config: ModelConfig) -> int:
    """Layers in the file: DeepSeek-V3 keeps its multi-token modules behind the main ones."""
    extra = config.num_nextn_predict_layers if isinstance(config, DeepseekV3Config) else 0
    return config.num_hidden_layers + extra


def layer_tensors(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """One layer's tensors, names relative to `model.layers.N.`."""
    width = config.hidden_size
    if isinstance(config, DeepseekV3Config):
        attention = _latent_attention(config)
        feed_forward = _deepseek_feed_forward(config, layer)
    else:
        assert isinstance(config, Llama3Config)
        attention = _grouped_attention(config)
        feed_forward = _gated(width, config.intermediate_size)
    found = {f"self_attn.{name}": shape for name, shape in attention.items()}
    found |= {f"mlp.{name}": shape for name, shape in feed_forward.items()}
    found |= {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
    if layer >= config.num_hidden_layers:
        found |= _multi_token(width)
    return found


def _grouped_attention(config: Llama3Config) -> dict[str, Shape]:
    width, head = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    return {
        "q_proj.weight": (queries, width),
        "k_proj.weight": (keys, width),
        "v_proj.weight": (keys, width),
        "o_proj.weight": (width, queries),
    }


def _latent_attention(config: DeepseekV3Config) -> dict[str, Shape]:
    width, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    queries = heads * config.qk_head_dim
    query: dict[str, Shape] = {"q_proj.weight": (queries, width)}
    if config.q_lora_rank is not None:
        query = {
            "q_a_proj.weight": (config.q_lora_rank, width),
            "q_a_layernorm.weight": (config.q_lora_rank,),
            "q_b_proj.weight": (queries, config.q_lora_rank),
        }
    return query | {
        "kv_a_proj_with_mqa.weight": (rank + config.qk_rope_head_dim, width),
        "kv_a_layernorm.weight": (rank,),
        "kv_b_proj.weight": (heads * (config.qk_nope_head_dim + config.v_head_dim), rank),
        "o_proj.weight": (width, heads * config.v_head_dim),
    }


def _deepseek_feed_forward(config: DeepseekV3Config, layer: int) -> dict[str, Shape]:
    width, inner, experts = (
        config.hidden_size,
        config.moe_intermediate_size,
        config.n_routed_experts,
    )
    if layer < config.first_k_dense_replace:
        return _gated(width, config.intermediate_size)
    found: dict[str, Shape] = {
        "gate.weight": (experts, width),
        f"gate.{ROUTING_BIAS}": (experts,),
    }
    one = _gated(width, inner)
    found |= {f"experts.{e}.{name}": shape for e in range(experts) for name, shape in one.items()}
    if config.n_shared_experts:
        shared = _gated(width, inner * config.n_shared_experts)
        found |= {f"shared_experts.{name}": shape for name, shape in shared.items()}
    return found


def _gated(width: int, inner: int) -> dict[str, Shape]:
    return {
        "gate_proj.weight": (inner, width),
        "up_proj.weight": (inner, width),
        "down_proj.weight": (width, inner),
    }


def _multi_token(width: int) -> dict[str, Shape]:
    return {
        "enorm.weight": (width,),
        "hnorm.weight": (width,),
        "eh_proj.weight": (width, 2 * width),
        "shared_head.norm.weight": (width,),
    }


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
