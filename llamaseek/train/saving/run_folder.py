"""The run folder: recipe, metrics, checkpoints. A kill at any moment leaves the last one whole.

Names with a meaning: `.partial-NAME` is being written or removed and never read; `.old-NAME` is
whole, and stands in for `NAME` while a new one takes its place.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError
from llamaseek.files import disk_reason
from llamaseek.train.saving.lock import check_free

OLD = ".old-"
STEP = re.compile(r"(?:\.old-)?step-(0|[1-9][0-9]*)", re.ASCII)
BROKEN = "broken-"


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
        self.unwritten: list[str] = []  # lines of the metrics that the disk had no room for

    def check(self, resume: bool, overwrite: bool) -> None:
        """Refuse to start over a run that is there, unless asked to, or beside one at work."""
        check_free(self.path)
        steps = self.saved_steps()
        if not (resume or overwrite) and (steps or self.final.exists()):
            held = f"a run at step {steps[-1]}" if steps else "a model"
            raise UserError(
                f"{self.path}: holds {held}; --resume continues it, --overwrite starts again"
            )
        if resume and not steps:
            raise UserError(f"{self.path}: holds no checkpoint to resume from")

    def create(self) -> None:
        """Make the folder, and set right what a kill left there.

        Raises `UserError` where it cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            sync_one(self.path)
            for folder in (self.path, self.checkpoints):
                for left in folder.glob(".partial-*"):
                    remove(left)
                for old in folder.glob(OLD + "*"):
                    self._put_back(old)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _put_back(self, old: Path) -> None:
        """A folder whose place was to be taken: its place is free, or has been taken."""
        target = old.with_name(old.name.removeprefix(OLD))
        if os.path.lexists(target):
            self._move_away(old)
        else:
            old.rename(target)

    def saved_steps(self) -> list[int]:
        """Steps with a whole checkpoint, in order; other names beside them are passed over."""
        names = [p.name for p in self.checkpoints.glob("*step-*") if p.is_dir()]
        return sorted({int(found[1]) for found in map(STEP.fullmatch, names) if found})

    def set_aside(self, step: int) -> Path:
        """Keep a checkpoint that cannot be read under another name; that name."""
        broken = self.checkpoints / f"{BROKEN}step-{step}"
        self._move_away(broken)
        self.checkpoint(step).rename(broken)
        return broken

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lives."""
        return self.checkpoints / f"step-{step}"

    def partial(self, target: Path) -> Path:
        """Where `target` lies until it is whole."""
        return target.parent / f".partial-{target.name}"

    def save(self, target: Path, write: Callable[[Path], None], size: int = 0) -> None:
        """Let `write` fill a folder of about `size` bytes beside `target`, make it durable, and
        rename it into place. What is there stays whole, and is removed when the new one is there.
        """
        partial, old = self.partial(target), target.with_name(OLD + target.name)
        remove(partial)
        try:
            partial.mkdir(parents=True)
            if size > shutil.disk_usage(partial).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(partial)
            sync(partial)
            if os.path.lexists(target):
                self._move_away(old)
                target.rename(old)
            partial.rename(target)
            sync_one(target.parent)
            self._move_away(old)
        except OSError as error:
            reason = disk_reason(error, partial.parent, size)
            remove(partial)
            if old.exists():
                self._put_back(old)
            raise UserError(f"{target}: could not be saved ({reason}); nothing was left") from None

    def prune(self, keep: int, spared: int | None = None) -> None:
        """Remove all but the newest `keep` checkpoints and the one of step `spared`."""
        for step in self.saved_steps()[:-keep]:
            if step != spared:
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
        if os.path.lexists(folder):
            old = folder.parent / f".partial-old-{folder.name}"
            remove(old)
            folder.rename(old)
            remove(old)

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`; what cannot be written is kept for the next time."""
        self.unwritten.append(json.dumps(line) + "\n")
        try:
            append(self.metrics, "".join(self.unwritten))
            self.unwritten.clear()
        except OSError as error:
            if len(self.unwritten) == 1:
                reason = disk_reason(error, self.path)
                print(f"warning: {self.metrics}: cannot be written ({reason})", file=sys.stderr)

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
            except (ValueError, LookupError, TypeError):
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


def append(path: Path, text: str) -> None:
    """Add text to a file, all or nothing of it."""
    with path.open("ab") as file:
        before = file.tell()
        try:
            file.write(text.encode())
            file.flush()
        except OSError:
            os.truncate(path, before)
            raise


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
