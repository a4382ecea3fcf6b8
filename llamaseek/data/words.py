"""Words and sentences, as every filter counts them.

datatrove counts with spaCy's English tokenizer, so the published thresholds mean its words:
punctuation marks, `n't` and `'s` are words of their own. A piece between two spaces is split once
and remembered, which makes this some ten times as fast as the original.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache, lru_cache

from llamaseek.data.characters import CONTROLS, MARKS, TERMINATORS, UNSPACED
from llamaseek.data.pieces import split_piece


@lru_cache(maxsize=4)
def words(text: str) -> tuple[str, ...]:
    """Words and punctuation marks, in order; one filter after another asks for the same text's."""
    return tuple(word for piece in text.split() for word in split_piece(piece))


def sentences(text: str) -> int:
    """How many sentences; a full stop inside a number, an address or `e.g.` ends none."""
    count, ended = 1, False
    for word in words(text):
        if word in TERMINATORS:
            ended = True
        elif ended and not _is_punctuation(word):
            count, ended = count + 1, False
    return count


def _is_punctuation(word: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in word)


NUMBER = re.compile(r"\d+(?:[.,،٫⎖⎗⎘]\d+)?")
ASCII_NUMBER = re.compile(rb"[0-9]+(?:[.,][0-9]+)?")
TO_SPACE = str.maketrans(dict.fromkeys(MARKS | CONTROLS, " "))
ASCII_TO_SPACE = bytes(ord(chr(code).translate(TO_SPACE)) for code in range(128)) + bytes(128)
ALONE = re.compile(f"([{UNSPACED}])")


def simplified(text: str) -> str:
    """Lower case, every number 0, no punctuation, accents off, single spaces.

    What near duplicates and contaminated texts have in common: datatrove's steps, and characters
    of writing without spaces each a word.
    """
    if text.isascii():  # the same on bytes, twice as fast
        plain = ASCII_NUMBER.sub(b"0", text.lower().encode()).translate(ASCII_TO_SPACE)
        return b" ".join(plain.split()).decode()
    spaced = NUMBER.sub("0", text.lower()).translate(TO_SPACE)
    bare = _accents().sub("", unicodedata.normalize("NFD", spaced))
    return " ".join(ALONE.sub(r" \1 ", bare).split())


@cache
def _accents() -> re.Pattern[str]:
    """Every mark that sits on the character before it."""
    marks = (c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) == "Mn")
    return re.compile(f"[{''.join(marks)}]+")
