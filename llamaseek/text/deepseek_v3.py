"""DeepSeek-V3's chat and tool format, as pieces.

`<｜User｜>` and `<｜Assistant｜>` open turns, `<｜end▁of▁sentence｜>` ends an assistant's; all
system messages stand together at the front. What is said after the results of calls follows them
without a new `<｜Assistant｜>`. The template that circulates with checkpoints is wrong in four
ways, listed in `docs/chat-formats.md`; this is the format it means. The words that present the
tools are those of vLLM's `examples/tool_chat_template_deepseekv3.jinja`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from llamaseek.text.llama3_parse import is_name, read_object
from llamaseek.text.messages import Control, Event, ToolCall, Turn, text_events, to_json
from llamaseek.text.pieces import ANSWER, END, Piece, control
from llamaseek.text.special import (
    ASSISTANT,
    CALL_BEGIN,
    CALL_END,
    CALL_SEP,
    CALLS_BEGIN,
    CALLS_END,
    END_THINK,
    OUTPUT_BEGIN,
    OUTPUT_END,
    OUTPUTS_BEGIN,
    OUTPUTS_END,
    SENTENCE_BEGIN,
    SENTENCE_END,
    USER,
)


def deepseek_pieces(
    turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]], add_generation_prompt: bool
) -> list[Piece]:
    """The conversation as pieces."""
    system = "\n\n".join(turn.content for turn in turns if turn.role == "system")
    spoken: list[Turn | None] = [turn for turn in turns if turn.role != "system"]
    pieces = [control(SENTENCE_BEGIN), *_opening(system, tools)]
    for before, turn in pairwise([None, *spoken]):
        if turn is not None:
            pieces += _turn(turn if turn is spoken[-1] else _answer_alone(turn, before), before)
    last = spoken[-1] if spoken else None
    after_results = last is not None and last.role == "tool"
    if after_results:
        pieces.append(control(OUTPUTS_END))
    if add_generation_prompt and not after_results:
        pieces.append(control(ASSISTANT))
    return pieces


def _answer_alone(turn: Turn, before: Turn | None) -> Turn:
    """An earlier answer without the reasoning in its content, where the published template drops
    it: not in answers that call, nor after results.
    """
    after_results = before is not None and before.role == "tool"
    if turn.role != "assistant" or turn.calls or after_results:
        return turn
    return replace(turn, content=turn.content.split(END_THINK)[-1])


def _turn(turn: Turn, before: Turn | None) -> list[Piece]:
    after_results = before is not None and before.role == "tool"
    if turn.role == "tool":
        opening = [Piece("\n")] if after_results else [control(OUTPUTS_BEGIN)]
        return [*opening, control(OUTPUT_BEGIN), Piece(turn.content), control(OUTPUT_END)]
    closing = [control(OUTPUTS_END)] if after_results else []
    if turn.role == "user":
        return [*closing, control(USER), Piece(turn.content)]
    opening = closing or [control(ASSISTANT)]
    text_events = [Piece(turn.content, ANSWER), *_calls(turn.calls)]
    return [*opening, *text_events, control(SENTENCE_END, END)]


def _calls(calls: Sequence[ToolCall]) -> list[Piece]:
    if not calls:
        return []
    pieces = [control(CALLS_BEGIN, ANSWER)]
    for number, call in enumerate(calls):
        pieces += [Piece("\n", ANSWER)] if number else []
        pieces += _call(call)
    return [*pieces, control(CALLS_END, ANSWER)]


def _call(call: ToolCall) -> list[Piece]:
    return [
        control(CALL_BEGIN, ANSWER),
        Piece("function", ANSWER),
        control(CALL_SEP, ANSWER),
        Piece(f"{call.name}\n```json\n{call.written}\n```", ANSWER),
        control(CALL_END, ANSWER),
    ]


def _opening(system: str, tools: Sequence[Mapping[str, Any]]) -> list[Piece]:
    """The system message, followed by the definitions of the tools."""
    if not tools:
        return [Piece(system)]
    listed = "".join(f"\n{to_json(tool)}" for tool in tools)
    presented = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>{listed}\n</tools>\n\nFor function call returns, you should first print "
    )
    return [
        Piece(f"{system}\n\n{presented}" if system else presented),
        control(CALLS_BEGIN),
        Piece("\nFor each function call, you should return object like:\n"),
        control(CALL_BEGIN),
        Piece("function"),
        control(CALL_SEP),
        Piece("<function_name>\n```json\n<function_arguments_in_json_format>\n```"),
        control(CALL_END),
        Piece("\nAt the end of function call returns, you should print "),
        control(CALLS_END),
        control(SENTENCE_END),
    ]


class DeepSeekReader:
    """Reads one message. Content flows; each call comes out when it is whole."""

    ends = frozenset({SENTENCE_END})
    marks = ends | {CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, CALL_SEP}

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._unread = ""  # since the calls began, what has not become an event
        self._call: str | None = None  # since this call began
        self._among_calls = self._called = False

    def read(self, item: str | Control) -> list[Event]:
        """The events of this text or control token."""
        name = item.name if isinstance(item, Control) else None
        text = name if name is not None else str(item)
        if self._call is not None:
            self._call += text
            return self._end_call() if name == CALL_END else []
        if not self._among_calls:
            self._among_calls = name == CALLS_BEGIN
            self._unread = text if self._among_calls else ""
            return [] if self._among_calls else text_events(text)
        if name == CALL_BEGIN:
            self._call = text
            return []
        self._unread += text
        return self.finish() if name == CALLS_END else []

    def finish(self) -> list[Event]:
        """What was held, now that the calls or the message have ended."""
        rest = self._unread + (self._call or "")
        if self._called:
            rest = _without_frame(rest)
        self._begin()
        return text_events(rest)

    def _end_call(self) -> list[Event]:
        raw, self._call = self._call or "", None
        call = read_call(raw)
        if call is None:
            self._unread += raw
            return []
        before, self._unread, self._called = _without_frame(self._unread), "", True
        return [*text_events(before), call]


def read_call(text: str) -> ToolCall | None:
    """One call with the control tokens at its ends, or None if it is not as it should be."""
    inner = text.removeprefix(CALL_BEGIN).removesuffix(CALL_END)
    kind, _, rest = inner.partition(CALL_SEP)
    if kind.strip() != "function":
        return _bare_call(kind.strip(), rest)
    name, fence, body = (part.strip() for part in rest.partition("```json"))
    arguments = read_object(body.removesuffix("```"))
    if not fence or not body.endswith("```") or not is_name(name) or arguments is None:
        return None
    return ToolCall(name, arguments)


def _bare_call(name: str, arguments: str) -> ToolCall | None:
    """A call as V3.1 writes it: the name, the separator, and JSON without a fence."""
    found = read_object(arguments)
    return ToolCall(name, found) if is_name(name) and found is not None else None


def _without_frame(text: str) -> str:
    """What stands between calls, but for the tokens around all of them and blanks."""
    inner = text.removeprefix(CALLS_BEGIN).removesuffix(CALLS_END)
    return inner if inner.strip() else ""
