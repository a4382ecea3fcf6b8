"""Conversations by a tokenizer's own template: what it writes as control tokens, and what users do.

Users' text goes through the template with a guard, a character that nothing else uses, before
whatever spells a special token or might begin one; where the text comes out with its guard it
is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from llamaseek.errors import UserError
from llamaseek.text.llama3_calls import ChatOptions
from llamaseek.text.messages import Message, json_of
from llamaseek.text.pieces import ANSWER, END, PROMPT, ChatIds, Piece, to_ids
from llamaseek.text.special import END_OF_MESSAGE, END_OF_TURN, SENTENCE_END

if TYPE_CHECKING:
    from llamaseek.text.tokenizer import Tokenizer

PRIVATE_USE = range(0xE000, 0xF900)


class Escaper:
    """Keeps what strings spell apart from special tokens, by one character before each."""

    def __init__(self, names: Sequence[str], mark: str) -> None:
        self.mark = mark
        self._names = sorted(filter(None, names), key=len, reverse=True)  # the longest match wins
        self._any = "|".join(map(re.escape, self._names)) or "(?!)"

    def put(self, value: Any) -> Any:
        """The value with marks in all its strings."""
        if isinstance(value, str):
            return self._mark_end(re.sub(f"({self._any})", rf"{self.mark}\1", value))
        if isinstance(value, Mapping):
            return {self.put(key): self.put(each) for key, each in value.items()}
        return [self.put(each) for each in value] if isinstance(value, (list, tuple)) else value

    def _mark_end(self, text: str) -> str:
        """Marks an end that would be a special token if the right text came after it."""
        longest = len(self._names[0]) if self._names else 0
        for at in range(max(0, len(text) - longest), len(text)):
            if any(name.startswith(text[at:]) for name in self._names if name[0] == text[at]):
                return text[:at] + self.mark + text[at:]
        return text

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """The stretches of a rendered text, each with whether it is a special token."""
        at = 0
        for found in re.finditer(f"{self.mark}(?:{self._any})|({self._any})", text):
            if found[1] is not None:
                yield text[at : found.start()].replace(self.mark, ""), False
                yield found[1], True
                at = found.end()
        yield text[at:].replace(self.mark, ""), False


def encode_by_template(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    options: ChatOptions,
) -> ChatIds:
    """The conversation as ids, by the tokenizer's own template.

    What the template encloses in `{% generation %}` is said by the model; without such marks
    nothing is. Raises UserError for a template that fails, takes too long or writes too much.
    """
    template = tokenizer.chat_template
    if template is None:
        raise UserError("tokenizer: it has no chat template")
    given = {"messages": list(messages), "tools": list(tools) or None, "documents": None}
    mark, begin, end = _unused(json_of("messages", given) + template)
    guard = Escaper(list(tokenizer.specials.values()), mark)
    guarded = guard.put(given)
    for before, after in zip(messages, guarded["messages"], strict=True):
        after["role"] = before["role"]  # one of ROLES, which templates compare
    variables = {
        **guarded,
        **tokenizer.named_tokens,
        **_asked(options),
        "add_generation_prompt": add_generation_prompt,
        "generation_marks": [begin, end],
    }
    text = tokenizer.templates.render(template, variables)
    ends = {tokenizer.named_tokens.get("eos_token"), END_OF_MESSAGE, END_OF_TURN, SENTENCE_END}
    return to_ids(tokenizer, _pieces(text, guard, (begin, end), ends))


def _pieces(
    text: str, guard: Escaper, marks: tuple[str, str], ends: set[str | None]
) -> Iterator[Piece]:
    inside = False
    for stretch in re.split(f"([{marks[0]}{marks[1]}])", text):
        if stretch in marks:
            inside = stretch == marks[0]
            continue
        for piece, special in guard.split(stretch):
            kind = (END if special and piece in ends else ANSWER) if inside else PROMPT
            if piece:
                yield Piece(piece, kind, control=special)


def _unused(text: str) -> list[str]:
    """Three characters of private use that do not occur in `text`."""
    taken = set(text)
    free = list(islice((chr(code) for code in PRIVATE_USE if chr(code) not in taken), 3))
    if len(free) < 3:
        raise UserError("messages: they use every private character of Unicode")
    return free


def _asked(options: ChatOptions) -> dict[str, Any]:
    """The options by the names that Meta's templates read; what is not asked for is undefined."""
    asked: dict[str, Any] = {}
    if options.date is not None:
        asked["date_string"] = options.date
    if options.built_in_tools is not None:
        asked["builtin_tools"] = list(options.built_in_tools)
    if not options.tools_in_user_message:
        asked["tools_in_user_message"] = False
    return asked
