"""Power that fails between any two operations on files leaves a good checkpoint.

`python -m tests.attack.power_cut RECIPE NUMBER` trains, or goes on, until the operation of that
number (a rename, a flush to the disk, a removal in the run's folder). There it cuts what was not
flushed to half its length, and ends the process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.attack.figures import Figure

ROOT = Path(__file__).parents[2]
CUT, FIRST_SAVE = 99, 2
PROMISE = "a good checkpoint at every instant; the resumed run ends with the same bits"


class Disk:
    """Counts operations in a folder and knows what was flushed."""

    def __init__(self, folder: Path, last: int) -> None:
        self.folder, self.last, self.count = folder, last, 0
        self.flushed: set[int] = set()

    def counted(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        """The operation, before which the power may fail once there is a checkpoint."""

        def act(*given: Any, **named: Any) -> Any:
            if any(self.folder.glob("checkpoints/step-*")):
                self.count += 1
                if self.count == self.last:
                    self.cut()
            return operation(*given, **named)

        return act

    def flush(self, handle: int) -> None:
        """Stands for os.fsync."""
        self.flushed.add(os.fstat(handle).st_ino)

    def cut(self) -> None:
        """Lose half of each file that was not flushed, and end."""
        for path in self.folder.glob("checkpoints/**/*"):
            about = path.stat()
            if path.is_file() and about.st_ino not in self.flushed:
                os.truncate(path, about.st_size // 2)
        os._exit(CUT)


def run(path: Path, last: int) -> None:
    """Train a recipe; with `last` above 0 the power fails at that operation."""
    from llamaseek.recipe.load import load_recipe
    from llamaseek.train.jobs.pretrain import build_job
    from llamaseek.train.loop import train

    recipe = load_recipe(path, [])
    if last:
        disk = Disk(recipe.folder, last)
        os.fsync = disk.counted(disk.flush)  # type: ignore[assignment]
        os.rename = disk.counted(os.rename)
        shutil.rmtree = disk.counted(shutil.rmtree)  # type: ignore[assignment]
    resume = (recipe.folder / "checkpoints").exists()
    train(build_job(recipe), resume=resume)


def ended(path: Path, last: int = 0) -> int:
    """The exit code of `run` in a process of its own."""
    words = [sys.executable, "-m", "tests.attack.power_cut", str(path), str(last)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, CUT), done.stderr[-2000:]
    return done.returncode


def cuts(place: Path, numbers: list[int]) -> Iterator[tuple[bool, bool]]:
    """For each: whether the power failed before the run's end, and whether the model is the same.

    Operations are counted from the first checkpoint on. A good checkpoint is one that a run goes on
    from; where there is none, `resume` is an error.
    """
    from safetensors.torch import load_file

    from llamaseek.recipe.load import save_recipe
    from tests.train.tiny import recipe

    def made(name: str) -> tuple[Path, Path]:
        folder = place / name
        folder.mkdir()
        steps = {"train__save_every": FIRST_SAVE, "train__keep": 1, "train__eval_every": 50}
        found = recipe(folder, **steps)
        path = folder / "recipe.yaml"
        save_recipe(found, path)
        return path, found.folder

    path, whole = made("whole")
    ended(path)
    wanted = (whole / "model" / "model.safetensors").read_bytes()
    assert load_file(whole / "model" / "model.safetensors")
    for number in numbers:
        path, folder = made(str(number))
        failed = ended(path, number) == CUT
        if failed:
            ended(path)
        yield failed, (folder / "model" / "model.safetensors").read_bytes() == wanted


def campaign() -> Iterator[Figure]:
    """About four minutes."""
    with TemporaryDirectory() as place:
        found = list(cuts(Path(place), [1 + 3 * n for n in range(20)]))
    failed = sum(cut for cut, _ in found)
    same = sum(same for _, same in found)
    seen = f"{failed} cuts before the end; {same} of {len(found)} models with the same bits"
    yield Figure("20 power cuts, `keep: 1`", seen, PROMISE, same == len(found) and failed >= 15)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
