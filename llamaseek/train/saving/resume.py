"""Resuming a run: what has changed since its newest checkpoint, and the state that is restored."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from llamaseek.data.source import Source
from llamaseek.errors import UserError, bad_value
from llamaseek.parallel.collectives import on_first_rank
from llamaseek.parallel.ranks import ParallelModel
from llamaseek.train.optimizer import WeightAverage
from llamaseek.train.saving.pins import compare, read_pins
from llamaseek.train.saving.run_folder import RunFolder
from llamaseek.train.saving.state import load_source, load_state

UNPINNED = (
    "the checkpoint does not say what it was trained with (an older version wrote it): its recipe, "
    "tokenizer and data cannot be compared"
)


class Resumption:
    """Compares a run with the checkpoints in its folder and restores the newest readable one."""

    def __init__(
        self,
        folder: RunFolder,
        ranks: ParallelModel,
        optimizer: Optimizer,
        average: WeightAverage | None,
        source: Source,
    ) -> None:
        self.folder, self.ranks = folder, ranks
        self.optimizer, self.average, self.source = optimizer, average, source
        self.changed: list[str] = []  # since the checkpoint that is resumed from

    def compare(self, pins: dict[str, Any], allow_change: Sequence[str]) -> None:
        """What has changed since the newest checkpoint: refused as a UserError on all ranks, or
        kept to be logged.
        """
        on_first_rank(lambda: self._compare(pins, allow_change))

    def resume(self, last_step: int) -> tuple[int, int]:
        """The step to go on from and the tokens until there; checkpoints after it are set aside.

        (0, 0) without a checkpoint. UserError where none can be read, or all are past `last_step`.
        """
        steps = self.folder.saved_steps()
        if not steps:
            return 0, 0
        if steps[-1] > last_step:
            allowed = f"at least the {steps[-1]} that {self.folder.path} has done"
            raise bad_value("train.steps", last_step, allowed)
        errors: list[str] = []
        for step in reversed(steps):
            try:
                self._restore(self.folder.checkpoint(step))
            except UserError as error:
                errors.append(str(error))
                continue
            tokens = 0
            if self.ranks.main:
                self._set_aside(steps[steps.index(step) + 1 :], errors, step)
                tokens = self.folder.rewind(step).get("tokens", 0)
                self._log_changes(step)
            return step, tokens
        raise UserError(errors[0] + ("; nor can any before it be" if len(errors) > 1 else ""))

    def _compare(self, pins: dict[str, Any], allow_change: Sequence[str]) -> None:
        for step in reversed(self.folder.saved_steps()):
            try:
                before = read_pins(self.folder.checkpoint(step))
            except UserError:
                continue  # said when it is restored
            if not before:
                print(f"warning: {UNPINNED}", file=sys.stderr)
            else:
                self.changed = [str(change) for change in compare(before, pins, allow_change)]
            return

    def _log_changes(self, step: int) -> None:
        if self.changed:
            self.folder.log({"step": step, "changed": self.changed})
            print(f"resuming with changes: {', '.join(self.changed)}", file=sys.stderr)

    def _set_aside(self, broken: list[int], errors: list[str], step: int) -> None:
        for late, error in zip(reversed(broken), errors, strict=True):
            kept = self.folder.set_aside(late)
            print(f"warning: {error}; kept as {kept.name}, going on from {step}", file=sys.stderr)

    def _restore(self, folder: Path) -> None:
        """The state of a checkpoint; `UserError` on all ranks where one cannot read it."""
        error = None
        try:
            read_pins(folder)
            load_state(folder, self.ranks, self.optimizer, self.average)
            self.source.restore(load_source(folder, self.source.state()))
        except (UserError, LookupError, TypeError, ValueError) as failed:
            error = str(failed) if isinstance(failed, UserError) else f"{folder}: {failed!r}"
        self.ranks.agree(error)
