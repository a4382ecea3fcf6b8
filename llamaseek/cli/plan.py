"""`plan`: what a model needs, from its config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from llamaseek.cli.shared import wide_console


def plan(
    model: str = typer.Argument(None, help="The name of a published model, or a model folder."),
    gpu: str = typer.Option(
        ..., help="h100-80gb, h800, h200, a100, b200, l40s, rtx4090, mi300x, cpu."
    ),
    task: str = typer.Option("inference", help="inference, lora, sft or pretrain."),
    dtype: str = typer.Option("bf16", help="fp32, bf16, fp16, fp8, int8 or int4."),
    context: int = typer.Option(None, help="Tokens per row.", show_default="8192 or the model's"),
    batch: int = typer.Option(
        None, help="Batch size: concurrent rows, or rows per training step.", show_default="by task"
    ),
    gpus: int = typer.Option(None, help="Number of GPUs.", show_default="the fewest that fit"),
    params: float = typer.Option(None, help="Number of parameters instead of a model, e.g. 1e12."),
    tokens: float = typer.Option(None, help="Tokens to train on or to generate, e.g. 15.6e12."),
    price: float = typer.Option(None, help="Price of a GPU-hour."),
    utilisation: float = typer.Option(
        None,
        help="Fraction of the peak rate that is reached.",
        show_default="0.4 training, 0.6 inference",
    ),
    checkpointing: str = typer.Option("full", help="Activation checkpointing: full or none."),
    json: bool = typer.Option(False, "--json", help="Print JSON."),
    plot: Path = typer.Option(
        None, "--plot", help="Plot memory per GPU against the number of GPUs to this file."
    ),
) -> None:
    """Estimate memory, GPUs, layout, speed and cost of a model from its config."""
    from llamaseek.plan.answer import answer
    from llamaseek.plan.question import ask

    question = ask(
        model,
        gpu,
        task,
        dtype,
        context,
        batch,
        gpus,
        params,
        tokens,
        price,
        utilisation,
        checkpointing,
    )
    found = answer(question)
    if plot is not None:
        from llamaseek.plan.plot import draw

        draw(question, found, plot)
    if json:
        import json as encoder

        print(encoder.dumps(found, indent=2, ensure_ascii=False))
        return
    _print(found)
    if plot is not None:
        print(f"wrote {plot}")


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
    facts = Table.grid(padding=(0, 2))
    for label, value in lines(found):
        facts.add_row(label, value)
    console.print(facts)
