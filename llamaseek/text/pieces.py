"""A conversation between messages and ids: pieces of text, and the control tokens between them.

Each format says once, as pieces, what a conversation looks like; its ids and its text follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamaseek.text.special import ASSISTANT_TAGS

if TYPE_CHECKING:
    from llamaseek.text.tokenizer import Tokenizer

PROMPT, ANSWER, END = 0, 1, 2
"""Kinds of token: what the model is given, what it says, and the end of what it says."""


@dataclass(frozen=True)
class Piece:
    """Text, or one control token by its name, and the kind that its tokens are."""

    text: str
    kind: int = PROMPT
    control: bool = False


@dataclass(frozen=True)
class ChatIds:
    """A conversation as token ids.

    For each of them its kind, PROMPT, ANSWER or END (training learns the last two), and whether
    it is a control token; the others are text and never special ids.
    """

    ids: list[int]
    kinds: list[int]
    control: list[bool]


def control(name: str, kind: int = PROMPT) -> Piece:
    """The control token `name`."""
    return Piece(name, kind, control=True)


def to_ids(tokenizer: Tokenizer, pieces: Iterable[Piece]) -> ChatIds:
    """Each control token by its id, each text encoded apart, so that no text becomes a control.

    An answer's own tags (`<think>`, `<tool_call>`) are tokens where the tokenizer has them. Raises
    UserError for a control token that the tokenizer lacks.
    """
    tags = sorted(ASSISTANT_TAGS.intersection(tokenizer.specials.values()))
    chat = ChatIds([], [], [])
    for piece in _with_tags(pieces, tags) if tags else pieces:
        ids = [tokenizer.id_of(piece.text)] if piece.control else tokenizer.encode(piece.text)
        chat.ids.extend(ids)
        chat.kinds.extend([piece.kind] * len(ids))
        chat.control.extend([piece.control] * len(ids))
    return chat


def _with_tags(pieces: Iterable[Piece], tags: list[str]) -> Iterator[Piece]:
    """The pieces, answers cut at the tags in them."""
    pattern = re.compile("(" + "|".join(map(re.escape, tags)) + ")")
    for piece in pieces:
        if piece.control or piece.kind != ANSWER:
            yield piece
            continue
        for text in filter(None, pattern.split(piece.text)):
            yield Piece(text, piece.kind, control=text in tags)


def to_text(pieces: Iterable[Piece]) -> str:
    """The pieces as they are spelled."""
    return "".join(piece.text for piece in pieces)
