"""`convert`: any checkpoint that we read, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import typer

DTYPES = ("keep", "bfloat16", "float16", "float32")
SOURCE = typer.Argument(..., help="A Hugging Face folder, or Meta's with consolidated.*.pth.")
TARGET = typer.Argument(..., help="The folder to make.")
DTYPE = typer.Option("keep", help=f"{', '.join(DTYPES)}; keep leaves fp8 blocks as they are.")
ADAPTER = typer.Option(None, help="A PEFT folder whose LoRA is folded into the weights.")
SHARD = typer.Option(5.0, help="The largest file, in GB.")
OVERWRITE = typer.Option(False, "--overwrite", help="Replace a folder that exists.")


def convert(
    source: Path = SOURCE,
    target: Path = TARGET,
    dtype: str = DTYPE,
    adapter: Path = ADAPTER,
    shard_gb: float = SHARD,
    overwrite: bool = OVERWRITE,
) -> None:
    """Rewrite a checkpoint in another format, dtype or shard size, or with an adapter merged."""
    from llamaseek.errors import bad_value

    if dtype not in DTYPES:
        raise bad_value("--dtype", dtype, ", ".join(DTYPES))
    if not 0 < shard_gb < float("inf"):
        raise bad_value("--shard-gb", shard_gb, "a number above 0")

    import torch

    from llamaseek.cli.progress import bytes_bar
    from llamaseek.models.convert import Conversion
    from llamaseek.plan.text import size

    kind = None if dtype == "keep" else getattr(torch, dtype)
    conversion = Conversion(source, target, kind, adapter, int(shard_gb * 1e9))
    with bytes_bar(conversion.nbytes) as written:
        conversion.run(overwrite, written)
    print(f"wrote {target}: {len(conversion.tensors):,} tensors, {size(conversion.nbytes)}")
