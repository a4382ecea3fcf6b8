"""All trackers of a run. One that fails is dropped with a warning and never stops the run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

from llamaseek.errors import shorten
from llamaseek.files import read_json_object, read_jsonl, write_json
from llamaseek.recipe.schema import Recipe
from llamaseek.train.tracking.tracker import RunTracker, TrackedRun, open_tracker, texts

IDS = "tracking.json"
"""File of the run folder: each tool's identifier of the run, so that `--resume` continues it."""
TABLES = ("samples", "before", "after")
"""Files of rows in a run folder, `NAME.jsonl`, that are shown as tables."""
FILES = ("recipe.yaml", "metrics.jsonl", *(f"{name}.jsonl" for name in TABLES))


class Trackers:
    """The trackers that `train.track` names; on the first rank only."""

    def __init__(self, recipe: Recipe, done: int) -> None:
        self.folder = recipe.folder
        known = self._known() if done else {}
        config = recipe.model_dump(mode="json")
        self.open: dict[str, RunTracker] = {}
        for name in dict.fromkeys(recipe.train.track):
            run = TrackedRun(recipe.name, self.folder, config, done, known.get(name))
            self._try(name, partial(self._start, name, run))
        write_json(self.folder / IDS, known | {n: t.id for n, t in self.open.items() if t.id})

    def log(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl; of its values the numbers."""
        values = {
            name: value
            for name, value in line.items()
            if name != "step" and isinstance(value, int | float)
        }
        self._each(methodcaller("log", line["step"], values))

    def finish(self, report: Path | None) -> None:
        """Samples, the files of the run and its report, once they are written."""
        for name in TABLES:
            path = self.folder / f"{name}.jsonl"
            if path.exists() and (rows := read_jsonl(path)):
                self._each(methodcaller("table", name, texts(rows)))
        paths = [self.folder / name for name in FILES] + ([report] if report else [])
        for path in (path for path in paths if path.exists()):
            self._each(methodcaller("file", path))

    def close(self, completed: bool) -> None:
        """End the run in every tool."""
        self._each(methodcaller("close", completed))
        self.open.clear()

    def _start(self, name: str, run: TrackedRun) -> None:
        self.open[name] = open_tracker(name, run)

    def _known(self) -> dict[str, str]:
        path = self.folder / IDS
        return {str(k): str(v) for k, v in read_json_object(path).items()} if path.exists() else {}

    def _each(self, action: Callable[[RunTracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            self._try(name, partial(action, tracker))

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tool raises: its server is away, its disk full
            self.open.pop(name, None)
            why = shorten(str(error) or repr(error))
            print(f"warning: train.track: {name} failed and gets no more: {why}", file=sys.stderr)
