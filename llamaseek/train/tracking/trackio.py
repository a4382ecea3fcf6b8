"""Trackio, local by default; `TRACKIO_DIR` says where, `TRACKIO_SPACE_ID` names a Space."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import trackio

from llamaseek.train.tracking.tracker import PROJECT, TrackedRun


def start(run: TrackedRun) -> TrackioTracker:
    """A run of the project that TRACKIO_PROJECT names, or of `llamaseek`."""
    return TrackioTracker(run)


class TrackioTracker:
    """Trackio finds a run again by its name; of several with one name it takes the newest."""

    def __init__(self, run: TrackedRun) -> None:
        self.id = run.id or run.name
        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=self.id,
            resume="allow" if run.id else "never",
            config=run.config,
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row of the run's log."""
        self.run.log(dict(values), step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """A table in the run's page."""
        self.run.log(
            {name: trackio.Table(rows=[list(r.values()) for r in rows], columns=list(rows[0]))}
        )

    def file(self, path: Path) -> None:
        """An artifact of the run."""
        self.run.log_artifact(str(path), type="run-file")

    def close(self, completed: bool) -> None:
        """Wait until everything is written or sent."""
        self.run.finish()
