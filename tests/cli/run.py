"""Run the command line in this process or in one of its own."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamaseek.cli.main import main


@dataclass(frozen=True)
class Result:
    """What a command printed and its exit code."""

    code: int
    out: str
    err: str


class Cli:
    """Calls `llamaseek` in this process, with captured output."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capfd = capfd

    def __call__(self, *words: str, stdin: str = "") -> Result:
        self.monkeypatch.setattr(sys, "argv", ["llamaseek", *map(str, words)])
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        self.capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = self.capfd.readouterr()
        return Result(code, out, err)


def process(*words: str, cwd: Path | None = None, stdin: str = "") -> Result:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "llamaseek", *words]
    done = subprocess.run(
        command, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=600, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)
