"""`fill`: the likely words of the masked places in a text."""

from __future__ import annotations

from pathlib import Path

import typer

from llamaseek.cli.shared import DEVICE, model_folder

MODEL = typer.Argument(help="The folder of a masked language model.", callback=model_folder)
TEXT = typer.Argument(help='A text with [MASK] for each word to fill in: "The red [MASK] chased".')
TOP = typer.Option(5, min=1, help="How many words to print for each place.")


def fill(model: Path = MODEL, text: str = TEXT, top: int = TOP, device: str = DEVICE) -> None:
    """Print the likely words of each [MASK] in a text, by a masked language model."""
    from llamaseek.engine.open import open_tokenizer
    from llamaseek.engine.uncached import fill as candidates
    from llamaseek.engine.uncached import open_masked

    found = candidates(open_masked(model, device), open_tokenizer(model), text, top)
    for number, place in enumerate(found, 1):
        print(f"[MASK] {number}:" if len(found) > 1 else "[MASK]:")
        for word, share in place:
            print(f"{share:8.1%}  {word.strip() or repr(word)}")
