"""What a tokenizer's engine does: plain text to ids and back. The special tokens are above it."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from llamaseek.errors import UserError


class TokenStream(Protocol):
    """Text from ids that come one at a time."""

    def push(self, token_id: int) -> str:
        """The text this id completes; empty while a character is not whole."""

    def flush(self) -> str:
        """What is left at the end; afterwards the stream begins anew."""


class Backend(Protocol):
    """An engine without state. Every added token of its file is in `specials`.

    `hidden` are those of them that the file calls special, which text does not show. `prefix` is
    what the file's post-processor puts before a text.
    `unknown` is the one that stands for text which the vocabulary cannot spell; byte-level
    engines have none.
    """

    specials: dict[int, str]
    hidden: frozenset[int]
    prefix: tuple[int, ...]
    size: int
    unknown: str | None

    def id_of(self, name: str) -> int | None:
        """The id of a token by its name, or None."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, where the text of a special token is text.

        Raises UserError for a text that is not Unicode.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special ones included; unknown ids are nothing."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; none for an unknown id."""

    def stream(self) -> TokenStream:
        """A fresh stream whose pieces add up to what `decode` gives."""

    def to_json(self) -> str:
        """The text of a tokenizer.json."""


class ByteStream:
    """The stream of a byte-level engine, where ids stand for bytes of UTF-8."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._backend.token_bytes(token_id))

    def flush(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def check_unicode(texts: Sequence[str]) -> None:
    """Raises UserError for the first text that UTF-8 cannot hold, or that is no text."""
    for text in texts:
        if not isinstance(text, str):
            raise UserError("text: not a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"text: lone surrogate {text[error.start]!r} at {error.start}"
            ) from None
