"""Curves for TensorBoard, in the run folder's `tensorboard/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from llamaseek.train.tracking.tracker import TrackedRun, flat

FOLDER = "tensorboard"


def start(run: TrackedRun) -> TensorBoardTracker:
    """A writer of a new file of events; the run's earlier files stay beside it."""
    return TensorBoardTracker(run)


class TensorBoardTracker:
    """TensorBoard has scalars and texts; it shows no files."""

    id = ""  # the folder is the run

    def __init__(self, run: TrackedRun) -> None:
        # What an interrupted run logged after its checkpoint is hidden, not drawn twice.
        folder = str(run.folder / FOLDER)
        self.writer = SummaryWriter(folder, purge_step=run.done + 1)  # type: ignore[no-untyped-call]
        self.table("recipe", [{"key": k, "value": str(v)} for k, v in flat(run.config).items()])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar for each value."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def table(self, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """A text with a Markdown table."""
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)
        self.writer.add_text(name, text)  # type: ignore[no-untyped-call]

    def file(self, path: Path) -> None:
        """Nothing: the files lie beside the curves."""

    def close(self, completed: bool) -> None:
        """Flush to disk."""
        self.writer.close()  # type: ignore[no-untyped-call]
