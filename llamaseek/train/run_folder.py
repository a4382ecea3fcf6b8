"""The run folder: recipe, metrics, checkpoints. A kill at any moment leaves the last one whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError


class RunFolder:
    """`recipe.yaml`, `metrics.jsonl`, `checkpoints/step-N`, and at the end `model`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.final = path / "model"

    def create(self) -> None:
        """Make the folder; `UserError` where it cannot be written."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        for left in self.path.rglob(".partial-*"):
            shutil.rmtree(left, ignore_errors=True)

    def saved_steps(self) -> list[int]:
        """Steps with a whole checkpoint, in order."""
        return sorted(int(p.name.removeprefix("step-")) for p in self.checkpoints.glob("step-*"))

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lives."""
        return self.checkpoints / f"step-{step}"

    def save(self, target: Path, write: Callable[[Path], None]) -> None:
        """Let `write` fill a folder beside `target`, make it durable, and rename it into place."""
        partial = target.parent / f".partial-{target.name}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            write(partial)
            sync(partial)
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            reason = error.strerror or str(error)
            raise UserError(f"{target}: could not be saved ({reason}); nothing was left") from None
        sync_one(target.parent)

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints."""
        for step in self.saved_steps()[:-keep]:
            # Renamed first: a half-removed folder must not look like a checkpoint.
            old = self.checkpoints / f".partial-old-{step}"
            self.checkpoint(step).rename(old)
            shutil.rmtree(old)

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """Drop metrics after `step`, which a resumed run will write again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                break  # the kill came in the middle of this line
        replacement = self.metrics.with_suffix(".partial")
        replacement.write_text("".join(line + "\n" for line in kept))
        replacement.replace(self.metrics)


def sync(folder: Path) -> None:
    """Flush every file of a folder to the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync_one(path)


def sync_one(path: Path) -> None:
    """Flush one file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
