"""What a tokenizer.json may ask of the library that reads it: the file is untrusted input.

The library ends the process where it runs out of memory, and has no limits of its own.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llamaseek.errors import UserError
from llamaseek.files import check_json_size

MOST_KEYS = 1_000_000  # of the whole file; the largest published vocabulary has 262,144 tokens
MOST_GROWTH = 100  # how many times longer a normalizer or decoder may make a text
CHARSMAP = re.compile(r'"precompiled_charsmap"\s*:\s*"([^"\\]*)"')


@contextmanager
def no_panic(what: str) -> Iterator[None]:
    """Turn a panic of the library, which is no `Exception`, into a UserError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: {str(error)[:200]}") from None


def check_source(source: str) -> None:
    """UserError for a text of a tokenizer.json that the library should not be given."""
    try:
        check_json_size(source.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise UserError(f"not a tokenizer: {error}") from None
    if source.count('":') > MOST_KEYS:
        raise UserError(f"not a tokenizer: has more than {MOST_KEYS:,} keys")
    for found in CHARSMAP.finditer(source):
        _check_charsmap(found[1])


def _check_charsmap(text: str) -> None:
    """SentencePiece's table: the size of a trie in 4 bytes, the trie, and texts that end with 0."""
    try:
        table = base64.b64decode(text, validate=True)
    except binascii.Error:
        table = b""
    size = int.from_bytes(table[:4], "little")
    if len(table) < 4 or size % 4 or 4 + size > len(table):
        raise UserError("not a tokenizer: its precompiled_charsmap is broken")


def check_library(library: Any) -> None:
    """UserError for a tokenizer that makes long texts out of short ones."""
    for part in ("normalizer", "decoder"):
        made = getattr(library, part)
        growth = 1.0 if made is None else _growth(json.loads(made.__getstate__()))
        if growth > MOST_GROWTH:
            raise UserError(f"not a tokenizer: its {part} makes texts {growth:,.0f} times as long")


def _growth(part: dict[str, Any]) -> float:
    """How many times longer a text may become, from what is written in the file."""
    growth = 1.0
    for each in part.get("normalizers") or part.get("decoders") or []:
        growth *= _growth(each)
    if part.get("type") == "Replace":
        pattern, content = part["pattern"], len(part["content"])
        growth *= max(
            1.0, content / len(pattern["String"]) if pattern.get("String") else 1 + content
        )
    return growth
