"""Llama 3's chat formats, as pieces.

A turn is `<|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>`. What the releases add,
and where their published sources differ, is in VARIANTS and in `docs/chat-formats.md`.
Sources: `ChatFormat` and the prompt formats of meta-llama/llama-models; the chat templates of
the checkpoints on Hugging Face.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from llamaseek.errors import UserError
from llamaseek.text.llama3_calls import (
    ChatOptions,
    hf_tools,
    meta_tools,
    write_built_in,
    write_calls,
)
from llamaseek.text.messages import ROLES, Turn
from llamaseek.text.pieces import ANSWER, END, Piece, control
from llamaseek.text.special import (
    BEGIN_OF_TEXT,
    BUILT_IN_TOOLS,
    END_HEADER,
    END_OF_MESSAGE,
    END_OF_TURN,
    PYTHON_TAG,
    START_HEADER,
)

IPYTHON = "Environment: ipython"
"""The first line of a system message that turns the code interpreter on."""


@dataclass(frozen=True)
class Variant:
    """One published source of the format.

    `trimmed` roles lose blanks around their content. `date`, where it is there, is the date of
    the lines that begin every conversation. `meta` writes tools and calls as llama-models does,
    else as the templates on Hugging Face.
    """

    trimmed: frozenset[str]
    date: Callable[[], str] | None = None
    meta: bool = False


def today() -> str:
    """Today as Llama 3.2's template writes it."""
    return date.today().strftime("%d %b %Y")


SPOKEN = frozenset({"system", "user", "assistant"})

VARIANTS = {
    "llama3": Variant(frozenset(ROLES)),
    "llama3.1": Variant(SPOKEN, lambda: "26 Jul 2024"),
    "llama3.2": Variant(SPOKEN, today),
    "llama3-meta": Variant(frozenset(), meta=True),
}


def llama3_pieces(
    turns: Sequence[Turn],
    tools: Sequence[Mapping[str, Any]],
    options: ChatOptions,
    variant: Variant,
    add_generation_prompt: bool,
) -> list[Piece]:
    """The conversation as pieces.

    Raises UserError for what the variant cannot say: several calls in one tag, tools
    for a user message that is not there.
    """
    trimmed = [_trim(turn, variant) for turn in turns]
    opened = (_meta_opening if variant.meta else _hf_opening)(trimmed, tools, options, variant)
    runs_code = options.built_in_tools is not None or _names_ipython(trimmed)
    pieces = [control(BEGIN_OF_TEXT)]
    for turn in opened:
        pieces += _turn(turn, options, variant, runs_code)
    return pieces + (_header("assistant") if add_generation_prompt else [])


def _trim(turn: Turn, variant: Variant) -> Turn:
    return replace(turn, content=turn.content.strip()) if turn.role in variant.trimmed else turn


def _names_ipython(turns: Sequence[Turn]) -> bool:
    return turns[0].role == "system" and turns[0].content.startswith(IPYTHON)


def _header(role: str) -> list[Piece]:
    name = "ipython" if role == "tool" else role
    return [control(START_HEADER), Piece(name), control(END_HEADER), Piece("\n\n")]


def _turn(turn: Turn, options: ChatOptions, variant: Variant, runs_code: bool) -> list[Piece]:
    if turn.role != "assistant":
        return [*_header(turn.role), Piece(turn.content), control(END_OF_TURN)]
    end = END_OF_MESSAGE if turn.calls and runs_code else END_OF_TURN
    content = _content(turn, options, variant, runs_code)
    return [*_header(turn.role), *content, control(end, END)]


def _content(turn: Turn, options: ChatOptions, variant: Variant, runs_code: bool) -> list[Piece]:
    """What an assistant says: its content, then its calls."""
    content = Piece(turn.content, ANSWER)
    if not turn.calls:
        return [content]
    first = turn.calls[0]
    if first.name not in _built_in(options, variant, runs_code):
        text = write_calls(turn.calls, options.call_form, typed=variant.meta)
        return [content, Piece(text, ANSWER)]
    if len(turn.calls) > 1:
        raise UserError(f"tool_calls: {first.name} is called alone, not with others")
    call = Piece(write_built_in(first), ANSWER)
    if not variant.meta:
        return [content, control(PYTHON_TAG, ANSWER), call]
    tag = [control(PYTHON_TAG, ANSWER)] if first.name == "code_interpreter" else []
    return [*tag, content, call]


def _built_in(options: ChatOptions, variant: Variant, runs_code: bool) -> Sequence[str]:
    """The tools whose calls are not in a form that the user chose."""
    if variant.meta or (runs_code and options.built_in_tools is None):
        return BUILT_IN_TOOLS
    return (
        (*options.built_in_tools, "code_interpreter") if options.built_in_tools is not None else ()
    )


def _hf_opening(
    turns: Sequence[Turn],
    tools: Sequence[Mapping[str, Any]],
    options: ChatOptions,
    variant: Variant,
) -> list[Turn]:
    """The turns with system lines and tools where the templates on Hugging Face put them."""
    system, rest = _system_apart(turns)
    head = _hf_lines(bool(tools), options, variant)
    if tools and not options.tools_in_user_message:
        head += hf_tools(tools, in_user_message=False)
    elif tools:
        if not rest or rest[0].role != "user":
            raise UserError(
                "tools: they are put into the first user message, and this conversation does not"
                " begin with one; tools_in_user_message=False puts them into the system message"
            )
        rest[0] = replace(rest[0], content=hf_tools(tools, True) + rest[0].content)
    if head or system is not None:
        rest.insert(0, Turn("system", head + (system or "")))
    return rest


def _hf_lines(tools: bool, options: ChatOptions, variant: Variant) -> str:
    built_in = options.built_in_tools
    lines = ""
    if built_in is not None or (tools and variant.date is not None):
        lines += f"{IPYTHON}\n"
    if built_in is not None:
        lines += f"Tools: {_named(built_in)}\n\n"
    when = options.date or (variant.date and variant.date())
    return lines + (_date_lines(when) if when else "")


def _date_lines(when: str) -> str:
    return f"Cutting Knowledge Date: December 2023\nToday Date: {when}\n\n"


def _named(built_in: Sequence[str]) -> str:
    """The tools of the `Tools:` line; code needs no name there."""
    return ", ".join(name for name in built_in if name != "code_interpreter")


def _meta_opening(
    turns: Sequence[Turn],
    tools: Sequence[Mapping[str, Any]],
    options: ChatOptions,
    variant: Variant,
) -> list[Turn]:
    """The turns with system lines and tools where Meta's documentation puts them."""
    system, rest = _system_apart(turns)
    head = ""
    if options.built_in_tools is not None:
        names = _named(options.built_in_tools)
        head += f"{IPYTHON}\n" + (f"Tools: {names}\n" if names else "\n")
    head += _date_lines(options.date) if options.date else ""
    if tools and options.call_form == "python_list":
        head += meta_tools(tools, options.call_form) + ("\n\n" if system else "")
    elif tools:
        rest.insert(0, Turn("user", meta_tools(tools, options.call_form)))
    if head or system is not None:
        rest.insert(0, Turn("system", head + (system or "")))
    return rest


def _system_apart(turns: Sequence[Turn]) -> tuple[str | None, list[Turn]]:
    if turns[0].role == "system":
        return turns[0].content, list(turns[1:])
    return None, list(turns)
