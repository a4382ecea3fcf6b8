"""Random text that is hard on tokenizers, the same each time."""

from __future__ import annotations

from random import Random

from llamaseek.text.special import ASSISTANT, CALLS_BEGIN, SENTENCE_END, SPECIAL_TOKENS

SPELLED = (*SPECIAL_TOKENS, SENTENCE_END, CALLS_BEGIN, ASSISTANT, "<think>", "</think>")
BLANKS = (" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\n\n\n", " \n ")
WORDS = ("It's", "we'LL", "don't", "123456", "3.14", "naïve", "łódź", "日本語", "한국어", "привет")
RANGES = (
    (0x20, 0x7F),
    (0x00, 0x20),
    (0xA0, 0x250),
    (0x370, 0x530),
    (0x590, 0x700),
    (0x900, 0xA00),
    (0x2000, 0x2070),
    (0x3040, 0x3100),
    (0x4E00, 0x9FFF),
    (0xE000, 0xF8FF),
    (0xFE00, 0xFE10),
    (0x1F300, 0x1FAFF),
    (0x10000, 0x110000),
)


def random_text(rng: Random, pieces: int = 12, spelled: bool = True) -> str:
    """Letters of many scripts, blanks, words, and, where `spelled`, names of control tokens."""
    return "".join(_piece(rng, spelled) for _ in range(rng.randrange(pieces + 1)))


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = Random(seed)
    return [random_text(rng) for _ in range(count)]


def _piece(rng: Random, spelled: bool) -> str:
    kind = rng.random()
    if kind < 0.1 and spelled:
        return rng.choice(SPELLED)
    if kind < 0.3:
        return rng.choice(BLANKS)
    if kind < 0.5:
        return rng.choice(WORDS)
    first, last = rng.choice(RANGES)
    return "".join(chr(rng.randrange(first, last)) for _ in range(rng.randrange(1, 6)))
