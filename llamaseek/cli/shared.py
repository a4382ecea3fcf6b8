"""A console for tables whose names and numbers must stay whole."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamaseek.errors import bad_value, quoted
from llamaseek.runtime.world import is_first_rank

if TYPE_CHECKING:
    from rich.console import Console

    from llamaseek.text.tokenizer import Tokenizer

PIPED = 100  # columns where no terminal says how many


def wide_console() -> Console:
    """The terminal's width, or in a pipe or a file enough for every table of ours."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPED)
    return console


def read_stdin() -> str:
    """All of standard input; in a terminal a prompt says that input is expected."""
    if sys.stdin.isatty():
        print("reading standard input; Ctrl-D at the start of a line ends it", file=sys.stderr)
    return sys.stdin.read()


@contextmanager
def bytes_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of bytes written out of `total`, with speed and remaining time."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda written: bar.advance(task, written)


def say_started(text: str) -> None:
    """Say on a terminal what begins: PyTorch takes seconds to load, and nothing else shows."""
    if sys.stderr.isatty() and is_first_rank():
        print(text, file=sys.stderr)


def program() -> str:
    """`llamaseek` if that is this program on the path, else the path it was started by."""
    started = Path(sys.argv[0])
    found = shutil.which("llamaseek")
    if started.name != "llamaseek" or (found and Path(found).resolve() == started.resolve()):
        return "llamaseek"
    near = os.path.relpath(started)
    return near if len(near) < len(str(started)) else str(started)


def this_command(extra: str = "") -> str:
    """The command as it was typed, with `extra` added if it is missing."""
    words = [*sys.argv[1:], extra] if extra and extra not in sys.argv else sys.argv[1:]
    return quoted(program(), *words)


DEVICE = typer.Option("auto", help="cpu, cuda or cuda:1; auto uses the GPU if there is one.")

CHAT_TEMPLATE = typer.Option(
    None, help="Chat template to use instead of the model's: llama3, chatml or a jinja file."
)
TEMPLATE_KWARGS = typer.Option(
    None,
    "--chat-template-kwargs",
    metavar="JSON",
    help="JSON object of variables for the chat template, e.g. '{\"thinking\": true}'.",
)


def load_tokenizer(folder: Path, chat_template: str | None, kwargs: str | None) -> Tokenizer:
    """A folder's tokenizer with the template and the values that a command asks for."""
    from llamaseek.engine.open import open_tokenizer

    try:
        values = json.loads(kwargs or "{}")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise bad_value("--chat-template-kwargs", kwargs, "a JSON object")
    return open_tokenizer(folder).use_chat_template(chat_template, values)


MODEL_NAMES = (
    "A model folder, a .gguf file, the name of a published model, or a Hub id "
    "OWNER/NAME\\[@REVISION][:FILE.gguf]."
)


def model_folder(path: Path | None) -> Path | None:
    """The model folder or GGUF file that was given, by path or by a name, which is fetched.

    UserError as `find_source` raises it.
    """
    if path is not None:
        from llamaseek.checkpoints.sources import find_source

        return find_source(path)
    return path


def checkpoint_folder(path: Path) -> Path:
    """The same where what exists is for its reader to judge, as Meta's folders are."""
    from llamaseek.checkpoints.sources import find_source

    return path if path.exists() else find_source(path)


def checkpoint_folders(paths: list[Path]) -> list[Path]:
    """The same for several."""
    return [checkpoint_folder(path) for path in paths]


def model_or_adapter(path: Path | None) -> Path | None:
    """The same where the folder of a LoRA adapter, which names its base, will do as well."""
    if path is not None:
        from llamaseek.checkpoints.sources import find_source

        return find_source(path, adapters=True)
    return path


def tokenizer_folder(path: Path) -> Path:
    """The same for a tokenizer: of a model on the Hub its tokenizer's files alone are fetched; a
    folder here need not hold a model.
    """
    from llamaseek.checkpoints.sources import find_source

    return path if path.exists() else find_source(path, need="tokenizer")
