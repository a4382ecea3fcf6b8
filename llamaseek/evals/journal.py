"""Answers of an evaluation on disk, so that one that was killed goes on where it was.

The first line says what was asked, each following one holds the answers of a chunk of requests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError


class Journal:
    """The file `path`; a new one, or with `resume` the one that is there.

    Raises UserError where it is that of another model or of other settings, named by their keys.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], resume: bool = False) -> None:
        self._found: dict[str, Any] = {}
        kept = _whole_lines(path) if resume and path.is_file() else []
        if kept:
            first, *chunks = map(json.loads, kept)
            self._check(path, first, json.loads(json.dumps(settings)))
            self._found = {line["chunk"]: line["answers"] for line in chunks}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if kept else "wb")
        self._file.truncate(sum(map(len, kept)))
        self._file.seek(0, os.SEEK_END)
        if not kept:
            self._write(settings)

    @staticmethod
    def _check(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                raise UserError(
                    f"{path}: was written with {key}={before.get(key)!r}, not {now.get(key)!r}; "
                    "resume with the same settings, or give another --out"
                )

    def get(self, chunk: str) -> list[dict[str, Any]] | None:
        """The answers of a chunk, if they are there."""
        return self._found.get(chunk)

    def put(self, chunk: str, answers: list[dict[str, Any]]) -> None:
        """Keep the answers of a chunk."""
        self._write({"chunk": chunk, "answers": answers})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a journal up to one that a kill cut short."""
    lines = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        lines.append(line)
    return lines
