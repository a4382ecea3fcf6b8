"""Meta's `tokenizer.model`, through tiktoken: one line per token, its bytes in base64 and its rank.

Meta's own reader is `models/llama3/tokenizer.py` of llama-models.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import tiktoken

from llamaseek.errors import UserError, shorten
from llamaseek.text.json_backend import (
    SPLIT_PATTERN,
    ByteStream,
    TokenStream,
    check_unicode,
    from_ranks,
)
from llamaseek.text.special import BEGIN_OF_TEXT

LONGEST, LONGEST_RUN = 400_000, 25_000
"""Where Meta cuts what tiktoken's regular expression cannot hold: characters in all, and
characters in a row that are all blank or all not."""


class MetaBackend:
    """Built from the file's bytes and the names of its special tokens, in the order of their ids.

    Raises UserError, naming the line, for a file that is not Meta's.
    """

    unknown: str | None = None

    def __init__(self, content: bytes, names: Sequence[str]) -> None:
        self._ranks = _read_ranks(content)
        base = len(self._ranks)
        self.specials = {base + n: name for n, name in enumerate(names)}
        self.hidden = frozenset(self.specials)
        self.size = base + len(names)
        self._ids = {name: i for i, name in self.specials.items()}
        self.prefix: tuple[int, ...] = (self._ids[BEGIN_OF_TEXT],)
        self._bytes = [*self._ranks, *(name.encode() for name in names)]
        self._engine = tiktoken.Encoding(
            "llama3", pat_str=SPLIT_PATTERN, mergeable_ranks=self._ranks, special_tokens=self._ids
        )

    def id_of(self, name: str) -> int | None:
        return self._ids[name] if name in self._ids else self._ranks.get(name.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        check_unicode(texts)
        if len(texts) == 1:
            return [self._encode(texts[0])]
        try:
            return self._engine.encode_ordinary_batch(list(texts))
        except ValueError:
            return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        try:
            return self._engine.encode_ordinary(text)
        except ValueError:  # its regular expression gave up: some 100,000 blanks in a row
            return [i for part in _parts(text) for i in self._engine.encode_ordinary(part)]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if 0 <= token_id < self.size else b""

    def stream(self) -> TokenStream:
        return ByteStream(self)

    def to_json(self) -> str:
        return str(from_ranks(self._ranks, list(self.specials.values())).to_str(pretty=True))


def read_model(path: Path, names: Sequence[str]) -> MetaBackend:
    """The engine of a `tokenizer.model` file; UserError, naming the file, if it is broken."""
    try:
        return MetaBackend(path.read_bytes(), names)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read_ranks(content: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            value, place = base64.b64decode(token, validate=True), int(rank)
        except ValueError:
            shown = shorten(line.decode("ascii", "backslashreplace"), 40)
            raise UserError(
                f"line {number}: {shown!r} is not a token in base64 and its rank, as in Meta's file"
            ) from None
        if place != len(ranks) or value in ranks:
            raise UserError(f"line {number}: rank {place}, expected rank {len(ranks)}")
        ranks[value] = place
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UserError(f"it has no token for byte {missing[0]}; every byte is a token")
    return ranks


def _parts(text: str) -> Iterator[str]:
    """The text in Meta's cuts."""
    for start in range(0, len(text), LONGEST):
        chunk = text[start : start + LONGEST]
        runs = re.finditer(r"\s+|\S+", chunk)
        cuts = [
            at for run in runs for at in range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN)
        ]
        for begin, end in pairwise([0, *cuts, len(chunk)]):
            yield chunk[begin:end]
