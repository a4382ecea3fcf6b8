"""Campaigns that are tests of the project, run at their full size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.attack.figures import Figure

ROOT = Path(__file__).parents[2]
FULL = {"LLAMASEEK_SERVE_FULL": "1"}
COUNT = re.compile(r"(\d+) (passed|failed|error|skipped)")


def suite(tried: str, promise: str, *words: str) -> Callable[[], Iterator[Figure]]:
    """A campaign of the tests that pytest selects by these words."""

    def campaign() -> Iterator[Figure]:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "parallel or not parallel", *words]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | FULL, capture_output=True, text=True, check=False
        )
        last = done.stdout.strip().splitlines()[-1]
        seen = ", ".join(" ".join(found) for found in COUNT.findall(last)) or "none ran"
        yield Figure(f"{tried} (`{words[0]}`)", f"tests: {seen}", promise, done.returncode == 0)

    return campaign


GUARD = suite(
    "67 places for a text in four protocols, 8 ways to end a conversation",
    "no text reaches the model unjudged",
    "tests/serve/test_guard_views.py",
    "tests/serve/test_guard_protocols.py",
)
