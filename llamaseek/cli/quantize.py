"""`quantize`: a model folder in fewer bits."""

from __future__ import annotations

from pathlib import Path

import typer

SOURCE = typer.Argument(..., help="A Hugging Face folder, or Meta's with consolidated.*.pth.")
TARGET = typer.Argument(..., help="The folder to make.")
BITS = typer.Option("8", help="8, 4, or fp8 for GPUs.")
GROUP = typer.Option(
    None, help="Inputs that share a scale; 0 is a scale a row. 64 in 4 bits, 0 in 8 unless told."
)
OVERWRITE = typer.Option(False, "--overwrite", help="Replace a folder that exists.")


def quantize(
    source: Path = SOURCE,
    target: Path = TARGET,
    bits: str = BITS,
    group: int = GROUP,
    overwrite: bool = OVERWRITE,
) -> None:
    """Store a model's matrices in fewer bits; generate, chat and serve run what it makes."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from llamaseek.engine.quantize import Quantization

    work = Quantization(source, target, bits, group)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=work.nbytes)
        work.run(overwrite, lambda written: progress.advance(task, written))
    print(f"wrote {target}: {work.nbytes / 1e9:.2f} GB, before {work.before / 1e9:.2f} GB")
