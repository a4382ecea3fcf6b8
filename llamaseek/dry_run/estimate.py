"""How long a step takes: each rank's counted work at published rates, nothing assumed of the whole.

A micro-batch takes its products, its attention (half of the keys, where causality says so), what it
moves to and from memory, and its sends one after the other, as the training loop runs them. What
FSDP gathers and scatters goes beside one micro-batch's work, and what is longer shows; gradients
of replicas are averaged after the last backward. A pipeline of p places takes as many such times as
it has micro-batches, and p - 1 more, each shorter by the stages a rank. The utilisation is what
comes out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llamaseek.dry_run.rank import RankReport, Setting
from llamaseek.dry_run.trace import TracedWork
from llamaseek.plan.flops import training_flops
from llamaseek.plan.gpus import Gpu, Rates, rates_of

BESIDE = ("data", "shard")  # dimensions whose sends in a micro-batch are FSDP's


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

    def __add__(self, other: Slot) -> Slot:
        return Slot(
            self.products + other.products,
            self.attention + other.attention,
            self.memory + other.memory,
            self.sends + other.sends,
        )


@dataclass(frozen=True)
class Estimate:
    """One step of all ranks together."""

    seconds: float
    slots: list[Slot]  # a micro-batch on each kind of rank
    bubble: float  # seconds that the slowest rank waits for the pipeline
    exposed: float  # seconds of sends once a step that nothing hides
    optimizer: float
    tokens_per_second: float
    utilisation: float  # of the peak in `dtype`, by the FLOPs that published figures count
    hidden_seconds: float  # a step's, did every send of a micro-batch run beside its work

    @property
    def slot(self) -> Slot:
        """The slowest rank's, whose pace the others keep."""
        return max(self.slots, key=lambda slot: slot.seconds)


def estimate(setting: Setting, reports: list[RankReport], gpu: Gpu, dtype: str) -> Estimate:
    """The step that the slowest of the ranks makes."""
    rates, layout, plan = rates_of(gpu, dtype), setting.layout, setting.plan
    slots = [rank_slot(setting, report, rates) for report in reports]
    slowest = max(slot.seconds for slot in slots)
    working = max(slot.seconds - slot.sends for slot in slots)
    waits = (plan.pipeline - 1) / (plan.stages // plan.pipeline)  # in micro-batches
    if plan.schedule == "zero_bubble" and plan.pipeline > 1:
        waits /= 3  # weights' gradients fill the rest (Qi et al. 2023, ZB-H1)
    passes = setting.micro_batches + waits
    exposed = max(exposed_seconds(report, rates, slowest) for report in reports)
    stepping = max(step_bytes(setting, report) for report in reports) / rates.memory
    seconds = passes * slowest + exposed + stepping
    rows = setting.rows * setting.micro_batches * layout.replicas
    tokens = rows * setting.length
    flops = tokens * training_flops(setting.config, setting.length, setting.depth)
    return Estimate(
        seconds=seconds,
        slots=slots,
        bubble=waits * slowest,
        exposed=exposed,
        optimizer=stepping,
        tokens_per_second=tokens / seconds,
        utilisation=flops / (seconds * layout.gpus * gpu.peak(dtype)),
        hidden_seconds=passes * working + exposed + stepping,
    )


def works(report: RankReport) -> Iterable[TracedWork]:
    """Forward and backward of every part."""
    return (part.forward + part.backward for part in report.parts)


def rank_slot(setting: Setting, report: RankReport, rates: Rates) -> Slot:
    """A micro-batch through all parts of a rank."""
    slots = (slot(setting, report, rates, work) for work in works(report))
    return sum(slots, Slot(0.0, 0.0, 0.0, 0.0))


def slot(setting: Setting, report: RankReport, rates: Rates, work: TracedWork) -> Slot:
    """A micro-batch of one part; what it passes to the next stage is sent both ways."""
    # Of all keys half are seen. A split row's chunks are counted to their ends, 1 / 2C more.
    split = 2 * setting.plan.context
    causal = split / (split + 1) if setting.plan.context > 1 else 0.5
    sends = sum(
        send_seconds(setting, report.groups.get(group, ""), size, rates)
        for group, size in work.sent.items()
        if report.groups.get(group) not in BESIDE
    )
    if setting.plan.pipeline > 1:
        share = setting.length // (setting.plan.context * setting.plan.tensor)
        sends += 2 * 2 * setting.rows * share * setting.config.hidden_size / rates.network
    return Slot(
        products=work.product_flops / rates.products,
        attention=causal * work.attention_flops / rates.attention,
        memory=work.moved / rates.memory,
        sends=sends,
    )


def send_seconds(setting: Setting, name: str, size: float, rates: Rates) -> float:
    """Seconds that a rank's `size` bytes to its group take. Tensor ranks stand closest, then
    context ranks, then those that share experts.
    """
    layout = setting.layout
    near = {"tensor": 1, "context": layout.tensor, "expert": layout.tensor * layout.context}
    ranks = getattr(layout, name, layout.gpus)
    inside = rates.node // near.get(name, rates.node)  # ranks of the group in a node
    if ranks <= inside:
        return size / rates.link
    if name != "expert":
        return size / rates.network
    # An exchange goes to all ranks alike, over both at once.
    away = (ranks - max(inside, 1)) / (ranks - 1)
    return max(size * away / rates.network, size * (1 - away) / rates.link)


def exposed_seconds(report: RankReport, rates: Rates, slot: float) -> float:
    """What FSDP sends beyond one micro-batch's time, and averaging of gradients."""
    sent = sum(
        size
        for work in works(report)
        for group, size in work.sent.items()
        if report.groups.get(group) in BESIDE
    )
    return max(sent / rates.network - slot, 0.0) + report.averaged / rates.network


def step_bytes(setting: Setting, report: RankReport) -> float:
    """Bytes that AdamW moves: gradients read, weights and moments read and written."""
    stepped = report.optimizer / (2 * setting.moment)
    return stepped * (3 * 4 + 4 * setting.moment)
