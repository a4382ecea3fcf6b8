"""Tasks on all cores and machines, through datatrove's executor.

It marks each finished task with a file and skips it in the next run, so that a killed run goes on
where it was. Machines share the tasks of a step by rank over a shared folder; each waits for the
others before the next step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError

POLL = 0.5  # seconds between looks at what other machines have finished


@dataclass(frozen=True)
class CleaningWorkers:
    """Who works: processes here, and which of how many machines this one is."""

    workers: int
    machine: int = 0
    machines: int = 1

    def run(self, tasks: int, run: Callable[[int], None], folder: Path, name: str) -> None:
        """All `tasks`, this machine's share of them here; returns when every one is done.

        `folder` is the run's, where the marks of step `name` lie.
        """
        ends = [tasks * (self.machine + more) // self.machines for more in (0, 1)]
        share = range(*ends)
        executor = _executor(
            pipeline=[Task(run)],
            tasks=tasks,
            workers=max(min(self.workers, len(share)), 1),
            local_tasks=len(share),
            local_rank_offset=share.start,
            logging_dir=str(folder / "marks" / name),
        )
        if share:
            executor.run()
        while executor.get_incomplete_ranks(range(tasks)) and folder.is_dir():
            time.sleep(POLL)  # the folder goes when the first machine is done with everything


@dataclass(frozen=True)
class Task:
    """A step as datatrove calls it: (documents, rank, world size); it passes no documents on."""

    run: Callable[[int], None]

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        self.run(rank)


def _executor(**settings: Any) -> Any:
    try:
        from llamaseek.data.clean.executor import QuietExecutor
    except ImportError:
        raise UserError("data run needs datatrove: pip install 'llamaseek[data]'") from None
    return QuietExecutor(**settings)
