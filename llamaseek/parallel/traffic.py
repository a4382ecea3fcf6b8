"""What a rank receives from others in a step: counted as it happens, and by formula.

Counting sees every collective of torch.distributed, FSDP's and the pipeline's included. Of a
collective over n ranks a rank receives (n - 1)/n of what is gathered or scattered, and twice that
of what is added up, as the ring algorithms do it.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llamaseek.herd import DeepseekV3Config, Llama3Config, ModelConfig
from llamaseek.herd.tensors import count_parameters
from llamaseek.plan.layout import Layout
from llamaseek.plan.weights import whole_of_layer


class Traffic(TorchDispatchMode):
    """Within it, `received` counts bytes by collective; `calls` how often each was called."""

    def __init__(self) -> None:
        super().__init__()
        self.received: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops._c10d_functional.reduce_scatter_tensor.default:
            self._add("reduce_scatter", (args[2] - 1) / args[2] * size(args[0]))
        elif func is torch.ops._c10d_functional.all_to_all_single.default:
            self._add("all_to_all", (len(args[1]) - 1) / len(args[1]) * sum(args[1]) * row(args[0]))
        elif func.namespace == "c10d":
            self._count(func._schema.name.removeprefix("c10d::").strip("_"), args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        boxed = [a for a in args if isinstance(a, torch.ScriptObject)]
        (group,) = [a for a in boxed if "ProcessGroup" in str(a._type())]  # type: ignore[attr-defined]
        ranks = torch.distributed.ProcessGroup.unbox(group).size()
        share = (ranks - 1) / ranks
        if name.startswith("allreduce"):
            self._add("all_reduce", 2 * share * size(args[0]))
        elif name.startswith(("_allgather_base", "allgather", "all_gather")):
            self._add("all_gather", share * size(args[0]))
        elif name.startswith(("_reduce_scatter_base", "reduce_scatter")):
            self._add("reduce_scatter", share * size(args[1]))
        elif name.startswith("broadcast"):
            self._add("broadcast", share * size(args[0]))
        elif name.startswith("recv"):
            self._add("receive", size(args[0]))

    def _add(self, name: str, received: float) -> None:
        self.calls[name] += 1
        self.received[name] += round(received)


def row(x: Tensor) -> int:
    """Bytes of one of its rows."""
    return prod(x.shape[1:]) * x.element_size()


def size(value: Any) -> int:
    """Bytes of a tensor or of a list of them."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(size(item) for item in value) if isinstance(value, (list, tuple)) else 0


def expected(
    config: ModelConfig, layout: Layout, tokens: int, micro_batches: int, number: int, zero: bool
) -> dict[str, float]:
    """Bytes by collective on an average rank of a layout that has one degree above 1, or data and
    shard, or data and expert.

    `tokens` of a micro-batch on one rank's rows, numbers of `number` bytes; docs/parallel.md says
    the same in words. What has no size to speak of (norms, sums of losses) is left out.
    """
    count = count_parameters(config)
    everything = count.total + count.multi_token
    sums = 2 * everything * number
    hidden = tokens * config.hidden_size * number * micro_batches
    layers = config.num_hidden_layers + getattr(config, "num_nextn_predict_layers", 0)
    if layout.shard > 1:
        share, outside = _share(layout.shard), _tables(config)
        again = 2 * (everything - outside) + outside
        added = {"all_reduce": _share(layout.data) * sums / layout.shard}
        return {
            "all_gather": share * micro_batches * again * number,
            "reduce_scatter": share * everything * number,
        } | (added if layout.data > 1 else {})
    if layout.tensor > 1:
        row = tokens * micro_batches * number
        blocks = _share(layout.tensor) * row * _gathered(config)
        return {"all_gather": blocks, "reduce_scatter": blocks}
    if layout.pipeline > 1:
        between = 2 * (layout.pipeline - 1) / layout.pipeline
        return {"receive": between * hidden}
    if layout.context > 1:
        share, width = _share(layout.context), _key_value_width(config)
        rows = share * layers * tokens * micro_batches * width * number
        return {"all_gather": rows, "reduce_scatter": rows, "all_reduce": share * sums}
    found = {"all_reduce": _share(layout.data) * sums}
    if layout.expert > 1:
        assert isinstance(config, DeepseekV3Config)
        routed = _routed(config)
        copies = layout.replicas // layout.expert
        plain = _share(layout.data) * 2 * (everything - routed) * number
        found["all_reduce"] = plain + _share(copies) * 2 * routed / layout.expert * number
        mixtures = layers - config.first_k_dense_replace
        rows = hidden * config.num_experts_per_tok * mixtures
        gates = rows / config.hidden_size
        found["all_to_all"] = _share(layout.expert) * (4 * rows + 2 * gates)
    if zero:
        found["broadcast"] = _share(layout.data) * everything * number
    return found


def held(config: ModelConfig, layout: Layout, zero: bool) -> dict[str, float]:
    """Bytes of weights, gradients and AdamW's moments, all float32, on an average rank."""
    count = count_parameters(config)
    everything = count.total + count.multi_token
    mine = everything / (layout.shard * layout.pipeline)
    if layout.tensor > 1:
        whole = unsplit(config)
        mine = whole + (everything - whole) / layout.tensor
    if layout.expert > 1:
        assert isinstance(config, DeepseekV3Config)
        routed = _routed(config)
        mine = (everything - routed) / layout.shard + routed / layout.expert
    if layout.pipeline > 1 and count.multi_token:  # the last stage looks tokens up as well
        mine += config.vocab_size * config.hidden_size / layout.pipeline
    moments = 8 * mine / (layout.data if zero else 1)
    return {"weights": 4 * mine, "gradients": 4 * mine, "optimizer": moments}


def unsplit(config: ModelConfig) -> int:
    """Parameters that tensor ranks all hold: norms, routers, what makes latents."""
    layers = config.num_hidden_layers + getattr(config, "num_nextn_predict_layers", 0)
    each = (whole_of_layer(config, layer) for layer in range(layers))
    return config.hidden_size + sum(each)


def _share(ranks: int) -> float:
    return (ranks - 1) / ranks


def _tables(config: ModelConfig) -> int:
    """Embedding, head and final norm."""
    tables = 1 if config.tie_word_embeddings else 2
    return tables * config.vocab_size * config.hidden_size + config.hidden_size


def _routed(config: DeepseekV3Config) -> int:
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    matrices = 3 * config.hidden_size * config.moe_intermediate_size
    return (layers - config.first_k_dense_replace) * config.n_routed_experts * matrices


def _key_value_width(config: ModelConfig) -> int:
    if isinstance(config, DeepseekV3Config):
        return config.kv_lora_rank + config.qk_rope_head_dim
    assert isinstance(config, Llama3Config)
    return 2 * config.num_key_value_heads * config.head_dim


def _gathered(config: ModelConfig) -> int:
    """Numbers a token that tensor ranks gather or scatter forward; backward it is the same."""
    width, ahead = config.hidden_size, getattr(config, "num_nextn_predict_layers", 0)
    tables = 2 * width * (1 + ahead)  # after the embedding, before the head
    if not isinstance(config, DeepseekV3Config):
        return 4 * width * config.num_hidden_layers + tables
    query = config.q_lora_rank or width
    latents = query + config.kv_lora_rank + config.qk_rope_head_dim + width
    dense = config.first_k_dense_replace
    mixtures = config.num_hidden_layers + ahead - dense
    routed = 2 * width + config.num_experts_per_tok + 2 * width * (config.n_shared_experts > 0)
    return tables + dense * (latents + 2 * width) + mixtures * (latents + routed)
