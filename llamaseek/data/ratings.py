"""Rated answers, KTO's among them, as pairs: of each prompt its better answers beside its worse."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llamaseek.data.bad_rows import BadRows, Row, RowError
from llamaseek.data.columns import FORMATS, MappedRow, mapped
from llamaseek.data.turns import as_messages, says_something
from llamaseek.errors import UserError, shorten
from llamaseek.units import counted

RATINGS = ("rating", "label", "score", "reward")
"""The columns that rate an answer, as a truth (KTO) or a number; the first of them counts."""


class NoPairs(UserError):
    """Rated answers of which no two can be compared."""


PAIRED = ("completion", "rating")
"""The columns of a rated answer, in our names, that its pair no longer has."""

LOOKED_AT = 100  # rows, for whether they are rated
TRUTHS = {"true": 1.0, "false": 0.0}
Rated = tuple[float, str, Mapping[str, Any], MappedRow]


def rating_column(row: MappedRow) -> str | None:
    """The column that rates a prompt's completion, if one does."""
    cells = row.cells
    return next((n for n in RATINGS if n in cells and as_rating(cells[n]) is not None), None)


def is_truth(value: Any) -> bool:
    """Whether a rating only says good or bad, as KTO's do."""
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in TRUTHS)


def as_rating(value: Any) -> float | None:
    """A truth or a number, also as a table of texts has it; None for anything else."""
    if isinstance(value, bool | int | float):
        return float(value)
    try:
        return TRUTHS.get(value.lower()) if value.lower() in TRUTHS else float(value)
    except (AttributeError, TypeError, ValueError):
        return None


def pairs_of_ratings(
    rows: list[Row], columns: Mapping[str, str], bad: BadRows | None = None
) -> tuple[list[Row], list[str]]:
    """The rows of better answers with `chosen` and `rejected` in place of their own completion and
    rating, and a line that says how many there are.

    Of n answers to a prompt the best goes with the worst, the second with the second worst, as
    long as their ratings differ. Rows that hold no ratings are given back. RowError for a row
    without a rating or an answer, or `bad` counts it; UserError where no prompt has two answers of
    different ratings.
    """
    if not are_rated(rows, columns):
        return rows, []
    bad = bad or BadRows()
    groups, errors = _by_prompt(rows, columns)
    if errors and not bad.skip:
        bad.leave_out(errors[0])
    mapped_names = {path.split(".")[0] for path in columns.values()}
    made = [pair for group in groups for pair in _pairs(group, mapped_names)]
    if not made:
        raise NoPairs(
            f"{rows[0][0]}: holds ratings, and no prompt has two answers that are rated "
            "differently; `reward` learns from each rating by itself"
        )
    for error in errors:
        bad.leave_out(error)
    alone = len(rows) - len(errors) - 2 * len(made)
    more = f"; {alone:,} have no other to the same prompt that is rated differently"
    pairs = counted(len(made), "pair")
    note = f"data: {pairs} of {len(rows):,} rated answers{more if alone else ''}"
    return made, [note]


def _by_prompt(
    rows: list[Row], columns: Mapping[str, str]
) -> tuple[list[list[Rated]], list[RowError]]:
    """The rated answers to each prompt, and what is wrong with the rows that are none."""
    groups, errors = defaultdict[str, list[Rated]](list), list[RowError]()
    for place, row in rows:
        try:
            one = _checked(place, row, columns)
        except RowError as error:
            errors.append(error)
            continue
        prompt = [one[-1].get(name) for name in ("system", "prompt")]
        groups[json.dumps(prompt, default=str)].append(one)
    return list(groups.values()), errors


def scaled_ratings(rows: list[Row], columns: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """The rows with their ratings on a scale from 0, the lowest of all, to 1, and a line that says
    so. UserError where all are the same.
    """
    found = [_rated(place, row, columns) for place, row in rows]
    values = [value for value, _ in found if value is not None]
    low, high = min(values), max(values)
    if low == high:
        raise UserError(f"{rows[0][0]}: all ratings are {low:g}, so there is nothing to learn")
    made = [
        (place, dict(row) | {view.name(rating_column(view) or ""): (value - low) / (high - low)})
        if value is not None
        else (place, row)
        for (place, row), (value, view) in zip(rows, found, strict=True)
    ]
    return made, [f"data: {len(values):,} rated answers, ratings from {low:g} to {high:g}"]


def are_rated(rows: Sequence[Row], columns: Mapping[str, str]) -> bool:
    """Whether rows are rated answers, not pairs: one of the first hundred is."""
    return any(_rated(*row, columns)[0] is not None for row in rows[:LOOKED_AT])


def _checked(place: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> Rated:
    """A rated answer; RowError for a row that is none, or whose answer is empty."""
    rating, view = _rated(place, row, columns)
    lacking = [name for name in FORMATS["prompt_completion"].required if name not in view]
    if lacking:
        message = f"has no {lacking[0]!r}; its columns are {shorten(', '.join(row)) or 'none'}"
        raise RowError(place, "without a column", message)
    if rating is None:
        message = f"has no rating in {' or '.join(RATINGS)}: {shorten(str(row))}"
        raise RowError(place, "without a rating", message)
    name = view.name("completion")
    answer = as_messages(place, name, view["completion"], "assistant")
    if not answer or not says_something(answer[-1]):
        raise RowError(place, "without an answer", f"{name} is empty in {shorten(str(row))}")
    return rating, place, row, view


def _rated(
    place: str, row: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[float | None, MappedRow]:
    """A row's rating, if it is one of a prompt's completion, and the row under our names."""
    view = mapped(place, row, columns)
    if "chosen" in view or "rejected" in view:
        return None, view
    needed = FORMATS["prompt_completion"]
    view.alias((*needed.required, *needed.optional))
    name = rating_column(view)
    whole = all(name in view for name in needed.required)
    return (as_rating(view[name]) if whole and name is not None else None), view


def _pairs(group: list[Rated], kept: Collection[str]) -> list[Row]:
    """The best with the worst, and so on inwards."""
    ranked = sorted(group, key=lambda one: -one[0])
    half = len(ranked) // 2
    couples = zip(ranked[:half], reversed(ranked[-half:]), strict=True) if half else ()
    return [_pair(better, worse, kept) for better, worse in couples if better[0] > worse[0]]


def _pair(better: Rated, worse: Rated, kept: Collection[str]) -> Row:
    """The better answer's row as a pair, with the columns that `data.columns` names."""
    _, place, row, view = better
    name = rating_column(view) or ""
    gone = {view.origin.get(one, one) for one in ("completion", name)} - set(kept)
    rest = {name: value for name, value in row.items() if name not in gone}
    return place, rest | {"chosen": view["completion"], "rejected": worse[3]["completion"]}
