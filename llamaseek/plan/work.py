"""What one rank does in a micro-batch, counted from the config: `plan/step.py` makes time of it.

Products and sends are counted operation by operation after `models/`, `parallel/` and
`models/recompute.py`. Memory traffic is counted in passes over the arrays that operations between
products read and write, as compiled layers make them; `PASSES` were counted on traced layers, and
`tests/plan/test_step.py` holds the whole to traces. D width, N tokens of a micro-batch's rows on
one context rank, t tensor ranks, c bytes of a number.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from llamaseek.herd import ModelConfig
from llamaseek.plan.activations import FLOAT
from llamaseek.plan.formats import GRADIENT
from llamaseek.plan.layout import Layout, Running, stage_layers
from llamaseek.plan.memory import Training
from llamaseek.plan.step import Work, others, total
from llamaseek.plan.weights import adapter_size, cache_numbers, kind, layer_size, table_size


class Passes(NamedTuple):
    """How often a half of a layer's work reads or writes an array between its products: the hidden
    states, the feed-forward's inner product, latent attention's queries, the rows sent to experts,
    keys and values of whole rows that were gathered, and what tensor ranks gather or scatter.
    """

    hidden: int
    inner: int
    queries: int
    rows: int
    keys: int
    collectives: int = 2


FORWARD = Passes(hidden=19, inner=3, queries=13, rows=9, keys=8)
BACKWARD = Passes(hidden=17, inner=7, queries=17, rows=11, keys=15)
AGAIN = Passes(hidden=12, inner=3, queries=9, rows=5, keys=8)
# Bytes that a parameter takes: copies in the products' dtype, or FSDP's gathering into place, and
# gradients that are cast and added to float32 ones.
CAST, GATHERED = {"forward": 6, "backward": 18, "again": 6}, {"forward": 4, "backward": 6}
# Passes over the logits of softmax and its gradient; a vocabulary that is split takes more, as its
# sums wait for other ranks.
SOFTMAX, SPLIT_SOFTMAX = 15, 35
HEAD_BACKWARD, EMBEDDING_BACKWARD = 18, 16  # bytes a parameter, whole tables
ADDED = 12  # bytes a parameter and chunk of the loss: the head's gradient in float32


@dataclass(frozen=True)
class Counted:
    """A micro-batch of a training run under a layout."""

    config: ModelConfig
    training: Training
    layout: Layout
    running: Running

    @property
    def tokens(self) -> int:
        """N."""
        return self.training.run.tokens

    @property
    def number(self) -> int:
        """c."""
        return self.training.run.number

    @property
    def frozen(self) -> bool:
        """Whether adapters are trained alone."""
        return self.training.run.adapters is not None

    def stage(self, stage: int) -> Work:
        """One of the pipeline's stages."""
        stages = self.layout.pipeline * self.running.stages_per_rank
        count = self.config.num_hidden_layers + self.training.depth
        layers = stage_layers(count, stages, stage, self.running.last_layers)
        kinds = Counter(kind(self.config, layer) for layer in layers)
        works = [(self.layer(layer), often) for layer, often in kinds.items()]
        depth, last = self.training.depth, stage == stages - 1
        works.append((self.embedding(), (stage == 0) + last * depth))
        works.append((self.head(), last * (1 + depth)))
        works.append((self.tables(), self.held_tables(stage == 0, last)))
        if stages > 1:
            # Hidden states to the next place, and their gradients to the one before.
            sent = 2 * self.number * self.tokens * self.config.hidden_size / self.layout.tensor
            works.append((Work(sent={"pipeline": sent}), 1))
        return total(works)

    def layer(self, layer: int) -> Work:
        """A layer forward, backward, and what of it is computed again."""
        forward, again = layer_products(self.config, layer, self.training, self.layout)
        attention = self.attention()
        sent = self.sent(layer)
        return Work(
            product_flops=self.tokens * (forward * (2 if self.frozen else 3) + again),
            # The fused backward makes the scores again: two and a half forwards.
            attention_flops=attention * (3.5 + self.training.checkpoint),
            moved=self.moved(layer),
            sent=sent,
            **self.shared(self.layer_parameters(layer), 1 if self.layout.pipeline > 1 else 2),
        )

    def attention(self) -> float:
        """FLOPs of a forward that causality leaves; narrower values are padded to the keys."""
        run, heads = self.training.run, self.config.num_attention_heads / self.layout.tensor
        keys = run.length * self.layout.context / 2
        return 2 * run.tokens * keys * heads * 2 * self.config.query_head_width

    def layer_parameters(self, layer: int) -> Parameters:
        """What the rank multiplies with of a layer, where nothing is sharded."""
        size, run = layer_size(self.config, kind(self.config, layer)), self.training.run
        plain = size.whole + (size.plain - size.whole) / self.layout.tensor
        routed = size.routed / (self.layout.tensor * self.layout.expert)
        if run.adapters is None:
            return Parameters(plain, routed, plain, routed)
        added = adapter_size(self.config, kind(self.config, layer), run.adapters, run.rank)
        return Parameters(plain, routed, added / self.layout.tensor, 0)

    def table(self) -> Parameters:
        """Of embedding or head."""
        size = table_size(self.config) / self.layout.tensor
        return Parameters(size, 0, 0 if self.frozen else size, 0)

    def tables(self) -> Work:
        """What embedding or head adds once, however often it is used; it stays gathered between
        a micro-batch's forward and its backward.
        """
        return Work(sent={}, **self.shared(self.table(), again=1))

    def held_tables(self, first: bool, last: bool) -> int:
        """How many a stage holds: a multi-token module looks tokens up again, in the last one."""
        if first and last and self.config.tie_word_embeddings:
            return 1
        return (first or (last and self.training.depth > 0)) + last

    def shared(self, size: Parameters, again: int) -> dict[str, float]:
        """Bytes that shard and data ranks send, and that the optimizer moves. Weights are gathered
        `again` times in a micro-batch.
        """
        layout, zero = self.layout, self.running.zero
        weights, trained = size.plain + size.routed, size.trained + size.trained_routed
        share = others(layout.shard)
        copies = layout.data * layout.context
        spread = layout.replicas * layout.context // max(layout.expert, layout.shard)
        averaged = size.trained / layout.shard * others(copies)
        # A rank's experts are whole, so that sharding leaves fewer copies of them to average.
        owned = size.trained_routed * layout.expert / max(layout.expert, layout.shard)
        averaged += owned * others(max(spread, 1))
        stepped = trained / layout.shard / (layout.data if zero else 1)
        return {
            "gathered": share * self.number * weights * again,
            "scattered": share * GRADIENT * trained,
            "averaged": GRADIENT * (2 + zero) * averaged,
            "stepped": stepped * (3 * FLOAT + 2 * self.training.moments),
        }

    def sent(self, layer: int) -> dict[str, float]:
        """Bytes of a micro-batch's activations by dimension."""
        layout, run = self.layout, self.training.run
        found: dict[str, float] = {}
        again = self.training.again
        if layout.tensor > 1:
            gathers, scatters = collective_numbers(self.config, layer)
            times: float = 2 * (gathers + scatters) + again * gathers
            times += self.training.checkpoint * scatters / 2
            found["tensor"] = others(layout.tensor) * times * self.number * self.tokens
        if layout.context > 1:
            keys = run.tokens * layout.context * cache_numbers(self.config, layout.tensor)
            found["context"] = others(layout.context) * (2 + again) * keys * self.number
        if layout.expert > 1 and self.config.is_moe_layer(layer):
            found["expert"] = others(layout.expert) * self.exchanged(layer) * self.rows
        return found

    def exchanged(self, layer: int) -> float:
        """Bytes a number of the rows that go to experts and come back, both ways."""
        there = 1 + FLOAT / 128 if self.running.fp8_dispatch else self.number
        # A multi-token module's norm follows, for which the results are sent again.
        again = self.training.checkpoint * there
        after = layer >= self.config.num_hidden_layers
        again += after * (self.training.again) * self.number
        return there + 3 * self.number + again

    @property
    def rows(self) -> float:
        """Numbers in the rows that tokens send to experts."""
        chosen = self.config.experts_per_token
        return self.tokens * chosen * self.config.hidden_size / self.layout.tensor

    def moved(self, layer: int) -> float:
        """Bytes to and from memory between products."""
        parts = [FORWARD, BACKWARD]
        if self.training.again:
            parts.append(AGAIN)
        passes = sum(self.passed(layer, p) for p in parts)
        size = self.layer_parameters(layer)
        return self.number * passes + (size.plain + size.routed) * self.weight_bytes()

    def weight_bytes(self) -> int:
        """Bytes a parameter of a layer: copies and gradients."""
        bytes_of = CAST if self.layout.shard == 1 else GATHERED
        names = ["forward", "backward"]
        if self.training.again:
            names.append("again")
        if self.number == FLOAT and self.layout.shard == 1:
            return ADDED
        return sum(bytes_of.get(name, 0) for name in names)

    def passed(self, layer: int, passes: Passes) -> float:
        """Numbers that operations between products read and write in a layer."""
        config, layout = self.config, self.layout
        token = passes.hidden * config.hidden_size / layout.tensor
        token += passes.inner * inner_width(config, layer) / layout.tensor
        if config.latents is not None:
            queries = config.num_attention_heads * config.query_head_width
            token += passes.queries * queries / layout.tensor
        if layout.tensor > 1:
            token += passes.collectives * sum(collective_numbers(config, layer))
        if layout.context > 1:
            keys = layout.context * cache_numbers(config, layout.tensor)
            token += passes.keys * keys
        rows = passes.rows * self.rows if config.is_moe_layer(layer) else 0
        return self.tokens * token + rows

    def embedding(self) -> Work:
        """The look-up, scattered over tensor ranks, and its gradient."""
        width, table = self.config.hidden_size, self.table()
        sent = 2 * others(self.layout.tensor) * self.tokens * width * self.number
        moved = (EMBEDDING_BACKWARD if self.layout.shard == 1 else 10) * table.trained
        return Work(
            moved=moved + 6 * self.tokens * width * self.number,
            sent={"tensor": sent} if self.layout.tensor > 1 else {},
        )

    def head(self) -> Work:
        """Logits chunk by chunk, softmax, and both gradients, which are made at once."""
        width, table, split = self.config.hidden_size, self.table(), self.layout.tensor > 1
        logits = self.tokens * self.config.vocab_size / self.layout.tensor
        rows = self.config.vocab_size / self.layout.tensor
        chunks = ceil(self.tokens / max(self.training.chunk // rows, 64))
        passes = SPLIT_SOFTMAX if split else SOFTMAX
        whole = HEAD_BACKWARD if self.layout.shard == 1 else sum(GATHERED.values())
        moved = (ADDED * chunks + whole) * table.trained + passes * logits * self.number
        sent = 2 * others(self.layout.tensor) * self.tokens * width * self.number
        return Work(
            product_flops=6 * self.tokens * width * rows,
            moved=moved + 6 * self.tokens * width * self.number,
            sent={"tensor": sent} if split else {},
        )


class Parameters(NamedTuple):
    """Parameters on a rank, where nothing is sharded: `plain` and `routed`, and how many train."""

    plain: float
    routed: float
    trained: float
    trained_routed: float


def place_works(
    config: ModelConfig, training: Training, layout: Layout, running: Running
) -> list[Work]:
    """The work of the first, the second and the last pipeline place, which differ."""
    counted = Counted(config, training, layout, running)
    places = sorted({0, min(1, layout.pipeline - 1), layout.pipeline - 1})
    stages = layout.pipeline * running.stages_per_rank
    return [
        total((counted.stage(stage), 1) for stage in range(place, stages, layout.pipeline))
        for place in places
    ]


def layer_products(
    config: ModelConfig, layer: int, training: Training, layout: Layout
) -> tuple[float, float]:
    """FLOPs a token of a layer's matrix products on one rank, and of those computed again."""
    size = layer_size(config, kind(config, layer))
    weights = float(size.plain)
    last = config.hidden_size * inner_width(config, layer)
    if config.is_moe_layer(layer):
        chosen = config.experts_per_token
        weights += size.routed * chosen / config.num_experts
        last = chosen * config.hidden_size * config.expert_width
    again = 0.0
    after = layer >= config.num_hidden_layers
    if training.checkpoint:  # the last product's result is needed by nothing, unless a norm follows
        again = weights - (0 if after else last)
    elif training.selective:
        again = products_again(config, layer, layout) + after * last
    return 2 * weights / layout.tensor, 2 * again / layout.tensor


def products_again(config: ModelConfig, layer: int, layout: Layout) -> float:
    """Weights whose products "selective" computes again: those that are parts of sums, latent
    attention's up-projections, and the experts (`models/recompute.py`).
    """
    queries = config.num_attention_heads * config.query_head_width * config.hidden_size
    latents, again = config.latents, 0
    if latents is None:
        again = queries if layout.tensor > 1 else 0
    else:
        again = (latents.plain + latents.value) * latents.key_value
        again += config.query_head_width * (latents.query or 0)
        again *= config.num_attention_heads
    if config.is_moe_layer(layer):
        chosen = 2 * config.experts_per_token + config.shared_experts
        again += config.hidden_size * config.expert_width * chosen
    return again


def inner_width(config: ModelConfig, layer: int) -> int:
    """Of a layer's gated product: a mixture's chosen and shared experts together."""
    if not config.is_moe_layer(layer):
        return config.intermediate_size
    return (config.experts_per_token + config.shared_experts) * config.expert_width


def collective_numbers(config: ModelConfig, layer: int) -> tuple[int, int]:
    """Numbers a token that a layer's tensor ranks gather and scatter in a forward pass."""
    width, before = config.hidden_size, config.hidden_size
    if config.latents is not None:
        before = (config.latents.query or width) + config.latents.gathered
    if not config.is_moe_layer(layer):
        return before + width, 2 * width
    shared = width * (config.shared_experts > 0)
    return before + width + config.experts_per_token + shared, 2 * width + shared
