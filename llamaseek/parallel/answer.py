"""From a recipe to the dry run of its ranks, and what programs read of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from llamaseek.herd import DeepseekV3Config
from llamaseek.parallel.check import model_config, resolve
from llamaseek.parallel.dry_run import Report, Setting, dry_run, kinds
from llamaseek.parallel.estimate import Estimate, estimate
from llamaseek.plan.gpus import Gpu
from llamaseek.recipe import Recipe


def setting_of(recipe: Recipe) -> Setting:
    """What a recipe trains how on every rank; `UserError` for a layout that cannot run."""
    recipe = resolve(recipe, None)
    config, plan, train = model_config(recipe), recipe.parallel, recipe.train
    share = train.batch // (plan.data * plan.shard)
    rows = min(train.micro_batch or share, share)
    depth = 0
    if train.objective == "multi_token" and isinstance(config, DeepseekV3Config):
        depth = config.num_nextn_predict_layers
    return Setting(
        config=config,
        plan=plan,
        length=recipe.data.length,
        rows=rows,
        micro_batches=share // rows,
        checkpoint=train.checkpoint_activations,
        depth=depth,
        compile=train.compile,
        moment=2 if train.moments == "bf16" else 4,
    )


def plan_training(
    recipe: Recipe, gpu: Gpu, dtype: str
) -> tuple[list[Report], Estimate, dict[str, Any]]:
    """A report for each kind of rank, the step, and both as data for programs."""
    setting = setting_of(recipe)
    reports = [dry_run(setting, rank) for rank in kinds(setting)]
    found = estimate(setting, reports, gpu, dtype)
    memory = max(report.total for report in reports)
    answer = {
        "recipe": recipe.name,
        "gpu": gpu.name,
        "dtype": dtype,
        "ranks": setting.layout.gpus,
        "layout": setting.layout.to_dict(),
        "micro_batches": setting.micro_batches,
        "gpu_memory_bytes": int(gpu.memory),
        "fits": memory <= gpu.memory,
        "per_rank": [rank_data(setting, report) for report in reports],
        "step_seconds": found.seconds,
        "micro_batch_seconds": asdict(found.slot),
        "idle_seconds": found.bubble,
        "tokens_per_second": found.tokens_per_second,
        "utilisation": found.utilisation,
    }
    return reports, found, answer


def rank_data(setting: Setting, report: Report) -> dict[str, Any]:
    """Bytes by part, and bytes sent in a step by the mesh's dimensions."""
    parts = ("weights", "gradients", "optimizer", "gathered", "activations", "total")
    sent: Counter[str] = Counter()
    for part in report.parts:
        for group, size in (part.forward + part.backward).sent.items():
            name = report.groups.get(group, "other")
            often = 1 if name in ("shard", "data") else setting.micro_batches
            sent[name] += size * often
    return {
        "rank": report.rank,
        "parameters": report.parameters,
        "layers": [part.layers for part in report.parts],
        "in_flight": report.in_flight,
        "bytes": {name: getattr(report, name) for name in parts},
        "sent_bytes": dict(sent),
    }
