"""Benchmark items out of the training text, by shared n-grams of words.

Brown et al. 2020 (§C) look for 13-grams, datatrove for 12-grams; one shared n-gram is enough.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import Field

from llamaseek.data.clean.hashing import Hashes, ngram_hashes
from llamaseek.data.clean.stage import CleaningStage, Reason
from llamaseek.data.clean.words import simplified, words
from llamaseek.data.documents import Document, read_documents
from llamaseek.data.opened import ending_of
from llamaseek.data.row_sources import read_rows
from llamaseek.data.tables import ROW_ENDINGS


class Decontaminate(CleaningStage):
    """Drops documents that share an n-gram with an item of the benchmark files.

    An item is a row's strings in order (those of `fields`, if given), or a text file.
    """

    files: tuple[str, ...]
    fields: tuple[str, ...] = ()
    n: int = Field(default=12, ge=1)

    def __call__(self, document: Document) -> Document | Reason:
        found = _words(document.text)
        if len(found) < self.n:
            return document
        known, places = index(self.files, self.fields, self.n)
        hashes = ngram_hashes([" ".join(found)], self.n)[0]
        at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        shared = np.flatnonzero(known[at] == hashes)
        if not len(shared):
            return document
        first = int(shared[0])
        phrase = " ".join(found[first : first + self.n])
        return Reason("shared words", f"{phrase!r} of {places[int(at[first])]}", "none")


@lru_cache(maxsize=4)
def index(files: tuple[str, ...], fields: tuple[str, ...], n: int) -> tuple[Hashes, list[str]]:
    """The n-grams of all items, sorted, and the place of the item each came from.

    Raises UserError if no item has n words.
    """
    from llamaseek.errors import UserError

    hashes: list[Hashes] = []
    places: list[str] = []
    for place, text in _items(files, fields):
        found = _words(text)
        if len(found) >= n:
            hashes.append(ngram_hashes([" ".join(found)], n)[0])
            places += [place] * len(hashes[-1])
    if not hashes:
        raise UserError(f"decontaminate.files: no item of {', '.join(files)} has {n} words")
    joined = np.concatenate(hashes)
    known, first = np.unique(joined, return_index=True)
    return known, [places[i] for i in first]


def _items(files: tuple[str, ...], fields: tuple[str, ...]) -> list[tuple[str, str]]:
    items = []
    for file in files:
        if ending_of(Path(file)) in ROW_ENDINGS:
            for place, row in read_rows(file):
                chosen = {key: row.get(key) for key in fields} if fields else row
                items.append((place, " ".join(strings(chosen))))
        else:
            items += [(document.id, document.text) for document in read_documents([file])]
    return items


def strings(value: object) -> list[str]:
    """The strings inside of a value, in order."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(inner, list) or isinstance(value, dict):
        return [text for item in inner for text in strings(item)]  # type: ignore[attr-defined]
    return []


def _words(text: str) -> tuple[str, ...]:
    return words(simplified(text))
