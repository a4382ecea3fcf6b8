"""Weights & Biases; `WANDB_MODE=offline` keeps the run on this machine, in the run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb

from llamaseek.train.tracking.tracker import PROJECT, TrackedRun


def start(run: TrackedRun) -> WandbTracker:
    """A run of the project that WANDB_PROJECT names, or of `llamaseek`."""
    return WandbTracker(run)


class WandbTracker:
    """The step is a value of its own: wandb's refuses to go back, as a resumed run does."""

    def __init__(self, run: TrackedRun) -> None:
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            dir=run.folder,
            id=run.id,
            resume="allow" if run.id else None,
            config=run.config,
            allow_val_change=True,
        )
        self.id = self.run.id
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row of the run's history."""
        self.run.log({**values, "step": step})

    def table(self, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """A table in the run's page."""
        data = [list(row.values()) for row in rows]
        self.run.log({name: wandb.Table(columns=list(rows[0]), data=data)})

    def file(self, path: Path) -> None:
        """An artifact of the run."""
        self.run.log_artifact(str(path), type="run-file")

    def close(self, completed: bool) -> None:
        """Wait until everything is sent, or written where the run is offline."""
        self.run.finish(exit_code=0 if completed else 1)
