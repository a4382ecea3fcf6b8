"""How much there is in a JSON text or value, counted before anything is made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

STEP = 1 << 16
"""Bytes that one search looks at; no search of a whole body stops the other threads."""
TEXT = re.compile(rb'(?:[^"\\]|\\.)*+', re.DOTALL)
OUTSIDE = re.compile(rb'[^"]*+')


def count_json(body: bytes) -> Iterator[tuple[int, int, int]]:
    """How many values, objects and arrays, and keys a JSON text has up to some place in it.

    Grows to the end of the text, or to where a text in it does not end. Counted are the commas,
    brackets and colons outside of texts, so the values are an upper bound.
    """
    at, inside, commas, containers, keys = 0, False, 1, 0, 0
    while at < len(body):
        found = (TEXT if inside else OUTSIDE).match(body, at, at + STEP)
        assert found is not None  # both match nothing, too
        if not inside:
            containers += found[0].count(b"[") + found[0].count(b"{")
            commas += found[0].count(b",")
            keys += found[0].count(b":")
            yield commas + containers, containers, keys
        if found.end() == at and body[at : at + 1] != b'"':
            return  # a backslash at the end
        at = found.end()
        if body[at : at + 1] == b'"':
            inside, at = not inside, at + 1


def sizes(value: Any) -> Iterator[int]:
    """The characters of each text in a JSON value, keys too, and 1 for every value."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += each.values()
            yield sum(map(len, each))
        elif isinstance(each, list):
            waiting += each
        elif isinstance(each, str):
            yield len(each)
        yield 1


def is_larger(value: Any, most: int) -> bool:
    """Whether a JSON value has more than so many characters and values; stops where it has."""
    return any(total > most for total in accumulate(sizes(value)))
