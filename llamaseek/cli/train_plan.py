"""`train-plan`: memory, communication and time of each rank of a recipe's layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llamaseek.cli.shared import wide_console
from llamaseek.cli.train import OVERRIDES, RECIPE
from llamaseek.units import GIGA, figures

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

GPU = typer.Option("h100-80gb", help="The accelerator whose memory and rates are used.")
DTYPE = typer.Option(
    None,
    help="Dtype of matrix products: bf16 or fp8.",
    show_default="fp8 with train.float8, else bf16",
)
JSON = typer.Option(False, "--json", help="Print JSON.")
DRAW = typer.Option(None, "--draw", help="Draw the mesh and the tensors of one layer to this file.")
NUMBERS = 65  # columns of a terminal that a table's numbers take
WIDEST, NARROWEST = 35, 12  # of what stands before them
PARTS = ("weights", "gradients", "optimizer", "gathered", "activations", "total")
TIMES = {
    "idle_seconds": "idle in the pipeline",
    "exposed_seconds": "gradients and weights sent",
    "optimizer_seconds": "optimizer",
}


def train_plan(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    gpu: str = GPU,
    dtype: str = DTYPE,
    json: bool = JSON,
    draw: Path = DRAW,
) -> None:
    """Estimate memory, communication and time of a training step, rank by rank."""
    from llamaseek.checkpoints.sources import with_sources_found
    from llamaseek.errors import bad_value
    from llamaseek.plan.gpus import find_gpu
    from llamaseek.recipe.load import load_recipe
    from llamaseek.recipe.reading import find_recipe

    if dtype not in (None, "bf16", "fp8"):
        raise bad_value("dtype", dtype, "bf16 or fp8")
    chosen = find_gpu(gpu)
    named = load_recipe(find_recipe(recipe), overrides or [])
    loaded = with_sources_found(named, "config")
    dtype = dtype or ("bf16" if loaded.train.float8 == "none" else "fp8")
    chosen.peak(dtype)
    if draw is not None:
        from llamaseek.dry_run.draw import draw_layout
        from llamaseek.pictures import check_format

        check_format("draw", draw)
    from llamaseek.dry_run.answer import plan_training

    planned = plan_training(loaded, chosen, dtype)
    if draw is not None:
        draw_layout(planned.setting, planned.reports, draw)
    if json:
        import json as encoder

        print(encoder.dumps(planned.answer, indent=2))
        return
    show(planned.answer)
    if draw is not None:
        print(f"wrote {draw}")


def show(answer: dict[str, Any]) -> None:
    """Print memory and micro-batch time of a rank of each kind, and the step's time."""
    console = wide_console()
    room = max(NARROWEST, min(WIDEST, console.width - NUMBERS))
    layout = answer["layout"]
    wide = [f"{name} {size}" for name, size in layout.items() if size > 1 and name != "expert"]
    degrees = " × ".join(wide) or "one rank"
    degrees += f", expert {layout['expert']}" if layout["expert"] > 1 else ""
    console.print(f"{answer['recipe']} on {answer['ranks']:,} × {answer['gpu']}: {degrees}\n")
    ranks = answer["per_rank"]
    rows = [[*(row["bytes"][name] / GIGA for name in PARTS)] for row in ranks]
    by = ", by place" if layout["pipeline"] > 1 else ""
    console.print(table(f"GB a rank{by}", PARTS, ranks, rows, room), "")
    times = [[seconds * 1e3 for seconds in row["micro_batch_seconds"].values()] for row in ranks]
    rows = [[*row, sum(row)] for row in times]
    columns = (*ranks[0]["micro_batch_seconds"], "total")
    console.print(table("ms a micro-batch", columns, ranks, rows, room), "")
    names = tuple(dict.fromkeys(name for row in ranks for name in row["sent_bytes"]))
    if names:
        sent = [[row["sent_bytes"].get(name, 0) / GIGA for name in names] for row in ranks]
        console.print(table("GB a rank sends a step", names, ranks, sent, room), "")
    facts(console, answer)


def table(
    title: str,
    columns: tuple[str, ...],
    ranks: list[dict[str, Any]],
    rows: list[list[float]],
    room: int,
) -> Table:
    """One number a column for each kind of rank, after `room` columns that say which."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column(title, min_width=room)
    for name in columns:
        made.add_column(name, justify="right", min_width=7)
    for rank, row in zip(ranks, rows, strict=True):
        cells = ("< 0.001" if 0 < number < 1e-3 else figures(number) for number in row)
        made.add_row(holds(rank, len(ranks) == 1), *cells)
    return made


def holds(rank: dict[str, Any], alone: bool) -> str:
    """What a rank has, and its pipeline places: `1–14: layers 4–7`."""
    layers = [layer for part in rank["layers"] for layer in part]
    apart = len(layers) > 2 and layers[-1] - layers[0] >= len(layers)
    within = f"{layers[0]}, {layers[1]}, … {layers[-1]}" if apart else span(layers)
    ends = [end for end in ("embedding", "head") if rank[end]]
    name = "layer" if len(layers) == 1 else "layers"
    what = ", ".join([*ends, f"{name} {within}"] if layers else ends)
    return what if alone else f"{span(rank['places'])}: {what}"


def span(numbers: list[int]) -> str:
    """Numbers as ranges: `0–3, 7`."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(f"{a}–{b}" if b > a else str(a) for a, b in pairs)


def facts(console: Console, answer: dict[str, Any]) -> None:
    """The step, its speed, and whether it fits."""
    slowest = max(sum(row["micro_batch_seconds"].values()) for row in answer["per_rank"])
    count = answer["micro_batches"]
    name = "micro-batches" if count > 1 else "micro-batch"
    parts = [f"{count} {name} of {figures(slowest * 1e3)} ms"]
    for name, what in TIMES.items():
        if answer[name] > 1e-3 * answer["step_seconds"]:
            parts.append(f"{what} {figures(answer[name])} s")
    hidden = answer["utilization_with_sends_hidden"]
    fits = "fits" if answer["fits"] else "does not fit"
    most = max(row["bytes"]["total"] for row in answer["per_rank"]) / GIGA
    lines = {
        "step": f"{figures(answer['step_seconds'])} s: {', '.join(parts)}",
        "speed": f"{answer['tokens_per_second']:,.0f} tokens/s",
        "utilization": f"{answer['utilization']:.1%} of the {answer['dtype']} peak; "
        f"{hidden:.1%} if a micro-batch's sends were hidden",
        "memory": f"{figures(most)} GB at most: {fits} {answer['gpu_memory_bytes'] / GIGA:.0f} GB",
    }
    host = answer["host"]
    begun, saved = (figures(host[name] / GIGA) for name in ("start_bytes", "save_bytes"))
    lines["host memory"] = f"{begun} GB at the start, {saved} GB at a checkpoint: "
    lines["host memory"] += f"{host['ranks']} ranks" if host["ranks"] > 1 else "one rank"
    for name, text in lines.items():
        console.print(f"{name:13}{text}", soft_wrap=True)
