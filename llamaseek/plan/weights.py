"""How many numbers a layer holds, and how many of them train: what memory and links are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

from llamaseek.herd import DeepseekV3Config, Llama3Config, ModelConfig
from llamaseek.herd.tensors import count_parameters, layer_parts, layer_tensors
from llamaseek.plan.activations import is_mixture


@dataclass(frozen=True)
class LayerSize:
    """Parameters of one layer: `plain` and `routed` (all experts); `small` of them are norms and
    router, `whole` what no tensor rank splits. `last` is the matrix, or experts' stack, that the
    backward pass meets first, `largest` the largest. `matrices` are plain ones that autocast
    copies.
    """

    plain: int
    routed: int
    small: int
    whole: int
    last: int
    largest: int

    @property
    def matrices(self) -> int:
        """Parameters in plain matrices."""
        return self.plain - self.small


WHOLE = ("norm", "mlp.gate.weight", "q_a_proj", "kv_a_proj", "eh_proj")
"""In the names of a layer's tensors that tensor ranks all hold whole."""


def whole_of_layer(config: ModelConfig, layer: int) -> int:
    """Parameters of `layer` that every tensor rank holds: what runs on its own tokens alone."""
    named = layer_tensors(config, layer).items()
    return sum(prod(shape) for name, shape in named if any(part in name for part in WHOLE))


def kind(config: ModelConfig, layer: int) -> int:
    """The first layer that is like this one, so that like layers are counted once."""
    if layer >= config.num_hidden_layers:
        return config.num_hidden_layers
    if isinstance(config, DeepseekV3Config) and layer >= config.first_k_dense_replace:
        return config.first_k_dense_replace
    return 0


@lru_cache(maxsize=64)
def layer_size(config: ModelConfig, layer: int) -> LayerSize:
    """The sizes of `layer`, one that `kind` returns."""
    parts = layer_parts(config, layer)
    plain = sum(parts.values()) - parts["routed"]
    if is_mixture(config, layer):
        assert isinstance(config, DeepseekV3Config)
        last = config.n_routed_experts * config.hidden_size * config.moe_intermediate_size
        largest = 2 * last
    else:
        last = largest = config.hidden_size * config.intermediate_size
    small = parts["norms"] + parts["router"]
    return LayerSize(plain, parts["routed"], small, whole_of_layer(config, layer), last, largest)


@lru_cache(maxsize=64)
def adapter_size(config: ModelConfig, layer: int, names: frozenset[str], rank: int) -> int:
    """Parameters that LoRA of `rank` adds to `layer` on the linear layers `names`."""
    return sum(
        rank * sum(shape)
        for name, shape in layer_tensors(config, layer).items()
        if name.split(".")[-2] in names and ".experts." not in name
    )


def cache_numbers(config: ModelConfig, tensor: int = 1) -> float:
    """Numbers a layer caches a token, on one of `tensor` ranks.

    Key-value heads are split over them; a latent has one head, which every rank keeps whole.
    """
    if isinstance(config, DeepseekV3Config):
        return config.kv_lora_rank + config.qk_rope_head_dim
    assert isinstance(config, Llama3Config)
    return (
        2 * config.num_key_value_heads * config.head_dim / min(tensor, config.num_key_value_heads)
    )


def linear_names(config: ModelConfig) -> frozenset[str]:
    """The linear layers that LoRA may adapt: all but the head, the router and routed experts."""
    found = set()
    for layer in {kind(config, index) for index in range(config.num_hidden_layers)}:
        for name, shape in layer_tensors(config, layer).items():
            if len(shape) == 2 and ".experts." not in name and not name.startswith("mlp.gate."):
                found.add(name.split(".")[-2])
    return frozenset(found)


def table_size(config: ModelConfig) -> int:
    """Parameters of the embedding, and of a head of its own."""
    return prod((config.vocab_size, config.hidden_size))


ACCUMULATE = 2  # a multiplication and an addition


@lru_cache(maxsize=64)
def matrix_flops(config: ModelConfig, multi_token: bool = False) -> int:
    """FLOPs of one token's matrix products in a forward pass; looking up a row is none.

    `multi_token` adds the modules that predict further ahead, each with the shared head.
    """
    count = count_parameters(config)
    weights = count.activated
    if not isinstance(config, DeepseekV3Config) and not config.tie_word_embeddings:
        weights -= count.embedding
    if multi_token and isinstance(config, DeepseekV3Config):
        heads = config.num_nextn_predict_layers * config.vocab_size * config.hidden_size
        weights += count.multi_token_activated + heads
    return ACCUMULATE * weights


def attention_flops(config: ModelConfig, keys: int, multi_token: bool = False) -> int:
    """FLOPs of one query token's scores and weighted sum over `keys` keys, all layers."""
    layers = config.num_hidden_layers
    if isinstance(config, DeepseekV3Config):
        widths = config.qk_head_dim + config.v_head_dim
        layers += config.num_nextn_predict_layers if multi_token else 0
    else:
        assert isinstance(config, Llama3Config)
        widths = 2 * config.head_dim
    return ACCUMULATE * layers * config.num_attention_heads * widths * keys


def training_flops(config: ModelConfig, task: str, length: int) -> int:
    """FLOPs of one token's forward and backward; a frozen matrix has no gradient of its own."""
    multi_token = task == "pretrain"
    passes = 2 if task == "lora" else 3
    matrices = passes * matrix_flops(config, multi_token)
    return matrices + 3 * attention_flops(config, length, multi_token)
