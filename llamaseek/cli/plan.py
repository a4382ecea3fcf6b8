"""`plan`: estimate memory, speed and cost of a model from its config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from llamaseek.cli.shared import MODEL_NAMES, wide_console
from llamaseek.errors import UserError

WORDS = typer.Argument(
    None,
    metavar="[MODEL | KEY=VALUE…]",
    help=f"{MODEL_NAMES} Overrides with --recipe.",
)
GPU = typer.Option(..., help="h100-80gb, h800, h200, a100, b200, l40s, rtx4090, mi300x, cpu.")
TASK = typer.Option(None, help="inference, lora, sft or pretrain.", show_default="inference")
DTYPE = typer.Option(
    None,
    help="fp32, bf16, fp16, fp8, int8 or int4.",
    show_default="as stored, or what a recipe trains in; else bf16",
)
CONTEXT = typer.Option(None, help="Tokens per row.", show_default="8192 or the model's")
BATCH = typer.Option(
    None, help="Batch size: concurrent rows, or rows per training step.", show_default="by task"
)
RECIPE = typer.Option(None, help="Plan the layout of this recipe: a bundled name or a YAML file.")
GPUS = typer.Option(None, help="Number of GPUs.", show_default="the fewest that fit")
PARAMS = typer.Option(None, help="Number of parameters instead of a model, e.g. 1e12.")
TOKENS = typer.Option(None, help="Tokens to train on or to generate, e.g. 15.6e12.")
PRICE = typer.Option(None, help="Price of a GPU-hour.")
UTILIZATION = typer.Option(
    None,
    help="Fraction of the peak rate that is reached.",
    show_default="counted in training, 0.6 in inference",
)
CHECKPOINTING = typer.Option(
    None, help="Activation checkpointing: full, selective or none.", show_default="full"
)
JSON = typer.Option(False, "--json", help="Print JSON.")
PLOT = typer.Option(
    None, "--plot", help="Plot memory per GPU against the number of GPUs to this file."
)


def plan(
    words: list[str] = WORDS,
    gpu: str = GPU,
    task: str = TASK,
    dtype: str = DTYPE,
    context: int = CONTEXT,
    batch: int = BATCH,
    recipe: str = RECIPE,
    gpus: int = GPUS,
    params: float = PARAMS,
    tokens: float = TOKENS,
    price: float = PRICE,
    utilization: float = UTILIZATION,
    checkpointing: str = CHECKPOINTING,
    json: bool = JSON,
    plot: Path = PLOT,
) -> None:
    """Estimate memory, GPUs, layout, speed and cost of a model, or of a recipe's own layout."""
    options: dict[str, Any] = {
        "task": task,
        "context": context,
        "batch": batch,
        "gpus": gpus,
        "params": params,
        "tokens": tokens,
        "price": price,
        "utilization": utilization,
        "checkpointing": checkpointing,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if recipe is not None:
        _plan_recipe(recipe, words or [], gpu, dtype, [*given, *(["plot"] if plot else [])], json)
        return
    from llamaseek import api

    model, given = _model(words or []), given | {"dtype": dtype}
    found = api.plan(model, gpu=gpu, **given)
    if plot is not None:
        from llamaseek.checkpoints.sources import find_entry
        from llamaseek.plan.plot import draw
        from llamaseek.plan.question import ask

        draw(ask(model and find_entry(model), gpu, **given), found, plot)
    if json:
        _print_json(found)
        return
    _print(found)
    if plot is not None:
        print(f"wrote {plot}")


def _model(words: list[str]) -> str | None:
    """The one model that is named, if any."""
    if len(words) > 1:
        allowed = "one name or folder, and KEY=VALUE only beside --recipe"
        raise UserError(f"model {' '.join(words)!r}: allowed: {allowed}")
    return words[0] if words else None


def _plan_recipe(
    name: str, overrides: list[str], gpu: str, dtype: str | None, given: list[str], json: bool
) -> None:
    """Plan a recipe's own layout. Its fields say what other options would."""
    from llamaseek.checkpoints.sources import with_sources_found
    from llamaseek.plan.gpus import find_gpu
    from llamaseek.plan.recipe import check_dtype, recipe_answer
    from llamaseek.recipe.load import load_recipe
    from llamaseek.recipe.reading import find_recipe
    from llamaseek.runtime.check import model_config, resolve

    if given:
        raise UserError(f"--{given[0]}: is not for --recipe; allowed: overrides (KEY=VALUE)")
    chosen = find_gpu(gpu)
    check_dtype(dtype, chosen)
    named = load_recipe(find_recipe(name), overrides)
    loaded = resolve(with_sources_found(named, "config"), None)
    found = recipe_answer(loaded, model_config(loaded), chosen, dtype)
    if json:
        _print_json(found)
    else:
        _print_recipe(found)


def _print_json(found: dict[str, Any]) -> None:
    import json as encoder

    print(encoder.dumps(found, indent=2, ensure_ascii=False))


def _print_recipe(found: dict[str, Any]) -> None:
    from rich.table import Table

    from llamaseek.plan.text import PARTS, recipe_lines
    from llamaseek.units import size

    console = wide_console()
    console.print(f"[bold]{found['recipe']} on {found['gpus']:,} × {found['gpu']}[/]\n")
    table = Table("bytes a GPU", box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right", min_width=12)
    held = found["bytes_per_gpu"]
    for part, label in PARTS.items():
        if held[part]:
            table.add_row(label, size(held[part]), style="bold" if part == "total" else None)
    console.print(table)
    console.print()
    _print_facts(recipe_lines(found))


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table

    from llamaseek.plan.text import byte_rows, lines, title

    console = wide_console()
    console.print(f"[bold]{title(found)}[/]\n")
    table = Table("", box=None, pad_edge=False, header_style="bold")
    table.add_column("unsplit", justify="right", min_width=12)
    table.add_column(f"on each of {found['gpus']:,}", justify="right", min_width=14)
    *parts, total = byte_rows(found)
    for row in parts:
        table.add_row(*row)
    table.add_row(*total, style="bold")
    console.print(table)
    console.print()
    _print_facts(lines(found))


def _print_facts(found: list[tuple[str, str]]) -> None:
    """Labels and values, one a line."""
    from rich.table import Table

    facts = Table.grid(padding=(0, 2))
    for label, value in found:
        facts.add_row(label, value)
    wide_console().print(facts)
