"""Documents and conversations into rows of one length.

Pre-training text is cut where a row ends; answers are never cut, and go where they fit best.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.errors import UserError


@dataclass(frozen=True)
class Example:
    """One document to pack whole: equally long lists, and extra lists by name."""

    tokens: list[int]
    targets: list[int]
    extra: dict[str, list[int]] = field(default_factory=dict)


def pack_text(documents: Iterable[list[int]], length: int, isolate: bool = True) -> Batch:
    """Token lists laid end to end and cut into rows of `length`; a rest shorter is padded.

    A document's last token predicts nothing. With `isolate` positions restart at each document
    (Llama 3 §3.2 masks across documents); without, a row is one document (DeepSeek-V3 §4.1) and
    each document's end predicts the next one's beginning.
    """
    tokens: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    for document in documents:
        tokens.extend(document)
        targets.extend([*document[1:], IGNORE])
        positions.extend(range(len(document)))
    if not tokens:
        raise UserError("data: the corpus is empty, there is nothing to train on")
    rest = -len(tokens) % length
    flat = torch.tensor(tokens + [0] * rest)
    shifted = torch.tensor(targets + [IGNORE] * rest)
    place = torch.tensor(positions + [0] * rest)
    if not isolate:
        shifted[: len(tokens) - 1] = flat[1 : len(tokens)]
        return _rows(length, flat, _restart(torch.ones_like(flat), length), shifted)
    # Within a document positions step by one; a jump of any other size begins another.
    begins = torch.ones_like(place, dtype=torch.bool)
    begins[1:] = place[1:] != place[:-1] + 1
    return _rows(length, flat, _restart((~begins).long(), length), shifted)


def _restart(steps: Tensor, length: int) -> Tensor:
    """Positions that count up while `steps` is 1 and restart at 0 elsewhere and at each row."""
    steps = steps.view(-1, length).clone()
    steps[:, 0] = 0
    index = torch.arange(length).expand_as(steps)
    last_begin = torch.where(steps == 0, index, 0).cummax(1).values
    return (index - last_begin).flatten()


def _rows(length: int, tokens: Tensor, positions: Tensor, targets: Tensor) -> Batch:
    return Batch(tokens.view(-1, length), positions.view(-1, length), targets.view(-1, length))


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices by row: longest first, each into the fullest row that still takes it."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free places, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[index], -1))
        free, row = room.pop(at) if at < len(room) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(room, (free - lengths[index], row))
    return rows


def pack_whole(sequences: Sequence[Example], length: int) -> Batch:
    """Whole sequences into rows of `length`, best fit; extras are padded with -1.

    The caller has checked that each fits.
    """
    plan = best_fit([len(item.tokens) for item in sequences], length)
    return _fill([[sequences[index] for index in row] for row in plan], length)


def _fill(rows: Sequence[Sequence[Example]], length: int) -> Batch:
    names = rows[0][0].extra if rows else {}
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    positions = torch.zeros_like(tokens)
    targets = torch.full_like(tokens, IGNORE)
    extra = {name: torch.full_like(tokens, -1) for name in names}
    for row, items in enumerate(rows):
        at = 0
        for item in items:
            place = slice(at, at + len(item.tokens))
            tokens[row, place] = torch.tensor(item.tokens)
            positions[row, place] = torch.arange(len(item.tokens))
            targets[row, place] = torch.tensor(item.targets)
            for name, values in item.extra.items():
                extra[name][row, place] = torch.tensor(values)
            at = place.stop
    return Batch(tokens, positions, targets, extra)


def pack_apart(rows: Sequence[Sequence[Example]]) -> Batch:
    """Each inner list in a row of its own, in its order, rows as wide as the widest."""
    width = max(sum(len(item.tokens) for item in row) for row in rows)
    return _fill(rows, width)
