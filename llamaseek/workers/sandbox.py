"""Unit tests of generated code, each in a bounded process of its own.

The process has no network where the kernel lets an ordinary user give it up, an empty folder, an
empty environment, and limits on time, memory, files and processes. That stops accidents, not an
attacker: give untrusted models a machine of their own.
"""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

FENCE = re.compile(r"```(?:python|py)?\n(.*?)(?:```|\Z)", re.DOTALL)
WORKER = Path(__file__).with_name("sandbox_worker.py")


def code_of(answer: str) -> str:
    """The code of an answer: its first fenced block, or all of it."""
    found = FENCE.search(answer)
    return found[1] if found else answer


def passes_tests(pairs: Sequence[tuple[str, str]], timeout: float) -> list[float]:
    """1.0 for each (answer, tests) whose code passes its tests within `timeout` seconds."""
    with ThreadPoolExecutor(cpu_count() or 1) as pool:
        return list(pool.map(lambda pair: float(_passes(pair[0], pair[1], timeout)), pairs))


def _passes(answer: str, tests: str, timeout: float) -> bool:
    done = secrets.token_hex(16)  # printed at the end, so that sys.exit(0) alone passes nothing
    source = f"{code_of(answer)}\n\n{tests}\n\nprint({done!r})\n"
    command = [sys.executable, "-I", "-S", str(WORKER), str(max(int(timeout), 1))]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        try:
            ran = subprocess.run(
                command, input=source.encode(), cwd=folder, env={}, stdout=output,
                stderr=subprocess.DEVNULL, timeout=timeout + 1, check=False, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        output.seek(0)
        return ran.returncode == 0 and output.read().rstrip().endswith(done.encode())
