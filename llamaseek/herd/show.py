"""A model's architecture as an outline: parts, shapes and parameters, like layers written once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from llamaseek.herd.configs import ROUTING_BIAS, ModelConfig, Shape
from llamaseek.herd.published import Entry
from llamaseek.herd.tensors import (
    cache_numbers_per_token,
    count_parameters,
    layer_tensors,
)


@dataclass(frozen=True)
class Node:
    """A part of a model. `times` is how often it stands there; `parameters` counts all of them."""

    name: str
    times: int = 1
    shape: Shape | None = None
    note: str = ""
    children: tuple[Node, ...] = ()

    @property
    def parameters(self) -> int:
        """Numbers in the tensors of this part, all its copies together; a routing bias too."""
        inside = prod(self.shape) if self.shape else sum(c.parameters for c in self.children)
        return self.times * inside


def outline(config: ModelConfig) -> Node:
    """The whole model, from its config."""
    table = (config.vocab_size, config.hidden_size)
    classes = f"{config.vocab_size:,} classes"
    head = Node("lm_head.weight", shape=table, note=classes)
    if config.tie_word_embeddings:
        head = Node("lm_head", note=f"{classes}; its weight is the embedding's")
    parts = [Node("model.embed_tokens.weight", shape=table), *_layers(config)]
    parts.append(Node("model.norm.weight", shape=(config.hidden_size,)))
    return Node(config.architecture, children=(*parts, head))


def _layers(config: ModelConfig) -> Iterable[Node]:
    """Runs of layers that are alike."""
    for run in config.layer_runs():
        span = str(run.start) if run.count == 1 else f"{run.start}…{run.stop - 1}"
        children = _nest(layer_tensors(config, run.start))
        yield Node(f"model.layers.{span}", run.count, note=run.note, children=children)


def _nest(tensors: dict[str, Shape]) -> tuple[Node, ...]:
    """Names cut at their first dot become branches; equal experts become one branch."""
    groups: dict[str, dict[str, Shape]] = {}
    for name, shape in tensors.items():
        first, _, rest = name.partition(".")
        if rest in ("weight", ROUTING_BIAS, ""):
            groups[name] = {"": shape}
        else:
            groups.setdefault(first, {})[rest] = shape
    return tuple(_branch(name, inner) for name, inner in groups.items())


def _branch(name: str, inner: dict[str, Shape]) -> Node:
    if "" in inner:
        return Node(name, shape=inner[""])
    first = {key: shape for key, shape in inner.items() if key.startswith("0.")}
    if first:
        count = len({key.partition(".")[0] for key in inner})
        one = {key.removeprefix("0."): shape for key, shape in first.items()}
        return Node(name, count, children=_nest(one))
    return Node(name, children=_nest(inner))


BF16_BYTES = 2


def describe(entry: Entry) -> dict[str, Any]:
    """What `herd show --json` prints. `cache_bytes_per_token` is for a bf16 cache."""
    count = count_parameters(entry.config)
    return {
        "name": entry.name,
        "title": entry.title,
        "family": entry.family,
        "repo": entry.repo,
        "parameters": count.total,
        "activated_parameters": count.activated,
        "embedding_parameters": count.embedding,
        "multi_token_parameters": count.multi_token,
        "multi_token_activated_parameters": count.multi_token_activated,
        "published_parameters": entry.published_parameters,
        "parts": count.parts,
        "classes": entry.config.vocab_size,
        "cache_bytes_per_token": BF16_BYTES * cache_numbers_per_token(entry.config),
        "context": entry.context,
        "fine_tuned": entry.fine_tuned,
        "multilingual": entry.multilingual,
        "long_context": entry.long_context,
        "tool_use": entry.tool_use,
        "release": entry.release.isoformat() if entry.release else None,
        "license": entry.license,
        "config": entry.config.to_dict(),
    }
