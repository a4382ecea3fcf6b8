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
    """`recipe.yaml`, `metrics.jsonl`, `checkpoints/step-N`, and at the end `model`.

    A run that trains adapters also leaves `adapter`, a PEFT folder; `model` has them merged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.final = path / "model"
        self.adapter = path / "adapter"  # of a run that trains adapters

    def check(self, resume: bool, overwrite: bool) -> None:
        """Refuse to start over a run that is there, unless asked to."""
        steps = self.saved_steps()
        if not (resume or overwrite) and (steps or self.final.exists()):
            held = f"a run at step {steps[-1]}" if steps else "a model"
            raise UserError(
                f"{self.path}: holds {held}; --resume continues it, --overwrite starts again"
            )
        if resume and not steps:
            raise UserError(f"{self.path}: holds no checkpoint to resume from")

    def create(self) -> None:
        """Make the folder; `UserError` where it cannot be written."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        for folder in (self.path, self.checkpoints):
            for left in folder.glob(".partial-*"):
                remove(left)

    def saved_steps(self) -> list[int]:
        """Steps with a whole checkpoint, in order."""
        return sorted(int(p.name.removeprefix("step-")) for p in self.checkpoints.glob("step-*"))

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lives."""
        return self.checkpoints / f"step-{step}"

    def partial(self, target: Path) -> Path:
        """Where `target` lies until it is whole."""
        return target.parent / f".partial-{target.name}"

    def save(self, target: Path, write: Callable[[Path], None]) -> None:
        """Let `write` fill a folder beside `target`, make it durable, and rename it into place."""
        partial = self.partial(target)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            write(partial)
            sync(partial)
            self._move_away(target)
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            reason = error.strerror or str(error)
            raise UserError(f"{target}: could not be saved ({reason}); nothing was left") from None
        sync_one(target.parent)

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints."""
        for step in self.saved_steps()[:-keep]:
            self._move_away(self.checkpoint(step))

    def clear(self) -> None:
        """Remove what an earlier run left: metrics, checkpoints, the final model."""
        self.metrics.unlink(missing_ok=True)
        self._move_away(self.path / "tensorboard")
        for step in self.saved_steps():
            self._move_away(self.checkpoint(step))
        self._move_away(self.final)
        self._move_away(self.adapter)

    def _move_away(self, folder: Path) -> None:
        """Remove a folder; renamed first, so that half of one never looks whole."""
        if folder.exists():
            old = folder.parent / f".partial-old-{folder.name}"
            remove(old)
            folder.rename(old)
            remove(old)

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> dict[str, Any]:
        """Drop metrics after `step`, which a resumed run will write again; the last step's line."""
        if not self.metrics.exists():
            return {}
        kept: list[str] = []
        last: dict[str, Any] = {}
        for line in self.metrics.read_text().splitlines():
            try:
                found = json.loads(line)
                if found["step"] <= step:
                    kept.append(line)
                    last = found if "loss" in found else last
            except (ValueError, KeyError):
                break  # the kill came in the middle of this line
        replacement = self.metrics.with_suffix(".partial")
        replacement.write_text("".join(line + "\n" for line in kept))
        replacement.replace(self.metrics)
        return last


def remove(path: Path) -> None:
    """Remove a file, a folder, or a symbolic link without what it points to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


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
