"""A traced rank's work, for the formula of a step's time (`plan/step.py`)."""

from __future__ import annotations

from llamaseek.dry_run.rank import Part, RankReport, Setting
from llamaseek.plan.gpus import Gpu, rates_of
from llamaseek.plan.layout import running_of
from llamaseek.plan.step import Step, Work, step_time, total
from llamaseek.recipe.parallel import ParallelRecipe

BESIDE = ("data", "shard")  # dimensions whose sends in a micro-batch are FSDP's


def estimate(setting: Setting, reports: list[RankReport], gpu: Gpu, dtype: str) -> Step:
    """The step that the slowest of the ranks makes."""
    works = [rank_work(setting, report) for report in reports]
    running = running_of(setting.plan)
    return step_time(works, setting.layout, running, setting.micro_batches, rates_of(gpu, dtype))


def rank_work(setting: Setting, report: RankReport) -> Work:
    """What was traced of a rank."""
    parts = [part_work(setting, report, part) for part in report.parts]
    once = Work(averaged=report.averaged, stepped=step_bytes(setting, report))
    return total((part, 1) for part in [*parts, once])


def part_work(setting: Setting, report: RankReport, part: Part) -> Work:
    """A micro-batch of one part; what it passes to the next stage is sent both ways."""
    plan, work = setting.plan, part.forward + part.backward
    # Of all keys half are seen. A split row's chunks are counted to their ends, 1 / 2C more.
    split = 2 * plan.context
    causal = split / (split + 1) if plan.context > 1 else 0.5
    sent: dict[str, float] = {}
    for group, size in work.sent.items():
        name = report.groups.get(group, "other")
        if name not in BESIDE:
            sent[name] = sent.get(name, 0.0) + size
    if plan.pipeline > 1:
        share = setting.length // (plan.context * plan.tensor)
        sent["pipeline"] = 2 * 2 * setting.rows * share * setting.config.hidden_size
    forward, backward = (beside(report, half.sent) for half in (part.forward, part.backward))
    again = gathered_again(plan) * forward
    return Work(
        product_flops=work.product_flops,
        attention_flops=causal * work.attention_flops,
        moved=work.moved,
        sent=sent,
        gathered=forward + again,
        scattered=backward - again,
    )


def gathered_again(plan: ParallelRecipe) -> bool:
    """Whether the backward pass gathers weights as the forward pass does."""
    return plan.shard > 1 and plan.pipeline == 1 and plan.reshard


def beside(report: RankReport, sent: dict[str, int]) -> float:
    """Bytes that FSDP sends."""
    return sum(size for group, size in sent.items() if report.groups.get(group) in BESIDE)


def step_bytes(setting: Setting, report: RankReport) -> float:
    """Bytes that AdamW moves: gradients read, weights and moments read and written."""
    stepped = report.optimizer / (2 * setting.moment)
    return stepped * (3 * 4 + 4 * setting.moment)
