"""What does each way of training on several GPUs hold, and what does it send?

Every layout trains the same small model on processes of this machine; bytes held and bytes received
in a step stand beside those that `llamaseek plan` counts, from which it computes a step's time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llamaseek.plan.activations import TrainingPass
from llamaseek.plan.layout import running_of
from llamaseek.plan.memory import Memory, Training, training_memory
from llamaseek.plan.step import others
from llamaseek.plan.work import place_works
from llamaseek.runtime.check import resolve
from llamaseek.study.layouts import PLANS, SIZES, Case, Seen, observed
from llamaseek.study.runs import COLORS, Finding, Settings, mean

SMOKE = ("data", "tensor")
STATES = ("weights", "gradients", "optimizer")
SENT = ("replicas", "shard", "tensor", "pipeline", "context", "expert")
MEGABYTE = 1e6


def parallelism(settings: Settings) -> Finding:
    """Bytes by layout of both families; they do not depend on the seed, so there is one run."""
    cases = {
        (family, name): Case(family, plan, tuple(settings.overrides))
        for family in (list(SIZES)[:1] if settings.smoke else SIZES)
        for name, plan in PLANS.items()
        if (name in SMOKE or not settings.smoke) and runs(family, name)
    }
    for case in cases.values():
        resolve(case.recipe, None)
    seen = observed(list(cases.values()))
    rows = [
        row
        for ((_, name), case), ranks in zip(cases.items(), seen, strict=True)
        for row in compared(name, case, ranks)
    ]
    return Finding(sentence(rows), rows, lambda figure: draw(figure, rows))


def runs(family: str, name: str) -> bool:
    """Whether a family has what a layout splits."""
    return family == "deepseek_v3" or "expert" not in name


def compared(name: str, case: Case, ranks: list[Seen]) -> Iterator[dict[str, Any]]:
    """What the average rank receives and the fullest rank holds, beside what the planner counts."""
    about = {"family": case.family, "layout": name, "ranks": len(ranks)}
    for kind, value in sent(case).items():
        found = mean(rank.received.get(kind, 0) for rank in ranks)
        yield {**about, **row("received", kind, found, value)}
    for part, value in planned(case).items():
        found = max(rank.activations if part == KEPT else rank.held[part] for rank in ranks)
        yield {**about, **row("held", part, found, value)}


def sent(case: Case) -> dict[str, float]:
    """Bytes that the average rank sends in a step, as a step's time is computed from them, by
    purpose as in `by_purpose`. A layout has one degree above 1, or data and one more.
    """
    layout, times = case.layout, case.micro_batches
    works = place_works(case.config, training(case), layout, running_of(case.recipe.parallel))
    found = {
        "replicas": mean(work.averaged for work in works),
        "shard": mean(times * work.gathered + work.scattered for work in works),
    }
    for dim in ("tensor", "context", "expert", "pipeline"):
        found[dim] = times * mean(work.sent.get(dim, 0) for work in works)
    found["pipeline"] *= others(layout.pipeline)  # the first and the last send one way only
    return {kind: value for kind, value in found.items() if value}


KEPT = "activations"  # of one micro-batch, between its forward and its backward


def row(what: str, kind: str, found: float, value: float) -> dict[str, Any]:
    """A measured figure and a computed one."""
    figures = {"bytes": round(found), "by": "planner", "computed": round(value)}
    return {"what": what, "kind": kind, **figures, "ratio": round(found / value, 4)}


def planned(case: Case) -> dict[str, float]:
    """The planner's bytes on the fullest rank; moments spread by ZeRO-1, which it does not plan."""
    stages = [stage_memory(case, stage) for stage in range(case.layout.pipeline)]
    found = {part: max(getattr(m, part) for m in stages) for part in (*STATES, KEPT)}
    if case.recipe.parallel.zero:
        found["optimizer"] /= case.layout.data
    return found


def stage_memory(case: Case, stage: int) -> Memory:
    """One micro-batch through one stage, as the planner counts it."""
    return training_memory(case.config, training(case), case.layout, stage)


def training(case: Case) -> Training:
    """A rank's rows of one micro-batch, in float32."""
    train = case.recipe.train
    length = case.recipe.data.length // case.layout.context
    run = TrainingPass(train.micro_batch or train.batch, length, 4, blocked=True)
    return Training(run, depth=case.config.multi_token_depth)


def total(
    rows: Iterable[dict[str, Any]], layout: str, what: str, key: str = "bytes", kind: str = ""
) -> float:
    """Megabytes of a layout's states, or of all it receives."""
    chosen = (r for r in rows if r["layout"] == layout and r["kind"] != KEPT)
    fitting = (r for r in chosen if r["what"] == what and kind in ("", r["kind"]))
    return sum(r[key] for r in fitting) / MEGABYTE


def sentence(rows: list[dict[str, Any]]) -> str:
    """A table of megabytes, measured and planned, and how far the two are apart."""
    lines = []
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family]
        lines.append(f"{family + ', MB':<16}held a rank, planned   received a step, planned")
        for layout in dict.fromkeys(row["layout"] for row in mine):
            pairs = (
                f"{total(mine, layout, what):11.2f} {total(mine, layout, what, 'computed'):8.2f}"
                for what in ("held", "received")
            )
            lines.append(f"  {layout:<13}" + "    ".join(pairs))
    apart = max(abs(row["ratio"] - 1) for row in rows)
    return "\n".join([*lines, f"no figure is more than {apart:.1%} from the planner's"])


def draw(figure: Figure, rows: list[dict[str, Any]]) -> None:
    """Stacked bars by layout, a tick at what the planner counts; a row of axes a family."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    axes = figure.subplots(len(families), 2, squeeze=False)
    sides = (("held", STATES, "MB held a rank"), ("received", SENT, "MB received a rank and step"))
    for line, family in zip(axes, families, strict=True):
        mine = [row for row in rows if row["family"] == family]
        for axis, (what, kinds, label) in zip(line, sides, strict=True):
            bars(axis, mine, what, kinds)
            axis.set_title(f"{family}: {label}", fontsize=8, loc="left")
    for axis in axes[-1]:  # the family that sends in every way
        axis.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.45, -0.18), ncols=4)


def bars(axis: Axes, rows: list[dict[str, Any]], what: str, kinds: Iterable[str]) -> None:
    """One bar a layout."""
    layouts = list(dict.fromkeys(row["layout"] for row in rows))[::-1]
    left = [0.0] * len(layouts)
    for color, kind in zip(COLORS, kinds, strict=False):
        values = [total(rows, layout, what, kind=kind) for layout in layouts]
        if any(values):
            axis.barh(layouts, values, 0.6, left, color=color, label=kind.replace("_", "-"))
        left = [start + value for start, value in zip(left, values, strict=True)]
    wanted = [total(rows, layout, what, "computed") for layout in layouts]
    axis.plot(wanted, layouts, "k|", markersize=9, label="planned")
    axis.tick_params(labelsize=7)
    axis.grid(False, axis="y")
