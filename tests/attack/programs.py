"""Programs in the sandbox: hacks of rewards, bombs and ways out. No wrong one is right."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llamaseek.workers.sandbox import Sandbox, SandboxLimits
from tests.attack.figures import Figure
from tests.workers.test_sandbox import BOMBS, ESCAPES, TESTS, WRONG

SHORT = SandboxLimits(seconds=1.0, memory=1 << 28)
PROMISE = "none passes; the process that asks lives; no file outside is touched"
FORMS = (
    TESTS,
    "assert [add(n, 3) for n in (2, 5)] == [5, 8]",
    "assert {'sum': add(2, 3)} == {'sum': 5}",
    "assert sum(add(n, 1) for n in range(3)) == 6",
    "assert max(add(2, 3), add(0, 1)) == 5",
    "assert add(2, 3) in (5, 6) and isinstance(add(2, 3), int)",
    "import unittest\nclass T(unittest.TestCase):\n"
    "  def test(self): self.assertEqual(add(2, 3), 5)\nunittest.main()",
)
ENDS_WELL = ("sockets", "one large file")
"""Bombs that may end within their limits, and then are right."""


def programs(path: str) -> Iterator[tuple[str, str, str]]:
    """Name, program and tests; ways out act on the file `path` and on this process."""
    for name, (program, tests) in WRONG.items():
        for number, form in enumerate(FORMS if tests == TESTS else (tests,)):
            yield f"{name} {number}", program, form
    for name, program in BOMBS.items():
        if name not in ENDS_WELL:
            yield name, f"{program}\ndef add(a, b): return a + b", TESTS
    for name, program in ESCAPES.items():
        act = f"act({os.getpid()}, {path!r})"
        if name != "other processes":
            yield name, program.replace("PORT", "1"), act
        yield f"{name}, and wrong", program.replace("PORT", "1"), f"{act}\nassert False"


def users_files(place: Path) -> Path:
    """Folders and files that anybody may write; the one that programs are told of."""
    for name in ("mine", "deep/er/mine", "deep/notes.txt", ".hidden"):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(0o666)
    for folder in (place, place / "deep", place / "deep" / "er"):
        folder.chmod(0o777)
    return place / "mine"


def contents(place: Path) -> dict[str, tuple[int, bytes]]:
    """Every path below, its mode and its bytes."""
    return {
        str(path): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(place.rglob("*"))
    }


def passed(every: int) -> tuple[int, list[str], str, bool]:
    """How many programs ran, which passed, where, and whether files are untouched."""
    sandbox = Sandbox()
    with tempfile.TemporaryDirectory() as place:
        shared = users_files(Path(place))
        before = contents(Path(place))
        chosen = list(programs(str(shared)))[::every]
        found = sandbox.run_all([(program, tests) for _, program, tests in chosen], SHORT)
        wrong = [name for (name, _, _), each in zip(chosen, found, strict=True) if each.passed]
        whole = contents(Path(place)) == before
    mode = sandbox.confinement().mode
    sandbox.close()
    return len(chosen), wrong, mode, whole


def campaign() -> Iterator[Figure]:
    """About two minutes."""
    count, wrong, mode, whole = passed(1)
    seen = f"in {mode}: {len(wrong)} passed; files {'untouched' if whole else 'changed'}"
    yield Figure(f"{count} programs", seen, PROMISE, not wrong and whole)
