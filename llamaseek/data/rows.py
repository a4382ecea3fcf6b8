"""Conversations as tokens, and what to learn of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from llamaseek.data.bad_rows import BadRows, Row, RowError
from llamaseek.data.batch import IGNORE, Batch
from llamaseek.data.formats import RowReader
from llamaseek.data.pack import Example, pack_whole
from llamaseek.data.turns import show
from llamaseek.errors import UserError
from llamaseek.text.chat import END, PROMPT, ChatIds, encode_chat
from llamaseek.text.messages import Message
from llamaseek.text.tokenizer import Tokenizer


def conversations(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    length: int,
    reader: RowReader | None = None,
    bad: BadRows | None = None,
) -> Batch:
    """Conversations packed whole, best fit; loss on the assistant's answers and their ends.

    An invalid row is an error that shows it, or is skipped and counted with `bad.skip`.
    """
    reader, bad = reader or RowReader(), bad or BadRows()
    made = bad.keep(rows, lambda place, row: conversation(place, row, tokenizer, length, reader))
    return pack_whole(list(made), length)


def conversation(
    place: str, row: dict[str, Any], tokenizer: Tokenizer, length: int, reader: RowReader
) -> Example:
    """One row: its tokens, and its targets where there is something to learn."""
    found = reader.conversation(place, row)
    chat = encode(place, found.messages, tokenizer, found.tools)
    check_length(place, len(chat.ids), length)
    targets = shifted(chat, lambda kind: kind != PROMPT)
    if all(target == IGNORE for target in targets):
        message = f"nothing to learn, no assistant answer in {show(row)}"
        raise RowError(place, "without anything to learn", message)
    return Example(chat.ids, targets)


def encode(
    place: str,
    messages: list[Message],
    tokenizer: Tokenizer,
    tools: Any = None,
    add_generation_prompt: bool = False,
) -> ChatIds:
    """The chat as ids. Answers whose message has `train: false` are not in the loss."""
    plain = [{key: value for key, value in m.items() if key != "train"} for m in messages]
    try:
        spans = not add_generation_prompt
        chat = encode_chat(tokenizer, plain, add_generation_prompt, tools, spans=spans)
    except UserError as error:
        raise RowError(place, "malformed", str(error)) from None
    in_loss = _in_loss(messages)
    return chat if all(in_loss) else _without(place, chat, in_loss)


def _in_loss(messages: list[Message]) -> list[bool]:
    """Whether each assistant message is in the loss."""
    return [m.get("train", True) for m in messages if m.get("role") == "assistant"]


def _without(place: str, chat: ChatIds, in_loss: list[bool]) -> ChatIds:
    """The chat, with the answers that are not in the loss marked as given.

    An answer is a run of tokens up to its end, or up to the next that is given.
    """
    answer, before, kinds = -1, PROMPT, []
    for kind in chat.kinds:
        answer += kind != PROMPT and before in (PROMPT, END)
        kinds.append(kind if kind != PROMPT and in_loss[min(answer, len(in_loss) - 1)] else PROMPT)
        before = kind
    if answer + 1 != len(in_loss):
        message = "train: this chat format does not show where each answer begins and ends"
        raise RowError(place, "malformed", message)
    return replace(chat, kinds=kinds)


def check_length(place: str, tokens: int, length: int) -> None:
    """Refuse what does not fit a row."""
    if tokens > length:
        message = f"has {tokens} tokens; data.length allows {length}"
        raise RowError(place, "too long", message)


def shifted(chat: ChatIds, learn: Callable[[int], bool]) -> list[int]:
    """Targets: the next token if its kind is in the loss, else -100."""
    pairs = zip(chat.ids[1:], chat.kinds[1:], strict=True)
    return [token if learn(kind) else IGNORE for token, kind in pairs] + [IGNORE]


@dataclass(frozen=True)
class Span:
    """A span of a row's text as the model reads it, and whether it is in the loss."""

    text: str
    in_loss: bool


def stretches(item: Example, tokenizer: Tokenizer) -> list[Span]:
    """A row to show: its text cut where learning begins and ends, control tokens spelled out."""
    in_loss = [False] + [target != IGNORE for target in item.targets[:-1]]
    found, start = [], 0
    for end in range(1, len(in_loss) + 1):
        if end == len(in_loss) or in_loss[end] != in_loss[start]:
            text = tokenizer.decode(item.tokens[start:end], skip_special=False)
            found.append(Span(text, in_loss[start]))
            start = end
    return found
