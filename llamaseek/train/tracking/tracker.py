"""What every experiment tracker does for a run, and which trackers there are. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from llamaseek.errors import UserError

PROJECT = "llamaseek"
"""Project or experiment of the runs where the tool's own environment variable names no other."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker receives about a run when it starts."""

    name: str
    folder: Path  # the run folder
    config: dict[str, Any]  # the resolved recipe
    done: int  # steps that are done already
    id: str | None  # the tool's identifier of the run that is resumed; none: a new run


class RunTracker(Protocol):
    """One run in one tool. Any method may raise what the tool raises."""

    id: str
    """The identifier by which the tool finds the run again; "" where it needs none."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of one line of metrics.jsonl."""

    def table(self, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """A table of texts, all rows with the same columns."""

    def file(self, path: Path) -> None:
        """A file of the run as an artifact."""

    def close(self, completed: bool) -> None:
        """Send what is left; `completed` is whether the run came to its last step."""


def check_trackers(names: Sequence[str]) -> None:
    """UserError, with the command, where the package of a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"train.track: the package {name} is not installed; pip install 'llamaseek[track]'"
            )


def open_tracker(name: str, run: TrackedRun) -> RunTracker:
    """Start or continue the run in the tool of this name."""
    tracker: RunTracker = import_module(f"{__package__}.{name}").start(run)
    return tracker


def flat(config: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Nested sections as one level of dotted keys; lists stay values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{within}{key}.")
        else:
            found[within + key] = value
    return found


def texts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of JSON as a table of texts: every column in every row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [{column: _text(row.get(column, "")) for column in columns} for row in rows]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
