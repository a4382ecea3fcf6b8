"""`train-plan`: what every rank of a recipe's layout would hold, send and take, without ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llamaseek.cli.train import OVERRIDES, RECIPE

if TYPE_CHECKING:
    from llamaseek.parallel.dry_run import Report
    from llamaseek.parallel.estimate import Estimate

GPU = typer.Option("h100-80gb", help="The accelerator whose memory and rates are taken.")
DTYPE = typer.Option("bf16", help="What matrix products run in: bf16 or fp8.")
JSON = typer.Option(False, "--json", help="Print JSON, for programs.")
DRAW = typer.Option(None, "--draw", help="Draw the mesh and one layer's tensors into this file.")
GIGA = 1e9


def train_plan(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    gpu: str = GPU,
    dtype: str = DTYPE,
    json: bool = JSON,
    draw: Path = DRAW,
) -> None:
    """Build a rank of each kind on fake tensors: memory, sends and seconds of a training step."""
    from llamaseek.errors import bad_value
    from llamaseek.plan.gpus import find_gpu
    from llamaseek.recipe import load_recipe
    from llamaseek.recipe_files import find_recipe

    if dtype not in ("bf16", "fp8"):
        raise bad_value("dtype", dtype, "bf16 or fp8")
    chosen = find_gpu(gpu)
    chosen.peak(dtype)
    loaded = load_recipe(find_recipe(recipe), overrides or [])

    from llamaseek.parallel.answer import plan_training, setting_of

    reports, found, answer = plan_training(loaded, chosen, dtype)
    if draw is not None:
        from llamaseek.parallel.draw import draw_layout

        draw_layout(setting_of(loaded), reports, draw)
    if json:
        import json as encoder

        print(encoder.dumps(answer, indent=2))
        return
    show(answer, reports, found)
    if draw is not None:
        print(f"wrote {draw}")


def show(answer: dict[str, Any], reports: list[Report], found: Estimate) -> None:
    """A row a kind of rank, then the step."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    degrees = " × ".join(f"{name} {size}" for name, size in answer["layout"].items() if size > 1)
    console.print(f"{answer['ranks']:,} × {answer['gpu']}: {degrees or 'one rank'}\n")
    names = ("rank", "layers", "weights", "gradients", "optimizer", "gathered", "activations")
    table = Table(*names, "total", "sends a step", box=None, padding=(0, 2, 0, 0))
    for report, row in zip(reports, answer["per_rank"], strict=True):
        sizes = [row["bytes"][key] / GIGA for key in (*names[2:], "total")]
        sent = ", ".join(f"{name} {size / GIGA:.1f}" for name, size in row["sent_bytes"].items())
        layers = ", ".join(span(part.layers) for part in report.parts)
        table.add_row(f"{report.rank:,}", layers, *(f"{size:.2f}" for size in sizes), sent or "–")
    console.print(table)
    slot = found.slot
    console.print("\nsizes in GB")
    console.print(
        f"step      {found.seconds:.2f} s: micro-batches of {slot.seconds * 1e3:,.0f} ms "
        f"(products {slot.products * 1e3:,.0f}, attention {slot.attention * 1e3:,.0f}, "
        f"memory {slot.memory * 1e3:,.0f}, sends {slot.sends * 1e3:,.0f}), "
        f"idle {found.bubble:.2f} s, unhidden sends {found.beside:.2f} s, "
        f"optimizer {found.optimizer:.3f} s",
        soft_wrap=True,
    )
    console.print(f"speed     {found.tokens_per_second:,.0f} tokens/s")
    console.print(f"of peak   {found.utilisation:.1%} ({answer['dtype']})")
    verdict = "fits" if answer["fits"] else "does not fit"
    console.print(f"memory    {verdict} {answer['gpu_memory_bytes'] / GIGA:.0f} GB")


def span(layers: list[int]) -> str:
    """Layer numbers as a range."""
    if not layers:
        return "none"
    return f"{layers[0]}–{layers[-1]}" if len(layers) > 1 else str(layers[0])
