"""The same numbers as `metrics.jsonl`, for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class Curves:
    """Writes every number of a metrics line under its name."""

    def __init__(self, folder: Path, done: int) -> None:
        # What an interrupted run logged after its checkpoint is hidden, not drawn twice.
        self.writer = SummaryWriter(str(folder), purge_step=done + 1)  # type: ignore[no-untyped-call]

    def log(self, line: dict[str, Any]) -> None:
        """One metrics line."""
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                self.writer.add_scalar(name, value, line["step"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush to disk."""
        self.writer.close()  # type: ignore[no-untyped-call]
