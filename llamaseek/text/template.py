"""Strangers' chat templates, run where they can do no harm.

A template is a program: it runs in jinja2's immutable sandbox, in a process of its own that has
no file of ours open, and is killed when its time is up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError, shorten

SECONDS = 5.0
START_SECONDS = 60.0
LONGEST_TEMPLATE = 1_000_000
LONGEST_TEXT = 10_000_000
WORKER = Path(__file__).with_name("template_worker.py")


class TemplateRunner:
    """Renders chat templates in a child process, started when it is first needed.

    Threads take turns. `seconds` is the time a template has.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._owner = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return TemplateRunner, (self._seconds,)

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """The text of a template. Raises UserError, on one line, whatever goes wrong in it."""
        if len(source) > LONGEST_TEMPLATE:
            raise UserError(
                f"chat template: has {len(source)} characters; at most {LONGEST_TEMPLATE} are run"
            )
        request = {"source": source, "variables": dict(variables), "limit": LONGEST_TEXT}
        with self._lock:
            found = self._ask(json.dumps(request))
        if "error" in found:
            raise UserError(f"chat template: {shorten(str(found['error']), 300)}")
        return str(found["text"])

    def close(self) -> None:
        """End the child; the next `render` starts another."""
        if self._child is not None:
            _end(self._child)
            self._child = None

    def _ask(self, request: str) -> dict[str, Any]:
        child = self._child
        ours = self._owner == os.getpid()  # after a fork the child is another's
        if child is None or not ours or child.poll() is not None:
            child = self._child = _start()
            self._owner = os.getpid()
            weakref.finalize(self, _end, child)
            ready = self._exchange(child, None, START_SECONDS)
            if "error" in ready:
                return ready
        return self._exchange(child, request, self._seconds)

    def _exchange(
        self, child: subprocess.Popen[str], request: str | None, seconds: float
    ) -> dict[str, Any]:
        """The child's next line, as JSON; if it has none in time the child is killed."""
        assert child.stdin is not None and child.stdout is not None
        timer = threading.Timer(seconds, child.kill)
        timer.start()
        try:
            if request is not None:
                child.stdin.write(request + "\n")
                child.stdin.flush()
            line = child.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if line.endswith("\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.close()
        return {"error": f"takes longer than {seconds:g} seconds" if late else "ends its process"}


def _start() -> subprocess.Popen[str]:
    keep = {name: os.environ[name] for name in ("TZ", "LANG") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-I", str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env=keep,
        cwd="/" if os.name == "posix" else None,
    )


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue
