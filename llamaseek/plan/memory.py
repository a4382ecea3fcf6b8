"""Bytes on one GPU while it trains: what it holds throughout, and the fullest moment of a step.

The moments are those of `train/loop.py` with `models/loss.py`: the loss (all activations are kept,
the head's gradient is made), each layer's backward pass, and the embedding's gradient at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from llamaseek.herd.configs import ModelConfig
from llamaseek.plan.activations import (
    FLOAT,
    TrainingPass,
    layer_saved,
    rotary_tables,
    widest_gradient,
)
from llamaseek.plan.formats import GRADIENT, MASTER
from llamaseek.plan.layout import Layout, stage_layers
from llamaseek.plan.weights import adapter_size, kind, layer_size, table_size


@dataclass(frozen=True)
class Memory:
    """Bytes by part. `working` lives for a moment: copies, the loss, gradients in flight."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    cache: float = 0
    working: float = 0

    @property
    def total(self) -> float:
        """All parts together."""
        parts = (self.weights, self.gradients, self.optimizer)
        return sum(parts) + self.activations + self.cache + self.working

    def to_dict(self) -> dict[str, int]:
        """Whole bytes by part."""
        return {name: round(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Training:
    """What a step does on one GPU, however the model is split.

    `stored` bytes of a weight, `moments` of optimizer state a trained parameter; `chunk` logits
    the loss makes at a time; `accumulate` whether gradients of earlier micro-batches are there
    already; `depth` multi-token modules trained along.
    """

    run: TrainingPass
    stored: int = MASTER
    moments: int = 8
    checkpoint: bool = False
    accumulate: bool = True
    chunk: int = 2**27
    depth: int = 0


@dataclass(frozen=True)
class LayerGroup:
    """Like layers that follow each other in a stage, each as one rank sees it. Bytes, but for
    `parameters` and `adapters`, which the rank owns, and `whole`, which it multiplies with.
    """

    count: int
    parameters: float
    adapters: float
    whole: float
    saved: float  # for backward, when nothing is recomputed
    held: float  # from forward to backward, as it is trained
    copies: float  # of weights in the products' dtype
    cached: float  # of those, the ones that autocast keeps until the forward pass is over
    gradient: float
    entering: float  # gradients in flight when its backward pass begins, and when it ends
    leaving: float


def training_memory(
    config: ModelConfig,
    training: Training,
    layout: Layout = Layout(),
    stage: int = 0,
    micro_batches: int = 1,
) -> Memory:
    """The fullest moment of a step on one rank of `stage`; the parts sum to it."""
    layers = stage_layers(config.num_hidden_layers + training.depth, layout.pipeline, stage)
    stretches = [
        stretch(config, training, layout, layer, len(list(like)))
        for layer, like in groupby(kind(config, layer) for layer in layers)
    ]
    first, last = stage == 0, stage == layout.pipeline - 1
    tables = first + last - (config.tie_word_embeddings and first and last)
    # Multi-token modules of a last stage look tokens up in a table of its own, or in a tied head.
    tables += last and not first and training.depth > 0 and not config.tie_word_embeddings
    owned = tables * table_size(config) / (layout.tensor * layout.shard)
    owned += last * config.hidden_size / layout.shard  # the final norm
    owned += sum(s.count * s.parameters for s in stretches)
    adapters = sum(s.count * s.adapters for s in stretches)
    trained = owned if training.run.adapters is None else adapters
    step = _Step(config, training, layout, stretches, first, last)
    moment = max(step.moments(), key=lambda m: m.total - m.gradients * training.accumulate)
    in_flight = min(layout.pipeline - stage, micro_batches)
    return Memory(
        weights=owned * training.stored + adapters * MASTER,
        gradients=GRADIENT * trained if training.accumulate else moment.gradients,
        optimizer=training.moments * trained,
        activations=moment.activations + (in_flight - 1) * step.held,
        working=moment.working + _gathered(training, layout, stretches),
    )


def stretch(
    config: ModelConfig, training: Training, layout: Layout, layer: int, count: int
) -> LayerGroup:
    """`count` layers like `layer`."""
    run, size, tensor = training.run, layer_size(config, layer), layout.tensor
    split = replace(run, tensor=tensor, context=layout.context)
    share = tensor * layout.expert
    plain = size.whole + (size.plain - size.whole) / tensor
    owned = plain / layout.shard
    owned += size.routed / (tensor * max(layout.shard, layout.expert))
    added = adapter_size(config, layer, run.adapters, run.rank) if run.adapters else 0
    adapters = added / (tensor * layout.shard)
    saved = layer_saved(config, layer, split)
    entry = run.number * config.hidden_size * run.tokens / tensor
    # FSDP gathers copies of its own; autocast makes them where weights are whole.
    cast = run.number if layout.shard == 1 and training.stored > run.number else 0
    narrow = run.number if run.number < FLOAT else 0  # a gradient before it is cast to fp32
    full = run.adapters is None
    return LayerGroup(
        count=count,
        parameters=owned,
        adapters=adapters,
        whole=plain + size.routed / share,
        saved=saved,
        held=entry if training.checkpoint else saved,
        copies=cast * (size.matrices / tensor + size.routed / share),
        cached=cast * full * size.matrices / tensor,
        gradient=GRADIENT * (owned if full else adapters),
        entering=widest_gradient(config, layer, run) / tensor
        + full * (narrow + GRADIENT) * size.last / share,
        leaving=entry + full * 2 * narrow * size.largest / share,
    )


@dataclass(frozen=True)
class _Step:
    """One micro-batch through one stage: the moments that may be the fullest."""

    config: ModelConfig
    training: Training
    layout: Layout
    stretches: list[LayerGroup]
    first: bool
    last: bool

    @property
    def held(self) -> float:
        """What a micro-batch waiting for its backward pass holds."""
        tables = rotary_tables(self.config, self.training.run)
        return sum(s.count * s.held for s in self.stretches) + tables

    def moments(self) -> Iterator[Memory]:
        """Gradients made, activations kept and working memory at each moment."""
        again = self.training.checkpoint
        full = self.training.run.adapters is None
        table = full * GRADIENT * table_size(self.config) / (self.layout.tensor * self.layout.shard)
        if self.last:
            yield self._loss()
        kept, copies = self.held, sum(s.count * s.copies for s in self.stretches)
        # Multi-token modules read the embedding again, whose gradient is there from then on;
        # a tied one's is added to the head's.
        again_read = self.training.depth > 0 and not self.config.tie_word_embeddings
        made = table * self.last * (1 + again_read)
        for s in reversed(self.stretches):
            for before in {0, s.count - 1}:  # most activations kept, most gradients made
                inside = kept - before * s.held + again * s.saved
                copied = s.copies if again else copies - before * s.copies
                done = made + before * s.gradient
                yield Memory(gradients=done, activations=inside, working=s.entering + copied)
                after = inside - s.held - again * s.saved
                yield Memory(gradients=done + s.gradient, activations=after, working=s.leaving)
            kept, copies = kept - s.count * s.held, copies - s.count * s.copies
            made += s.count * s.gradient
        if self.first:
            yield self._embedding(made, table)

    def _loss(self) -> Memory:
        """Logits chunk by chunk; the gradients of the head and of the hidden states are made."""
        run, again, share = self.training.run, self.training.checkpoint, self.layout.tensor
        number, narrow = run.number, run.number < FLOAT
        hidden = number * self.config.hidden_size * run.tokens / share
        table = table_size(self.config) / share
        length = min(run.tokens, max(self.training.chunk // self.config.vocab_size, 64))
        logits = self.config.vocab_size * length / share
        # Logits, their fp32 copy, log-softmax; the chunk before still has its gradient.
        softmax = (number + FLOAT * (1 + narrow) + number * (run.tokens > length)) * logits
        product = number * (logits + table)
        heads = 1 + self.training.depth
        norm = run.norm(self.config.hidden_size) * run.tokens / share
        copies = sum(s.count * (s.cached if again else s.copies) for s in self.stretches)
        copies += number * table * (self.training.stored > number)
        return Memory(
            activations=self.held + heads * norm,
            working=heads * (GRADIENT * table + 2 * hidden) + max(softmax, product) + copies,
        )

    def _embedding(self, made: float, table: float) -> Memory:
        """The end: all gradients are there; a tied table's two are added into a third."""
        if self.config.tie_word_embeddings and self.last:
            return Memory(gradients=made, working=2 * table)
        rows = FLOAT * self.config.hidden_size * self.training.run.tokens
        return Memory(gradients=made + table, working=rows)


def _gathered(training: Training, layout: Layout, stretches: list[LayerGroup]) -> float:
    """What FSDP gathers: the layer at work and the next, and a layer's gradients before they are
    scattered. Under a pipeline it keeps the whole stage's weights for a step (Llama 3 §3.3.2).
    """
    if layout.shard == 1:
        return 0
    largest = max(s.whole for s in stretches)
    stage = sum(s.count * s.whole for s in stretches)
    weights = stage if layout.pipeline > 1 else min(2 * largest, stage)
    gradients = GRADIENT * largest * (training.run.adapters is None)
    return training.run.number * weights + gradients
