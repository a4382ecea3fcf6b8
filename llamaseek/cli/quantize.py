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
    from llamaseek.cli.progress import bytes_bar
    from llamaseek.engine.quantize import Quantization
    from llamaseek.plan.text import size

    work = Quantization(source, target, bits, group)
    with bytes_bar(work.nbytes) as written:
        work.run(overwrite, written)
    print(f"wrote {target}: {size(work.nbytes)}, before {size(work.before)}")
