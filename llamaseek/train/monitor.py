"""Batches of steps that were skipped, recorded in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from llamaseek.data.batch import Batch
from llamaseek.errors import UserError


class NonFiniteGuard:
    """Saves the batches of skipped steps in the run folder, and stops a run after too many."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder / "skipped", limit
        self.in_a_row = 0
        self.skipped = 0

    def saw(self, step: int, finite: bool, batch: Batch, writes: bool) -> dict[str, Any]:
        """Record the outcome of `step` (from 0) and return its entries of the metrics line.

        Raises `UserError` at the limit of steps in a row; the rank that `writes` saves batches.
        """
        if finite:
            self.in_a_row = 0
            return {}
        self.in_a_row += 1
        self.skipped += 1
        path = self.folder / f"step-{step + 1}.safetensors"
        if writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            parts = {"tokens": batch.tokens, "positions": batch.positions, "targets": batch.targets}
            tensors = {**parts, **{f"extra.{name}": x for name, x in batch.extra.items()}}
            save_file({name: x.cpu().contiguous() for name, x in tensors.items()}, path)
        if self.in_a_row >= self.limit:
            raise UserError(
                f"step {step + 1}: loss or gradient was not finite in {self.in_a_row} steps in a "
                f"row (train.max_skipped); the batch is in {path}"
            )
        return {"skipped_steps": self.skipped}
