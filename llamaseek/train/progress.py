"""The progress of a run on the terminal: bar, tokens per second, time left, and its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from llamaseek.runtime.device import PeakRate

WATCHED = ("reward", "accuracy", "equal", "margin", "kl", "entropy", "clip_fraction", "length",
           "no_signal")  # fmt: skip
"""Metrics of post-training shown in the progress line, by their names."""

Part = str | list[str]
"""A figure of the progress line, or a title and its figures."""


def loss_parts(line: dict[str, Any], prefix: str = "") -> list[str]:
    """The loss of a metrics line, and where it is a sum also its first term, by name."""
    if f"{prefix}loss" not in line:
        return []
    terms = [name for name in line if name.startswith(f"{prefix}loss/")]
    parts = [f"loss {line[prefix + 'loss']:.3f}"]
    if len(terms) > 1:
        parts.append(f"{terms[0].rpartition('/')[2]} {line[terms[0]]:.3f}")
    return parts


def watched_parts(line: dict[str, Any], prefix: str = "") -> list[str]:
    """The watched metrics that a line has."""
    unsaid = "accuracy" if all_equal(line, prefix) else "equal"
    found = ((name, line.get(prefix + name)) for name in WATCHED if name != unsaid)
    return [f"{name} {value:.3g}" for name, value in found if value is not None]


def all_equal(line: dict[str, Any], prefix: str = "") -> bool:
    """Whether no answer of any pair is ahead, as before the first step of DPO, where the model is
    its own reference: an accuracy of 0 has no meaning then.
    """
    return line.get(f"{prefix}equal", 0.0) > 0.999  # a sum of micro-batches' shares


class TwoLines(Bar):
    """A bar that never gives way, and under it as many figures as the terminal has room for."""

    figures: tuple[Part, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The line of the bar, then the line of figures."""
        yield self.make_tasks_table(self.tasks)
        if self.figures:
            yield Text(fitted(self.figures, self.console.width), no_wrap=True)


def fitted(parts: Iterable[Part], width: int) -> str:
    """The first parts that fit into `width` columns, two blanks apart. Of a list, which begins with
    its title, as much as fits.
    """
    line = ""
    for part in parts:
        words = [part] if isinstance(part, str) else part
        starts = [" ".join(words[:n]) for n in range(min(2, len(words)), len(words) + 1)]
        longer = [f"{line}  {start}" if line else start for start in starts]
        fits = [text for text in longer if len(text) <= width]
        if not fits:
            break
        line = fits[-1]
    return line


class Progress:
    """The progress bar of a run; on a pipe, one plain line per evaluation.

    `rows` is how many rows an epoch has, where that is known, and `batch` how many a step reads.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        done: int,
        flops: float,
        peak: PeakRate | None,
        *,
        rows: int | None = None,
        batch: int = 1,
        shown: bool = True,
        console: Console | None = None,
    ) -> None:
        self.name, self.steps, self.flops, self.peak = name, steps, flops, peak
        self.rows, self.batch = rows, batch
        self.console = console or Console(stderr=True, quiet=not shown)
        self.rate = 0.0
        self.line: dict[str, Any] = {}
        self.held_out: list[str] = []
        name_column = Column(no_wrap=True, max_width=max(16, self.console.width // 4))
        self.bar = TwoLines(
            TextColumn("[bold]{task.description}", table_column=name_column),
            BarColumn(bar_width=None, table_column=Column(min_width=8, max_width=24, ratio=1)),
            TextColumn("{task.completed}/{task.total}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            TextColumn("left", table_column=Column(no_wrap=True)),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
            expand=True,
        )
        self.task = self.bar.add_task(name, total=steps, completed=done, rate="")

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
        self._show()

    def evaluated(self, done: int, scores: dict[str, float]) -> None:
        """Show the scores of an evaluation after `done` steps, and print them without a bar."""
        bits = scores.get("val_bits_per_byte")
        parts = [*loss_parts(scores, "val_"), *([f"{bits:.3f} bits per byte"] if bits else [])]
        parts += watched_parts(scores, "val_")
        when = "" if done == self.steps else f" at step {done}"
        self.held_out = [f"held out{when}:", *parts] if parts else []
        self._show()
        if not self.console.is_terminal:
            said = (" ".join([part] if isinstance(part, str) else part) for part in self.figures())
            figures = " ".join([f"{done}/{self.steps}", *said])
            self.console.print(f"{self.name} {figures}", highlight=False, soft_wrap=True)

    def _show(self) -> None:
        rate = f"{self.rate:,.0f} tok/s" if self.rate else ""
        self.bar.figures = tuple(self.figures(rate=False))
        self.bar.update(self.task, completed=self.line.get("step"), rate=rate)

    def figures(self, rate: bool = True) -> list[Part]:
        """The figures of the last step and evaluation, the most wanted ones first."""
        if not self.line:  # before the first step
            return [*self.held_out]
        held_out: list[Part] = [self.held_out] if self.held_out else []
        speed = [f"{self.rate:,.0f} tok/s"] if rate else []
        watched: list[Part] = [*watched_parts(self.line)]
        # A terminal may have no room for all; on a pipe training's own figures stand together.
        parts = [*watched, *held_out] if rate else [*held_out, *watched]
        return [*loss_parts(self.line), *parts, *self._epoch(), *speed, *self._share()]

    def _epoch(self) -> list[str]:
        if not self.rows:
            return []
        return [f"epoch {self.line['step'] * self.batch / self.rows:.2f} of {self.rows:,} rows"]

    def _share(self) -> list[str]:
        if self.peak is None:
            return []
        return [f"{self.peak.share(self.rate * self.flops):.0%} of peak"]


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
