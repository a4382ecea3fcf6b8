"""Invalid rows: raise an error, or skip them and report the count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llamaseek.errors import UserError
from llamaseek.recipe.schema import DataRecipe

HINT = "data.bad_rows=skip leaves such rows out"
Row = tuple[str, dict[str, Any]]  # where it stands, what it says
Made = TypeVar("Made")


class RowError(UserError):
    """An invalid row; `reason` is the name under which such rows are counted."""

    def __init__(self, place: str, reason: str, message: str) -> None:
        super().__init__(f"{place}: {message}")
        self.place, self.reason, self.message = place, reason, message

    def hinted(self, hint: str) -> RowError:
        """The same error with a hint at its end, unless it says that itself."""
        if not hint or hint in self.message:
            return self
        return RowError(self.place, self.reason, f"{self.message}; {hint}")


class NoRows(UserError):
    """All rows were skipped."""


@dataclass
class BadRows:
    """What `data.bad_rows` asks for, and what was skipped so far."""

    skip: bool = False
    used: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # reason → where it was first seen
    unused: Counter[str] = field(default_factory=Counter)  # columns that nothing read
    notes: list[str] = field(default_factory=list)  # what else there is to say, a line each
    hint: str = ""  # at the end of an error: what leaves such rows out

    @classmethod
    def of(cls, data: DataRecipe) -> BadRows:
        """As a recipe asks for it."""
        return cls(data.bad_rows == "skip", hint=HINT)

    @property
    def skipped(self) -> int:
        """Rows left out."""
        return self.reasons.total()

    def keep(self, rows: Iterable[Row], make: Callable[[str, Any], Made]) -> Iterator[Made]:
        """`make(place, row)` of every row it succeeds for; `NoRows` if none is left."""
        before = self.used
        yield from self.usable(rows, make)
        if self.used == before:
            why = f"; the first: {next(iter(self.first.values()))}" if self.first else ""
            raise NoRows(f"data: no usable rows ({self.skipped} skipped{why})")

    def usable(self, rows: Iterable[Row], make: Callable[[str, Any], Made]) -> Iterator[Made]:
        """The same, but none is as good as any."""
        for place, row in rows:
            try:
                made = make(place, row)
            except RowError as error:
                self.leave_out(error)
                continue
            self.used += 1
            yield made

    def leave_out(self, error: RowError) -> None:
        """Count a row that cannot be used; without `skip`, raise its error with the hint."""
        if not self.skip:
            raise error.hinted(self.hint)
        self.reasons[error.reason] += 1
        self.first.setdefault(error.reason, str(error))

    def summary(self) -> list[str]:
        """How many rows were skipped, one line a reason with its first row; then what of the others
        was not used.
        """
        total = self.used + self.skipped
        lines = [f"  {count} {reason}; first: {self.first[reason]}"
                 for reason, count in self.reasons.most_common()]  # fmt: skip
        skipped = [f"data: skipped {self.skipped} of {total} rows", *lines] if lines else []
        return [*skipped, *self.notes, *unused_line(self.unused)]


def unused_line(counts: Mapping[str, int]) -> list[str]:
    """The line that names the columns, and keys of messages, that nothing read."""
    named = ", ".join(f"{name} ({count:,})" for name, count in counts.items())
    return [
        f"data: not used, with the count of each: {named}; data.columns can map them, data.ignore "
        "says that they are not needed"
    ] if named else []  # fmt: skip
