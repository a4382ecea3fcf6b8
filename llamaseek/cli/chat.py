"""`chat`: talk to a model in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamaseek.cli.shared import (
    CHAT_TEMPLATE,
    DEVICE,
    MODEL_NAMES,
    TEMPLATE_KWARGS,
    load_tokenizer,
    model_folder,
    model_or_adapter,
)
from llamaseek.errors import UserError

if TYPE_CHECKING:
    from llamaseek.cli.conversation import ChatSession

MODEL = typer.Argument(help=MODEL_NAMES, callback=model_or_adapter)
SYSTEM = typer.Option("", help="The system message.")
TEMPERATURE = typer.Option(0.0, help="Sampling temperature; 0 is greedy decoding.")
TOP_P = typer.Option(1.0, help="Nucleus sampling: keep the most probable tokens up to this total.")
MAX_TOKENS = typer.Option(256, help="Maximum number of tokens of an answer.")
STOP = typer.Option([], help="Stop before this text; can be given several times.")
SEED = typer.Option(0, help="Random seed for temperatures above 0.")
GUARD = typer.Option(
    None,
    help="A guard model that checks messages and answers; a folder or name as MODEL.",
    callback=model_folder,
)
HISTORY = Path.home() / ".llamaseek_history"


def chat(
    model: Path = MODEL,
    system: str = SYSTEM,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    max_tokens: int = MAX_TOKENS,
    stop: list[str] = STOP,
    seed: int = SEED,
    guard: Path = GUARD,
    device: str = DEVICE,
    chat_template: str = CHAT_TEMPLATE,
    chat_template_kwargs: str = TEMPLATE_KWARGS,
) -> None:
    """Chat with a model in the terminal; /help lists the commands."""
    from llamaseek.cli.conversation import ChatSession
    from llamaseek.engine.engine import Engine
    from llamaseek.engine.open import open_model
    from llamaseek.engine.options import EngineOptions
    from llamaseek.engine.request import SamplingParams
    from llamaseek.runtime.device import pick_device
    from llamaseek.safety.guard import load_guard

    sampling = SamplingParams(
        temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed, stop=stop
    )
    tokenizer = load_tokenizer(model, chat_template, chat_template_kwargs)
    place = pick_device(device, "--device")
    engine = Engine(open_model(model, device=place), tokenizer, EngineOptions(max_num_seqs=1))
    talk = ChatSession(engine, tokenizer, sampling, system)
    talk.guard = load_guard(guard, device=place) if guard else None
    if sys.stdin.isatty():
        print(f"{model}  ·  /help for commands, Ctrl-D to leave")
    run(talk, reader())


def reader() -> Callable[[], str]:
    """Reads one message: an editor with history in a terminal, a plain line from a pipe."""
    if not sys.stdin.isatty():
        return input
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: object) -> None:
        event.current_buffer.insert_text("\n")  # type: ignore[attr-defined]

    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(HISTORY)), key_bindings=keys
    )
    return lambda: session.prompt("> ", prompt_continuation="  ")


def run(talk: ChatSession, read: Callable[[], str]) -> None:
    """Read, answer, until the user leaves."""
    from llamaseek.cli.conversation import Quit

    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            continue
        try:
            if line:
                respond(talk, line)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except Quit:
            return


def respond(talk: ChatSession, line: str) -> None:
    """A command, or a message to answer."""
    if not line.startswith("/"):
        say(talk.ask(line))
        return
    shown = talk.command(line)
    if shown is None:
        say(talk.answer())
    else:
        print(shown)


def say(pieces: Iterator[str]) -> None:
    """Print an answer as it comes, then its speed; Ctrl-C ends it, and so does the guard."""
    from llamaseek.safety.stream import Refused

    start, count = time.perf_counter(), 0
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            count += 1
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
        print(" …", end="")
    except Refused as refused:
        print(f"\n[{refused}]" if count else f"[{refused}]")
        return
    rate = count / max(time.perf_counter() - start, 1e-9)
    if sys.stdout.isatty():
        print(f"\n\033[2m{count} tokens, {rate:.0f} a second\033[0m")
    else:
        print()
