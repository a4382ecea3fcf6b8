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

from llamaseek.data.clean.pieces import split_piece


def _characters(codes: str) -> frozenset[str]:
    """The characters of hexadecimal codes and ranges of them."""
    ranges = [[int(end, 16) for end in code.split("-")] for code in codes.split()]
    return frozenset(chr(code) for ends in ranges for code in range(ends[0], ends[-1] + 1))


TERMINATOR_CODES = """
21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e
1735-1736 17d4-17d6 17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e
1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7
a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f ff61
10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd
111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642
1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f
16af5 16b37-16b38 16b44 16e98 1bc9f 1da88
"""

TERMINATORS = _characters(TERMINATOR_CODES)
"""What ends a sentence, in every script (Unicode's Sentence_Terminal)."""

CONTROLS = _characters("0-8 b-c d-1f 7f-9f")

MARKS = frozenset(
    "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
)
"""datatrove's list of punctuation."""

SYMBOLS = MARKS | CONTROLS | TERMINATORS
"""What makes no word by itself."""

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
"""Thai, Lao, Burmese, Khmer, kana and Chinese characters: writing without spaces."""


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
