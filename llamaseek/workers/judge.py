"""A worker's handler that tests a program: it starts the program's process and calls what it has.

The program comes first and the tests in a second job, when its process has been forked: so
neither they nor what they expect are ever in its memory.

    {"program", "mode", "seconds", "memory", "folder", "entry_point"}   runs the program
    {"tests"}                                                           runs the tests

Both replies are `{"passed", "reason"}`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from llamaseek.workers import answer, confine
from llamaseek.workers.channel import Channel, Closed, pair
from llamaseek.workers.remote import Broken, Connection

Reply = tuple[dict[str, Any], bytes]


def prepare(blob: bytes) -> Callable[[], Callable[[Mapping[str, Any], bytes], Reply]]:
    """See `child`."""
    return lambda: TestedProgram().answer


class TestedProgram:
    """One program and its tests."""

    def __init__(self) -> None:
        self._pid = 0
        self._connection: Connection | None = None
        self._module = ModuleType("__main__")  # which is where `unittest.main()` looks for tests

    def answer(self, job: Mapping[str, Any], blob: bytes) -> Reply:
        """Do one job; the program's process ends with the second one, or when it fails."""
        found = self._start(job) if "program" in job else self._test(str(job["tests"]))
        if not found["passed"] or "tests" in job:
            self._end()
        return found, b""

    def _start(self, job: Mapping[str, Any]) -> dict[str, Any]:
        ours, theirs = pair()
        seconds = float(job["seconds"])
        limits = (int(job["memory"]), int(seconds) + 1)
        self._pid = confine.start(job["mode"], theirs.fileno(), *limits, job["folder"])
        theirs.close()
        return self._load(Channel(ours, answer.LARGEST), job, time.monotonic() + seconds)

    def _load(self, channel: Channel, job: Mapping[str, Any], end: float) -> dict[str, Any]:
        try:
            channel.send({"program": job["program"]}, seconds=float(job["seconds"]))
            found = channel.receive(max(0.0, end - time.monotonic())).value
            if "refused" in found:
                return verdict(False, str(found["refused"]))
            if "raised" in found:
                return verdict(False, f"the program raises {found['raised']}")
            self._connection = Connection(channel, end)
            names = self._connection.namespace(found["names"], job.get("entry_point"))
            self._module.__dict__.update(names)
        except TimeoutError:
            return verdict(False, "the program takes too long")
        except Closed:
            return verdict(False, "the program ends its process")
        except Exception as error:
            return verdict(False, f"the program answers with nonsense ({type(error).__name__})")
        return verdict(True, "the program runs")

    def _test(self, tests: str) -> dict[str, Any]:
        assert self._connection is not None
        sys.modules["__main__"], sys.argv = self._module, ["tests"]
        try:
            exec(compile(tests, "tests", "exec"), self._module.__dict__)
        except SystemExit as error:  # as `unittest.main()` ends
            if error.code not in (None, 0, False):
                return verdict(False, "the tests fail")
        except AssertionError:
            return verdict(False, "a test fails")
        except Broken as error:
            return verdict(False, f"the program {error}")
        except BaseException as error:
            return verdict(False, f"a test raises {type(error).__name__}")
        if not self._connection.uses:
            return verdict(False, "the tests use nothing of the program")
        return verdict(True, "the tests pass")

    def _end(self) -> None:
        """Kill the program's process."""
        if self._pid:
            confine.end(self._pid)
        self._pid = 0


def verdict(passed: bool, reason: str) -> dict[str, Any]:
    """What a job found."""
    return {"passed": passed, "reason": reason}
