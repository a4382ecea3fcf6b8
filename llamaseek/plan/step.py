"""How long a training step takes: counted work at measured rates, nothing assumed of the whole.

A micro-batch takes its products, its attention (half of the keys, where causality says so), what it
moves to and from memory, and its sends one after the other, as the training loop runs them. What
FSDP gathers and scatters goes beside that work, and what is longer shows; gradients of replicas are
averaged after the last backward. A pipeline of p places takes as many such times as it has
micro-batches, and p - 1 more, each shorter by the stages a rank. The utilization is what comes out.

`plan` and `parallel: auto` count the work from the config (`plan/work.py`), `train-plan` from a
traced rank (`dry_run/`): the formula is this one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from llamaseek.plan.gpus import Rates
from llamaseek.plan.layout import Layout, Running


@dataclass(frozen=True)
class Work:
    """One micro-batch forward and backward on one kind of rank, and what it adds to a step.

    FLOPs of attention are those that causality leaves. Bytes `sent` in a micro-batch are by the
    mesh's dimension. `gathered` are FSDP's weights, `scattered` its gradients once a step,
    `averaged` gradients of replicas once a step, `stepped` what the optimizer reads and writes.
    """

    product_flops: float = 0.0
    attention_flops: float = 0.0
    moved: float = 0.0
    sent: Mapping[str, float] = field(default_factory=dict)
    gathered: float = 0.0
    scattered: float = 0.0
    averaged: float = 0.0
    stepped: float = 0.0


@dataclass(frozen=True)
class Slot:
    """Seconds that one micro-batch takes on all parts of a rank."""

    products: float
    attention: float
    memory: float
    sends: float

    @property
    def seconds(self) -> float:
        """One after the other."""
        return self.products + self.attention + self.memory + self.sends


@dataclass(frozen=True)
class Step:
    """One step of all ranks together, in seconds."""

    seconds: float
    slots: list[Slot]  # a micro-batch on each kind of rank
    bubble: float  # that the slowest rank waits for the pipeline
    exposed: float  # of sends once a step that nothing hides
    optimizer: float
    hidden_seconds: float  # a step's, did every send of a micro-batch run beside its work

    @property
    def slot(self) -> Slot:
        """The slowest rank's, whose pace the others keep."""
        return max(self.slots, key=lambda slot: slot.seconds)


def step_time(
    works: list[Work], layout: Layout, running: Running, micro_batches: int, rates: Rates
) -> Step:
    """The step that the slowest of the kinds of ranks makes, in so many micro-batches."""
    slots = [slot(work, layout, rates) for work in works]
    slowest = max(slot.seconds for slot in slots)
    working = max(slot.seconds - slot.sends for slot in slots)
    waits = running.waits(layout.pipeline)
    passes = micro_batches + waits
    exposed = max(exposed_seconds(work, layout, micro_batches, slowest, rates) for work in works)
    stepping = max(work.stepped for work in works) / rates.memory
    return Step(
        seconds=passes * slowest + exposed + stepping,
        slots=slots,
        bubble=waits * slowest,
        exposed=exposed,
        optimizer=stepping,
        hidden_seconds=passes * working + exposed + stepping,
    )


def slot(work: Work, layout: Layout, rates: Rates) -> Slot:
    """A micro-batch through all parts of a rank."""
    return Slot(
        products=work.product_flops / rates.products,
        attention=work.attention_flops / rates.attention,
        memory=work.moved / rates.memory,
        sends=sum(send_seconds(layout, name, size, rates) for name, size in work.sent.items()),
    )


def send_seconds(layout: Layout, name: str, size: float, rates: Rates) -> float:
    """Seconds that a rank's `size` bytes to its group take. Tensor ranks stand closest, then
    context ranks, then those that share experts or weights; pipeline places are the farthest.
    """
    ranks = getattr(layout, name, layout.gpus)
    inside = rates.node // near(layout, name, rates.node)  # ranks of the group in a node
    if ranks <= inside:
        return size / rates.link
    if name != "expert":
        return size / rates.network
    # An exchange goes to all ranks alike, over both at once.
    away = (ranks - max(inside, 1)) / (ranks - 1)
    return max(size * away / rates.network, size * (1 - away) / rates.link)


def near(layout: Layout, name: str, node: int) -> int:
    """How far apart neighbours of a group stand, in ranks."""
    inner = layout.tensor * layout.context
    distances = {"tensor": 1, "context": layout.tensor, "expert": inner, "shard": inner}
    if name in ("data", "pipeline"):
        everything = layout.gpus <= node
        return 1 if everything else node
    return distances.get(name, node)


def exposed_seconds(
    work: Work, layout: Layout, micro_batches: int, slot: float, rates: Rates
) -> float:
    """What FSDP sends beyond the work it goes beside, and the averaging of gradients. In a pipeline
    weights are gathered once a step, else for every micro-batch.
    """
    times = 1 if layout.pipeline > 1 else micro_batches
    sent = times * work.gathered + work.scattered
    beside = send_seconds(layout, "shard", sent, rates) - times * slot
    # Ranks that hold the same numbers are those of several dimensions: near only in one node.
    reach = rates.link if layout.gpus <= rates.node else rates.network
    return max(beside, 0.0) + work.averaged / reach


def total(works: Iterable[tuple[Work, int]]) -> Work:
    """The work of several parts of a rank, each so many times."""
    found, sent = dict.fromkeys(SUMMED, 0.0), defaultdict[str, float](float)
    for work, count in works:
        for name in SUMMED:
            found[name] += count * getattr(work, name)
        for name, size in work.sent.items():
            sent[name] += count * size
    return Work(sent=dict(sent), **found)


SUMMED = [each.name for each in fields(Work) if each.name != "sent"]


def others(ranks: int) -> float:
    """The share of a collective that lies on other ranks."""
    return (ranks - 1) / ranks
