"""How much of a benchmark's items stands in a run's training data, by shared 8-grams of words.

Llama 3 (arXiv 2407.21783) §5.1.4 counts the tokens of an item that are part of an 8-gram of the
training data; here they are words, and a task's figure is the mean over its items.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamaseek.data.clean.filters.decontaminate import strings
from llamaseek.data.clean.hashing import Hashes, ngram_hashes
from llamaseek.data.clean.words import simplified, words
from llamaseek.data.documents import read_documents
from llamaseek.data.hub import SCHEME
from llamaseek.data.opened import ending_of
from llamaseek.data.row_sources import read_rows, row_files
from llamaseek.data.tables import ROW_ENDINGS
from llamaseek.errors import UserError
from llamaseek.recipe.load import load_recipe

N = 8


def training_texts(source: Path) -> Iterator[str]:
    """The texts that a run trained on (its folder), or those of a file, folder or glob.

    Raises UserError for a run whose data is generated or on the hub, and for a file that is gone.
    """
    recipe = source / "recipe.yaml"
    if not recipe.is_file():
        yield from _texts(str(source))
        return
    data = load_recipe(recipe, []).data
    paths = [path for each in (data.sources, *data.corpora.values()) for path in each]
    files = [path for path in paths if not path.startswith(SCHEME)]
    if not files:
        raise UserError(f"--overlap: {recipe}: names no files of training data")
    for path in files:
        yield from _texts(path)


def _texts(path: str) -> Iterator[str]:
    file = Path(path)
    if file.is_file() and ending_of(file) not in ROW_ENDINGS:
        yield from (document.text for document in read_documents([path]))
        return
    if file.is_dir() and not any(ending_of(f) in ROW_ENDINGS for f in file.rglob("*")):
        yield from (document.text for document in read_documents([path]))
        return
    row_files(path)
    for _, row in read_rows(path):
        yield " ".join(strings(row))


def overlaps(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], texts: Iterable[str]
) -> dict[str, float]:
    """By task, the mean share of an item's words that stand in an 8-gram of the texts.

    Items of fewer than 8 words have none; tasks without longer items are left out.
    """
    hashes = {task: [_hashes(" ".join(strings(doc))) for doc in _docs(rows)]
              for task, rows in samples.items()}  # fmt: skip
    every = [one for items in hashes.values() for one in items if len(one)]
    if not every:
        return {}
    known = np.unique(np.concatenate(every))
    seen = np.zeros(len(known), bool)
    for text in texts:
        found = _hashes(text)
        at = np.minimum(np.searchsorted(known, found), len(known) - 1)
        seen[at[known[at] == found]] = True
    shares = {
        task: [_covered(seen[np.searchsorted(known, one)]) for one in items if len(one)]
        for task, items in hashes.items()
    }
    return {task: sum(found) / len(found) for task, found in shares.items() if found}


def _docs(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each item once, whatever filters it has."""
    return list({row["doc_id"]: row["doc"] for row in rows}.values())


def _hashes(text: str) -> Hashes:
    found = words(simplified(text))
    if len(found) < N:
        return np.zeros(0, np.uint64)
    return ngram_hashes([" ".join(found)], N)[0]


def _covered(seen: Any) -> float:
    """The share of an item's words in one of its n-grams that were seen; seen (words - N + 1)."""
    inside = np.convolve(seen.astype(np.int64), np.ones(N, np.int64)) > 0
    return float(inside.mean())
