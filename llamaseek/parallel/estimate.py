"""How long a step takes: each rank's counted work at published rates, nothing assumed of the whole.

A micro-batch takes its products, its attention (half of the keys, where causality says so), what it
moves to and from memory, and its sends one after the other; sends over the data and shard ranks go
beside one micro-batch's work, and what is longer shows. A pipeline of p places takes as many such
times as it has micro-batches, and p - 1 more, each shorter by the stages a rank. The utilisation is
what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llamaseek.parallel.dry_run import Report, Setting
from llamaseek.parallel.trace import Work
from llamaseek.plan.flops import training_flops
from llamaseek.plan.gpus import Gpu
from llamaseek.plan.rates import Rates, rates_of

BESIDE = ("data", "shard")  # dimensions whose sends run beside the work
STATE_BYTES = 4 * (4 + 3)  # of AdamW a parameter: four numbers read, three written


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
    slot: Slot  # of the slowest rank
    bubble: float  # seconds that the slowest rank waits for the pipeline
    beside: float  # seconds of data and shard sends that nothing hides
    optimizer: float
    tokens_per_second: float
    utilisation: float  # of the peak in `dtype`, by the FLOPs that published figures count


def estimate(setting: Setting, reports: list[Report], gpu: Gpu, dtype: str) -> Estimate:
    """The step that the slowest of the ranks makes."""
    rates, layout, plan = rates_of(gpu, dtype), setting.layout, setting.plan
    slots = [rank_slot(setting, report, rates) for report in reports]
    slowest = max(slots, key=lambda found: found.seconds)
    busy = setting.micro_batches * slowest.seconds
    idle = (plan.pipeline - 1) * slowest.seconds / (plan.stages // plan.pipeline)
    if plan.schedule == "zero_bubble" and plan.pipeline > 1:
        idle /= 3  # weights' gradients fill the rest (Qi et al. 2023, ZB-H1)
    beside = max(beside_seconds(report, rates, setting) for report in reports)
    exposed = max(beside - slowest.seconds, 0.0)
    stepping = max(report.parameters for report in reports) * STATE_BYTES / rates.memory
    stepping /= plan.data if plan.zero else 1
    seconds = busy + idle + exposed + stepping
    rows = setting.rows * setting.micro_batches * layout.replicas
    tokens = rows * setting.length
    flops = tokens * training_flops(setting.config, "pretrain", setting.length)
    return Estimate(
        seconds=seconds,
        slot=slowest,
        bubble=idle,
        beside=exposed,
        optimizer=stepping,
        tokens_per_second=tokens / seconds,
        utilisation=flops / (seconds * layout.gpus * gpu.peak(dtype)),
    )


def works(report: Report) -> Iterable[Work]:
    """Forward and backward of every part."""
    return (part.forward + part.backward for part in report.parts)


def rank_slot(setting: Setting, report: Report, rates: Rates) -> Slot:
    """A micro-batch through all parts of a rank."""
    slots = (slot(setting, report, rates, work) for work in works(report))
    return sum(slots, Slot(0.0, 0.0, 0.0, 0.0))


def slot(setting: Setting, report: Report, rates: Rates, work: Work) -> Slot:
    """A micro-batch of one part; what it passes to the next stage is sent both ways."""
    # Of all keys half are seen. A split row's chunks are counted to their ends, 1 / 2C more.
    split = 2 * setting.plan.context
    causal = split / (split + 1) if setting.plan.context > 1 else 0.5
    sends = sum(
        size / rates.reach(reach(setting, report.groups.get(group, "")))
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


def reach(setting: Setting, name: str) -> int:
    """How many neighbouring ranks a group spans: tensor ranks stand closest."""
    layout = setting.layout
    inside = {"tensor": layout.tensor, "context": layout.tensor * layout.context}
    experts = layout.tensor * layout.context * layout.expert
    return inside.get(name, experts if name == "expert" else layout.gpus)


def beside_seconds(report: Report, rates: Rates, setting: Setting) -> float:
    """Gathering weights, scattering and averaging gradients, once a step."""
    sent = sum(
        size
        for work in works(report)
        for group, size in work.sent.items()
        if report.groups.get(group) in BESIDE
    )
    data = setting.plan.data
    if data > 1:  # gradients are averaged after the last backward
        sent += int(2 * 4 * report.parameters * (data - 1) / data)
    return sent / rates.network
