"""`tokenize`: the lecture's table of tokens and ids."""

from __future__ import annotations

from pathlib import Path

import typer

from llamaseek.cli.stdin import read_stdin

TOKENIZER = typer.Option(..., "--tokenizer", "-t", help="A model or tokenizer folder.")
CHAT = typer.Option(False, "--chat", help="Show the text as a user's message in the chat format.")
PLAIN = typer.Option(False, "--no-special", help="Special tokens in the text are plain text.")
IDS = typer.Option(False, "--ids", help="Print only the ids, on one line.")


def tokenize(
    text: str = typer.Argument("-", help="The text; - reads standard input."),
    tokenizer: Path = TOKENIZER,
    chat: bool = CHAT,
    no_special: bool = PLAIN,
    ids: bool = IDS,
) -> None:
    """Print each token of a text beside its id."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from llamaseek.text.chat import encode_chat
    from llamaseek.text.table import id_table, token_table
    from llamaseek.text.tokenizer import Tokenizer

    loaded = Tokenizer.load(tokenizer)
    if text == "-":
        text = read_stdin()
    if chat:
        message = {"role": "user", "content": text}
        rows = id_table(loaded, encode_chat(loaded, [message], add_generation_prompt=True).ids)
    else:
        rows = token_table(loaded, text, special=not no_special)
    if ids:
        print(*(number for _, number in rows))
        return
    table = Table("", "token", "id", title=f"{len(rows)} tokens", title_justify="left")
    table.columns[0].justify = table.columns[2].justify = "right"
    for place, (piece, number) in enumerate(rows):
        table.add_row(str(place), Text(piece), str(number))
    Console().print(table)
