"""How many numbers a layer holds, and how many of them train: what memory and links are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

from llamaseek.herd import ModelConfig
from llamaseek.herd.tensors import layer_parts, layer_tensors


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
    return next((run.start for run in config.layer_runs() if layer < run.stop), config.layer_count)


@lru_cache(maxsize=64)
def layer_size(config: ModelConfig, layer: int) -> LayerSize:
    """The sizes of `layer`, one that `kind` returns."""
    parts = layer_parts(config, layer)
    plain = sum(parts.values()) - parts["routed"]
    if config.is_moe_layer(layer):
        last = config.num_experts * config.hidden_size * config.expert_width
        largest = 2 * last
    else:
        last = largest = config.hidden_size * config.intermediate_size
    small = parts["norms"] + parts["router"]
    return LayerSize(plain, parts["routed"], small, whole_of_layer(config, layer), last, largest)


@lru_cache(maxsize=64)
def largest_matrix(config: ModelConfig, layer: int) -> int:
    """Parameters of the largest matrix of `layer` that is no routed expert's."""
    named = layer_tensors(config, layer).items()
    return max(prod(shape) for name, shape in named if ".experts." not in name)


@lru_cache(maxsize=64)
def adapter_size(config: ModelConfig, layer: int, names: frozenset[str], rank: int) -> int:
    """Parameters that LoRA of `rank` adds to `layer` on the linear layers `names`."""
    return sum(
        rank * sum(shape)
        for name, shape in layer_tensors(config, layer).items()
        if name.split(".")[-2] in names and ".experts." not in name
    )


@lru_cache(maxsize=64)
def _linears(config: ModelConfig, layer: int) -> list[int]:
    """Parameters of each linear layer of `layer` that LoRA may adapt."""
    names = linear_names(config)
    return [
        prod(shape)
        for name, shape in layer_tensors(config, layer).items()
        if name.split(".")[-2] in names and ".experts." not in name
    ]


def linear_size(config: ModelConfig, layer: int) -> int:
    """Parameters of the linear layers of `layer` that LoRA may adapt."""
    return sum(_linears(config, layer))


def largest_linear(config: ModelConfig, layer: int) -> int:
    """Parameters of the largest of them."""
    return max(_linears(config, layer))


def cache_numbers(config: ModelConfig, tensor: int = 1) -> float:
    """Numbers a layer caches a token, on one of `tensor` ranks.

    Key-value heads are split over them; a latent has one head, which every rank keeps whole.
    """
    return config.cache_width / min(tensor, config.cache_heads)


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
