"""The progress bar of a run: loss, tokens per second, share of peak FLOP/s, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from llamaseek.data.batch import Batch
from llamaseek.errors import UserError

WATCHED = ("reward", "accuracy", "margin", "kl", "entropy", "clip_fraction", "length", "no_signal")
"""Metrics of post-training shown in the progress line, by their names."""


def log_line(line: dict[str, Any], prefix: str = "") -> str:
    """The watched metrics that a line has, each after a space."""
    found = ((name, line.get(prefix + name)) for name in WATCHED)
    return "".join(f" {prefix}{name} {value:.3g}" for name, value in found if value is not None)


class Progress:
    """The progress bar of a run; on a pipe, one plain line per evaluation."""

    def __init__(
        self, name: str, steps: int, done: int, flops: float, peak: float, shown: bool = True
    ) -> None:
        self.name, self.steps, self.flops, self.peak = name, steps, flops, peak
        self.console = Console(stderr=True, quiet=not shown)
        self.rate = 0.0
        self.line: dict[str, Any] = {}
        self.validation = ""
        self.bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total} {task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
        )
        self.task = self.bar.add_task(name, total=steps, completed=done, text="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, lines: list[str]) -> None:
        """Print lines above the bar."""
        for line in lines:
            self.console.print(line, highlight=False, markup=False)

    def update(self, line: dict[str, Any]) -> None:
        """Show the metrics of a finished step."""
        self.line = line
        rate = line["tokens_per_second"]
        self.rate = rate if self.rate == 0 else 0.9 * self.rate + 0.1 * rate
        self.bar.update(self.task, completed=line["step"], text=self._text())

    def evaluated(self, done: int, scores: dict[str, float]) -> None:
        """Show the scores of an evaluation in the bar, or print them if there is no bar."""
        bits = scores.get("val_bits_per_byte")
        loss = f" val {scores['val_loss']:.3f}" if "val_loss" in scores else ""
        self.validation = loss + (f" ({bits:.3f} bpb)" if bits else "") + log_line(scores, "val_")
        if not self.console.is_terminal:
            step = f"{done}/{self.steps}"
            self.console.print(
                f"{self.name} {step} {self._text()}", highlight=False, soft_wrap=True
            )

    def _text(self) -> str:
        if not self.line:  # before the first step
            return self.validation.strip()
        share = self.rate * self.flops / self.peak
        return (
            f"loss {self.line['loss']:.3f}{log_line(self.line)}{self.validation} "
            f"{self.rate:,.0f} tok/s {share:.0%} of peak"
        )


@contextmanager
def tokenizing(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar of tokenizing, before the first step; nothing on a pipe."""
    console = Console(stderr=True)
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:.0f}% of the text tokenized"),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def watch(source: str, done: int, total: int) -> None:
            if source not in tasks:
                tasks[source] = bar.add_task(f"{name} {source}", total=total)
            bar.update(tasks[source], completed=done)

        yield watch


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
