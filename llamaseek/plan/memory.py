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
    selectively_kept,
    widest_gradient,
)
from llamaseek.plan.formats import GRADIENT, MASTER, NF4, NF4_WIDE
from llamaseek.plan.layout import Layout, Running, stage_layers
from llamaseek.plan.weights import (
    adapter_size,
    kind,
    largest_linear,
    largest_matrix,
    layer_size,
    linear_size,
    table_size,
)

# Logits that `models/loss.py` makes at a time. On a CPU 8 MB of float32 stay in its caches; a GPU
# wants large products.
CHUNK_NUMBERS = {"cpu": 2**21, "cuda": 2**29}


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
    already; `depth` multi-token modules trained along. `checkpoint` computes whole layers again,
    `selective` what is cheap for its size (`models/recompute.py`). With `nf4` a matrix under
    adapters is widened for each product.
    """

    run: TrainingPass
    stored: int = MASTER
    moments: int = 8
    checkpoint: bool = False
    accumulate: bool = True
    chunk: int = CHUNK_NUMBERS["cuda"]
    depth: int = 0
    selective: bool = False
    nf4: bool = False  # adapters stand on matrices in 4 bits
    scored: bool = False  # the loss reads each token's log-probability, not their sum

    @property
    def again(self) -> bool:
        """Whether anything is computed again."""
        return self.checkpoint or self.selective


@dataclass(frozen=True)
class LayerGroup:
    """Like layers that follow each other in a stage, each as one rank sees it. Bytes, but for
    `parameters` and `adapters`, which the rank owns, and `whole`, which it multiplies with.
    """

    count: int
    parameters: float
    adapters: float
    packed: float  # of the parameters, those kept in 4 bits
    whole: float
    routed: float  # of the parameters, those of routed experts
    matrix: int  # parameters of the largest plain matrix, whole
    saved: float  # for backward, when nothing is recomputed
    held: float  # from forward to backward, as it is trained
    copies: float  # of weights in the products' dtype
    cached: float  # of those, the ones that autocast keeps until the forward pass is over
    gradient: float
    entering: float  # gradients in flight when its backward pass begins, and when it ends
    leaving: float
    made_again: float  # activations that the backward pass computes


def training_memory(
    config: ModelConfig,
    training: Training,
    layout: Layout = Layout(),
    stage: int = 0,
    micro_batches: int = 1,
    running: Running = Running(),
) -> Memory:
    """The fullest moment of a step on one rank of the pipeline place `stage`; the parts sum to it.

    A rank of several stages holds all their layers; a micro-batch goes through one at a time.
    """
    each = running.stages_per_rank
    count, stages = config.num_hidden_layers + training.depth, layout.pipeline * each
    mine = range(stage, stages, layout.pipeline)
    layers = [n for s in mine for n in stage_layers(count, stages, s, running.last_layers)]
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
    packed = sum(s.count * s.packed for s in stretches)
    step = _Step(config, training, layout, stretches, first, last)
    moment = max(step.moments(), key=lambda m: m.total - m.gradients * training.accumulate)
    in_flight = running.in_flight(layout.pipeline, stage, micro_batches)
    # A micro-batch is in one stage at a time, whose output lives until its backward pass.
    kept = step.layers_held / each + rotary_tables(config, training.run)
    inside = moment.activations - step.held + kept
    if layout.pipeline > 1:
        kept += training.run.number * config.hidden_size * training.run.tokens / layout.tensor
    return Memory(
        weights=(owned - packed) * training.stored + packed * NF4 + adapters * MASTER,
        gradients=GRADIENT * trained if training.accumulate else moment.gradients,
        optimizer=training.moments
        * _stepped(config, trained, stretches, layout, running, first or last),
        activations=inside + (in_flight - 1) * kept,
        working=moment.working + _gathered(training, layout, stretches, micro_batches),
    )


def stretch(
    config: ModelConfig, training: Training, layout: Layout, layer: int, count: int
) -> LayerGroup:
    """`count` layers like `layer`."""
    run, size, tensor = training.run, layer_size(config, layer), layout.tensor
    split = replace(run, tensor=tensor, context=layout.context, expert=layout.expert)
    share = tensor * layout.expert
    plain = size.whole + (size.plain - size.whole) / tensor
    owned = plain / layout.shard
    owned += size.routed / (tensor * max(layout.shard, layout.expert))
    added = adapter_size(config, layer, run.adapters, run.rank) if run.adapters else 0
    adapters = added / (tensor * layout.shard)
    packed = linear_size(config, layer) if training.nf4 else 0
    saved = layer_saved(config, layer, split)
    entry = run.number * config.hidden_size * run.tokens / tensor
    # FSDP gathers copies of its own; autocast makes them where weights are whole.
    cast = run.number if layout.shard == 1 and training.stored > run.number else 0
    narrow = run.number if run.number < FLOAT else 0  # a gradient before it is cast to fp32
    widened = (NF4_WIDE + narrow) * largest_linear(config, layer) * training.nf4
    full = run.adapters is None
    return LayerGroup(
        count=count,
        parameters=owned,
        adapters=adapters,
        packed=packed,
        whole=plain + size.routed / share,
        saved=saved,
        held=_held(config, training, layer, split, saved),
        routed=size.routed / (tensor * max(layout.shard, layout.expert)),
        copies=cast * (size.matrices / tensor + size.routed / share),
        cached=cast * full * size.matrices / tensor,
        gradient=GRADIENT * (owned if full else adapters),
        matrix=largest_matrix(config, layer),
        made_again=saved - selectively_kept(config, layer, split) * training.selective,
        entering=widest_gradient(config, layer, run) / tensor
        + widened
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
        return self.layers_held + rotary_tables(self.config, self.training.run)

    @property
    def layers_held(self) -> float:
        """Of that, the layers' share."""
        return sum(s.count * s.held for s in self.stretches)

    def moments(self) -> Iterator[Memory]:
        """Gradients made, activations kept and working memory at each moment."""
        again = self.training.again
        full = self.training.run.adapters is None
        table = full * GRADIENT * table_size(self.config) / (self.layout.tensor * self.layout.shard)
        if self.last:
            yield self._loss()
        kept, copies = self.held, sum(s.count * s.copies for s in self.stretches)
        # Multi-token modules read the embedding again, whose gradient is there from then on;
        # a tied one's is added to the head's.
        again_read = self.training.depth > 0 and not self.config.tie_word_embeddings
        made = table * self.last * (1 + again_read)
        # A tied table's gradient waits for the embedding's before it is one.
        waits = table * self._tied
        made -= waits
        for s in reversed(self.stretches):
            for before in {0, s.count - 1}:  # most activations kept, most gradients made
                inside = kept - before * s.held + again * s.made_again
                copied = s.copies if again else copies - before * s.copies
                done = made + before * s.gradient
                working = s.entering + copied + waits
                yield Memory(gradients=done, activations=inside, working=working)
                after = inside - s.held - again * s.made_again
                working = s.leaving + waits
                yield Memory(gradients=done + s.gradient, activations=after, working=working)
            kept, copies = kept - s.count * s.held, copies - s.count * s.copies
            made += s.count * s.gradient
        if self.first:
            yield self._embedding(made, table)

    def _loss(self) -> Memory:
        """Logits chunk by chunk; the gradients of the head and of the hidden states are made."""
        run, again, share = self.training.run, self.training.again, self.layout.tensor
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
        scored, made = self.training.scored, GRADIENT * table
        if scored and run.adapters is not None:  # autograd leaves a frozen head's out
            made, product = 0, number * logits
        # Chunks' gradients are added by autograd, two into a third where a tracker looks on.
        added = 2 * made * (scored and run.tokens > length)
        return Memory(
            activations=self.held + heads * norm + scored * hidden,
            working=heads * (made + 2 * hidden) + max(softmax, product, added) + copies,
        )

    @property
    def _tied(self) -> bool:
        """Whether embedding and head are one table, and both are here."""
        return self.config.tie_word_embeddings and self.first and self.last

    def _embedding(self, made: float, table: float) -> Memory:
        """The end: all gradients are there; a tied table's two are added into a third."""
        if self._tied:
            return Memory(gradients=made, working=3 * table)
        rows = FLOAT * self.config.hidden_size * self.training.run.tokens
        return Memory(gradients=made + table, working=rows)


def _held(
    config: ModelConfig, training: Training, layer: int, run: TrainingPass, saved: float
) -> float:
    """Bytes of a layer from its forward to its backward, as it is trained."""
    entry = run.number * config.hidden_size * run.tokens / run.tensor
    if training.selective:
        return entry + selectively_kept(config, layer, run)
    return entry if training.checkpoint else saved


def _stepped(
    config: ModelConfig,
    trained: float,
    stretches: list[LayerGroup],
    layout: Layout,
    running: Running,
    table: bool,
) -> float:
    """Parameters whose moments the fullest rank keeps: ZeRO-1 spreads whole weights over the ranks
    that hold the same, which are fewer for the experts; one rank has the largest, a table if any.
    """
    if not running.zero:
        return trained
    routed = sum(s.count * s.routed for s in stretches)
    largest = table_size(config) if table else max(s.matrix for s in stretches)
    plain = max((trained - routed) / layout.data, largest / layout.tensor)
    return plain + routed * layout.expert / layout.replicas


def _gathered(
    training: Training, layout: Layout, stretches: list[LayerGroup], micro_batches: int
) -> float:
    """What FSDP gathers: the layer at work and the next, and a layer's gradients before they are
    scattered. A pipeline keeps its weights for a step (Llama 3 §3.3.2), and their gradients, which
    micro-batches add up.
    """
    if layout.shard == 1:
        return 0
    largest = max(s.whole for s in stretches)
    stage = sum(s.count * s.whole for s in stretches)
    weights = stage if layout.pipeline > 1 else min(2 * largest, stage)
    added = stage if layout.pipeline > 1 and micro_batches > 1 else largest
    gradients = GRADIENT * added * (training.run.adapters is None)
    return training.run.number * weights + gradients
