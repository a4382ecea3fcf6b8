"""A tuning plan on one line."""

from __future__ import annotations

from llamaseek.train.finetune.choose import TuningPlan
from llamaseek.units import counted, duration, plural, size


def plan_line(plan: TuningPlan) -> str:
    """Rows, packed rows, steps, method, memory and time."""
    recipe, rows = plan.recipe, plan.rows.rows
    read = counted(rows, "document" if recipe.stage == "pretrain" else "row")
    apart = f", {plan.held_out or 'none'} of them held out"
    if recipe.stage == "pretrain":
        apart = f", {recipe.data.holdout:.0%} of the text held out"
    each = plan.epoch_steps
    parts = [
        read + apart,
        f"{plan.packed:,} packed {plural('row', plan.packed)} of {recipe.data.length}",
        f"1 epoch = {each:,} {plural('step', each)} of {recipe.train.batch}",
        f"{plan.epochs:.3g} {plural('epoch', plan.epochs)} = {recipe.train.steps:,} steps",
        method(plan),
        f"lr {recipe.train.lr:g}",
        size(plan.cost.memory),
        f"about {duration(plan.cost.seconds)}",
    ]
    return "; ".join(parts)


def method(plan: TuningPlan) -> str:
    """What is trained."""
    lora, kind = plan.recipe.lora, "reward model: " if plan.recipe.stage == "reward" else ""
    if lora is None:
        return f"{kind}all weights"
    where = ", ".join(lora.targets) or "all linear"
    return f"{kind}{'QLoRA' if lora.base == 'nf4' else 'LoRA'} rank {lora.rank} on {where}"
