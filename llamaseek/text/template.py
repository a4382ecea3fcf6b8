"""Chat templates of model folders, which are untrusted programs, run where they can do no harm.

A template runs in jinja2's immutable sandbox, in a worker process that has no file of ours open
and is killed when it goes over its time or memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamaseek.errors import UserError, shorten
from llamaseek.workers.pool import WorkerPool
from llamaseek.workers.worker import WorkerError

SECONDS = 5.0
MEMORY = 1 << 30
LONGEST_TEMPLATE = 1_000_000
LONGEST_TEXT = 10_000_000


class TemplateRunner:
    """Renders chat templates in workers, started when they are first needed.

    Threads may share it. `seconds` is the time that one rendering may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self.pool = WorkerPool("llamaseek.workers.template", memory=MEMORY, cpu=int(seconds) + 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return TemplateRunner, (self._seconds,)

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """The text of a template. Raises UserError, on one line, whatever goes wrong in it."""
        if len(source) > LONGEST_TEMPLATE:
            raise UserError(
                f"chat template: has {len(source)} characters; at most {LONGEST_TEMPLATE} are run"
            )
        job = {"source": source, "variables": dict(variables), "limit": LONGEST_TEXT}
        try:
            return str(self.pool.run(job, self._seconds).value.get("text", ""))
        except WorkerError as error:
            raise UserError(f"chat template: {shorten(str(error), 300)}") from None

    def close(self) -> None:
        """End the workers; the next `render` starts others."""
        self.pool.close()
