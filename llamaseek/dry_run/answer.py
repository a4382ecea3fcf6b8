"""From a recipe to the dry run of its ranks, and what programs read of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from llamaseek.dry_run.estimate import BESIDE, estimate
from llamaseek.dry_run.host import host_memory
from llamaseek.dry_run.rank import RankReport, Setting, dry_run, kinds
from llamaseek.plan.flops import trained_modules, training_flops
from llamaseek.plan.gpus import Gpu
from llamaseek.plan.step import Slot, Step
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.check import model_config, resolve


def setting_of(recipe: Recipe) -> Setting:
    """What a recipe trains how on every rank; its layout is resolved."""
    config, plan, train = model_config(recipe), recipe.parallel, recipe.train
    share = train.batch // (plan.data * plan.shard)
    rows = min(train.micro_batch or (1 if plan.pipeline > 1 else share), share)
    return Setting(
        config=config,
        plan=plan,
        length=recipe.data.length,
        rows=rows,
        micro_batches=share // rows,
        checkpoint=train.checkpoint_activations,
        depth=trained_modules(recipe, config),
        compile=train.compile is True,
        moment=2 if train.moments == "bf16" else 4,
    )


@dataclass(frozen=True)
class Planned:
    """A dry run of every kind of rank, the step they make, and both as data for programs."""

    setting: Setting
    reports: list[RankReport]
    step: Step
    answer: dict[str, Any]


def plan_training(recipe: Recipe, gpu: Gpu, dtype: str) -> Planned:
    """The dry run of a recipe."""
    resolved = resolve(recipe, None)
    setting = setting_of(resolved)
    places = kinds(setting)
    reports = [dry_run(setting, rank) for rank in places]
    step = estimate(setting, reports, gpu, dtype)
    memory = max(report.total for report in reports)
    tokens = setting.rows * setting.micro_batches * setting.layout.replicas * setting.length
    flops = tokens * training_flops(setting.config, setting.length, setting.depth)
    share = flops / (step.seconds * setting.layout.gpus * gpu.peak(dtype))
    answer = {
        "recipe": recipe.name,
        "gpu": gpu.name,
        "dtype": dtype,
        "ranks": setting.layout.gpus,
        "layout": setting.layout.to_dict(),
        "micro_batches": setting.micro_batches,
        "gpu_memory_bytes": int(gpu.memory),
        "fits": memory <= gpu.memory,
        "host": host_memory(resolved, setting.config, reports, gpu),
        "per_rank": [
            rank_data(setting, report, slot, places[report.rank])
            for report, slot in zip(reports, step.slots, strict=True)
        ],
        "step_seconds": step.seconds,
        "idle_seconds": step.bubble,
        "exposed_seconds": step.exposed,
        "optimizer_seconds": step.optimizer,
        "tokens_per_second": tokens / step.seconds,
        "utilization": share,
        "utilization_with_sends_hidden": share * step.seconds / step.hidden_seconds,
    }
    return Planned(setting, reports, step, answer)


def rank_data(
    setting: Setting, report: RankReport, slot: Slot, places: list[int]
) -> dict[str, Any]:
    """Bytes by part, seconds of a micro-batch, bytes sent in a step by the mesh's dimensions."""
    parts = ("weights", "gradients", "optimizer", "gathered", "activations", "total")
    stages = range(report.place, setting.plan.stages, setting.plan.pipeline)
    sent: Counter[str] = Counter()
    for part in report.parts:
        for group, size in (part.forward + part.backward).sent.items():
            name = report.groups.get(group, "other")
            often = 1 if name in BESIDE else setting.micro_batches
            sent[name] += size * often
    sent["replicas"] += report.averaged
    return {
        "rank": report.rank,
        "places": places,
        "parameters": report.parameters,
        "embedding": 0 in stages,
        "layers": [part.layers for part in report.parts],
        "head": setting.plan.stages - 1 in stages,
        "in_flight": report.in_flight,
        "bytes": {name: getattr(report, name) for name in parts},
        "micro_batch_seconds": asdict(slot),
        "sent_bytes": {name: size for name, size in sent.items() if size},
    }
