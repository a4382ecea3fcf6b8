"""`guard`: whether a message, or a conversation's last turn, is safe."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llamaseek.cli.shared import DEVICE, MODEL_NAMES, model_folder, read_stdin
from llamaseek.errors import UserError, bad_value, shorten

if TYPE_CHECKING:
    from llamaseek.safety.guard import Guard
    from llamaseek.text.guard_prompt import Category

MODEL = typer.Argument(help=f"A guard model. {MODEL_NAMES}", callback=model_folder)
MESSAGE = typer.Argument(
    "-", help="The user's message; - reads it, or a conversation in JSON, from standard input."
)
CONVERSATION = typer.Option(
    None, help="A JSON file: a list of messages, or an object with the key messages."
)
ANSWER = typer.Option(None, help="Judge this answer to the message instead of the message.")
DROP = typer.Option([], help="Remove a category, e.g. S13; can be given several times.")
CATEGORIES = typer.Option(
    None, help='A JSON file with your own categories: {"S1": "Violent Crimes", …}.'
)
JSON = typer.Option(False, "--json", help="Print the verdict as JSON.")
HELD_OUT = typer.Option(
    None, "--held-out", help="Evaluate the guard on this many generated conversations instead."
)


def guard(
    model: Path = MODEL,
    message: str = MESSAGE,
    conversation: Path = CONVERSATION,
    answer: str = ANSWER,
    drop: list[str] = DROP,
    categories: Path = CATEGORIES,
    as_json: bool = JSON,
    held_out: int | None = HELD_OUT,
    device: str = DEVICE,
) -> None:
    """Classify a conversation's last turn with a Llama Guard model; exit code 1 is unsafe."""
    if held_out is not None and held_out < 1:
        raise bad_value("--held-out", held_out, "a number of at least 1")
    chosen = policy(categories, drop)
    messages = [] if held_out else read_conversation(message, conversation, answer)

    from llamaseek.runtime.device import pick_device
    from llamaseek.safety.guard import load_guard
    from llamaseek.safety.verdict import GuardError
    from llamaseek.text.guard_prompt import guard_prompt

    if messages:
        guard_prompt(messages, chosen)  # what is wrong with them is said before a model is read
    loaded = load_guard(model, chosen, pick_device(device, "--device"))
    if held_out:
        show_score(loaded, held_out, as_json)
        return
    try:
        verdict = loaded.check(messages)
    except GuardError as error:
        raise UserError(f"{model}: the guard gave no verdict: {error}") from None
    shown = json.dumps(verdict.as_json()) if as_json else verdict.summary
    print(shown if as_json else f"{shown}   (probability of unsafe {verdict.probability:.1%})")
    sys.exit(0 if verdict.safe else 1)


def policy(file: Path | None, dropped: list[str]) -> tuple[Category, ...]:
    """The published categories or those of a file, without the dropped ones."""
    from llamaseek.text.guard_prompt import PUBLISHED, read_categories, without

    known = read_categories(read_json(file.read_text, str(file))) if file else PUBLISHED
    kept = without(known, dropped)
    if not kept:
        raise UserError("--drop: removes every category; at least one is needed")
    return kept


def read_conversation(message: str, file: Path | None, answer: str | None) -> list[dict[str, Any]]:
    """The messages to judge, from a file, standard input or the command line.

    UserError where they are given twice, and for a text of nothing, as a broken pipe would be: a
    guard finds it safe.
    """
    if file is not None:
        if message != "-":
            raise UserError("message: give either a message or --conversation")
        messages = listed(read_json(file.read_text, str(file)), str(file))
    else:
        text = read_stdin().rstrip("\n") if message == "-" else message
        if message == "-" and text.lstrip()[:1] in ("[", "{"):
            messages = listed(read_json(lambda: text, "stdin"), "stdin")
        else:
            messages = [as_message("user", text, "message")]
    return messages if answer is None else [*messages, as_message("assistant", answer, "--answer")]


def as_message(role: str, text: str, field: str) -> dict[str, Any]:
    """A user's message; UserError if it is blank."""
    if not text.strip():
        raise bad_value(field, text, "a text that is not blank")
    return {"role": role, "content": text}


def listed(data: Any, where: str) -> list[dict[str, Any]]:
    """The list of messages of a parsed file."""
    messages = data.get("messages") if isinstance(data, dict) else data
    if not isinstance(messages, list) or not messages:
        raise UserError(
            f"{where}: is neither a list of messages nor an object with the key messages"
        )
    return messages


def read_json(read: Any, where: str) -> Any:
    """Parse a JSON file; raises UserError with its name if it cannot be read."""
    try:
        return json.loads(read())
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({shorten(str(error))})") from None


def show_score(guard: Guard, count: int, as_json: bool) -> None:
    """Print the guard's accuracy on held-out conversations, each with its own policy."""
    from dataclasses import asdict

    from llamaseek.evals.guard import held_out, score_guard

    score = score_guard(guard, held_out(count))
    if as_json:
        print(json.dumps(asdict(score)))
        return
    shares = {
        "verdict right": score.verdicts,
        "verdict and categories right": score.exact,
        "dropped category left unflagged": score.dropped,
        "false alarms on safe turns": score.alarms,
    }
    print(f"{'held-out conversations':<32}{score.items}")
    for label, share in shares.items():
        print(f"{label:<32}" + (f"{share:.1%}" if share is not None else "no examples"))
