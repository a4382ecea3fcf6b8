"""datatrove's executor without its log on the terminal; errors come back as they were raised.

In a module of its own, so that the processes it starts can import it by name.
"""

from __future__ import annotations

from typing import Any

import multiprocess
from datatrove.executor import LocalPipelineExecutor
from loguru import logger


class QuietExecutor(LocalPipelineExecutor):  # type: ignore[misc]
    """The same, but silent."""

    def run(self) -> Any:
        """All tasks of this machine that are not marked as done.

        The processes come from a server that has imported what every task needs.
        """
        logger.disable("datatrove")
        multiprocess.set_forkserver_preload([__name__, "llamaseek.data.clean.steps"])
        return super().run()

    def _launch_run_for_rank(self, *args: Any, **settings: Any) -> Any:
        logger.disable("datatrove")  # in the process that does the task
        return super()._launch_run_for_rank(*args, **settings)
