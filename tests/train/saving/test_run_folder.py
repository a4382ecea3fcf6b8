"""A run folder at every instant: a step saved again, a full disk, a second process."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystem

from llamaseek.errors import UserError
from llamaseek.recipe.load import save_recipe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import Interrupted, train
from llamaseek.train.saving import lock
from llamaseek.train.saving.run_folder import RunFolder
from tests.cli.run import Cli, process
from tests.train.saving.runs import copied_run, weights, whole_run
from tests.train.tiny import recipe

OPERATIONS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "open")


class Crash(BaseException):
    """The process ends here."""


class Disk:
    """Counts operations on the file system, and ends or fails at the given one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        self.error, self.left, self.reached = error, -1, False
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def stop_after(self, count: int) -> None:
        self.left, self.reached = count, False

    def _counted(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                self.left, self.reached = -1, True
                raise self.error
            self.left -= 1
            return operation(*args, **kwargs)

        return counted


def write(text: str) -> Callable[[Path], None]:
    """A checkpoint of two files that say the same."""

    def into(folder: Path) -> None:
        (folder / "state").mkdir()
        for name in ("model", "state/weights"):
            (folder / name).write_text(text)

    return into


def held(folder: RunFolder, step: int) -> str:
    """What a checkpoint says, if it is whole."""
    found = {(folder.checkpoint(step) / n).read_text() for n in ("model", "state/weights")}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("error", [Crash(), OSError(errno.EIO, "Input/output error")])
def test_saving_a_step_again_never_leaves_fewer(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, error)
    for count in range(100):
        folder = RunFolder(tmp_path / str(count))
        folder.create()
        folder.save(folder.checkpoint(8), write("old"))
        disk.stop_after(count)
        try:
            folder.save(folder.checkpoint(8), write("new"))
            folder.prune(1)
        except (Crash, UserError):
            pass
        disk.left = -1
        again = RunFolder(folder.path)
        assert again.saved_steps() == [8]  # before anything is set right, as `--resume` asks
        again.create()
        assert again.saved_steps() == [8] and held(again, 8) in ("old", "new")
        names = [path.name for path in again.checkpoints.iterdir()]
        assert names == ["step-8"]
        if not disk.reached:
            break
    assert count > 15 and held(again, 8) == "new"


def test_pruning_never_leaves_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relatives: the next step with `keep: 1`, the final model, a start over another run."""
    disk = Disk(monkeypatch, Crash())
    for count in range(100):
        folder = RunFolder(tmp_path / str(count))
        folder.create()
        folder.save(folder.checkpoint(2), write("old"))
        folder.save(folder.final, write("old"))
        disk.stop_after(count)
        try:
            folder.save(folder.checkpoint(4), write("new"))
            folder.prune(1)
            folder.save(folder.final, write("new"))
        except Crash:
            pass
        disk.left = -1
        again = RunFolder(folder.path)
        again.create()
        assert held(again, again.saved_steps()[-1]) in ("old", "new")
        assert (again.final / "model").read_text() == (again.final / "state/weights").read_text()
        if not disk.reached:
            break
    assert count > 25 and again.saved_steps() == [4]


def test_a_stop_just_after_a_checkpoint_saves_it_again(tmp_path: Path) -> None:
    """The case in which a run replaces its only checkpoint."""
    made = recipe(tmp_path, train__save_every=2, train__keep=1)

    def stop(step: int) -> None:
        if step == 3:
            assert RunFolder(made.folder).saved_steps() == [4]
            os.kill(os.getpid(), 15)

    with pytest.raises(Interrupted):
        train(build_job(made), on_step=stop)
    assert [path.name for path in (made.folder / "checkpoints").iterdir()] == ["step-4"]
    train(build_job(made), resume=True)


def test_a_kill_between_two_names_is_set_right(tmp_path: Path) -> None:
    made = copied_run(tmp_path)
    checkpoints = made.folder / "checkpoints"
    (checkpoints / "step-6").rename(checkpoints / ".old-step-6")
    RunFolder(made.folder).check(resume=True, overwrite=False)
    train(build_job(made), resume=True)
    ours, theirs = weights(made.folder), weights(whole_run())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class TestFullDisk:
    """One line with the folder, what is needed and what is free; the run goes on where it can."""

    def test_a_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """torch's own words for a write that was cut short: "unexpected pos 704 vs 598"."""
        create = FileSystem.create_stream
        full: list[Any] = []

        def stream(self: Any, path: Path, mode: str) -> Any:
            if path.suffix == ".distcp" and "step-2" in str(path) and "w" in mode:
                full.append(path)
                return create(self, Path("/dev/full"), mode)
            return create(self, path, mode)

        monkeypatch.setattr(FileSystem, "create_stream", stream)
        usage = os.statvfs(tmp_path)
        monkeypatch.setattr(
            "llamaseek.files.shutil.disk_usage", lambda path: Free(1000 if full else 10**12)
        )
        made = recipe(tmp_path, train__save_every=2)
        with pytest.raises(UserError, match="No space left on device: .*B are needed"):
            train(build_job(made))
        warning = capfd.readouterr().err
        assert "step-2: could not be saved (No space left on device: " in warning
        assert f"1.00 kB are free in {made.folder}/checkpoints); nothing was left" in warning
        assert usage and not list(made.folder.rglob("*step-*"))

    def test_more_than_is_free_is_not_begun(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path)
        folder.create()
        with pytest.raises(UserError, match="1,000 PB are needed, .* are free in"):
            folder.save(folder.checkpoint(2), write("new"), size=10**18)
        assert not list(folder.checkpoints.iterdir())

    def test_the_metrics(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is lost: the lines are written when there is room again, none of them in half."""
        folder = RunFolder(tmp_path)
        folder.create()
        folder.log({"step": 1})
        folder.metrics.rename(tmp_path / "kept")
        folder.metrics.symlink_to("/dev/full")
        with monkeypatch.context() as patch:
            patch.setattr(os, "truncate", lambda path, size: None)
            folder.log({"step": 2})
            folder.log({"step": 3})
        folder.metrics.unlink()
        (tmp_path / "kept").rename(folder.metrics)
        folder.log({"step": 4})
        lines = folder.metrics.read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]

    def test_the_state_of_a_source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """safetensors raises an error of its own."""
        from llamaseek.data.source import SourceState
        from llamaseek.train.saving.state import save_source

        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "source.safetensors").mkdir()  # cannot be written
        with pytest.raises(OSError):
            save_source(tmp_path, SourceState(tensors={"a": torch.ones(2)}))


class Free:
    """What `shutil.disk_usage` gives."""

    def __init__(self, free: int) -> None:
        self.free = free


HOLDER = """
import sys
from pathlib import Path
from llamaseek.train.saving.lock import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


class TestLock:
    """One process a run; another one gets one line that names it."""

    @pytest.fixture
    def holder(self, tmp_path: Path) -> Any:
        """Another process that holds the run folder."""
        words = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
        other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        yield other
        other.kill()
        other.communicate()

    def test_a_second_process(self, holder: Any, cli: Cli, tmp_path: Path) -> None:
        made = recipe(tmp_path, train__steps=1)
        save_recipe(made, tmp_path / "r.yaml")
        for words in ([], ["--overwrite"], ["--auto-resume"], ["--resume"]):
            result = cli("pretrain", str(tmp_path / "r.yaml"), *words)
            assert result.code == 2 and result.err.count("\n") == 1, result.err
            assert f"a run is at work there, by process {holder.pid} on " in result.err
        assert not (made.folder / "metrics.jsonl").exists()
        holder.kill()
        holder.wait()
        assert cli("pretrain", str(tmp_path / "r.yaml")).code == 0  # the lock went with it
        assert not (made.folder / lock.NAME).exists()

    def test_in_a_process_of_its_own(self, tmp_path: Path) -> None:
        made = recipe(tmp_path, train__steps=1)
        save_recipe(made, tmp_path / "r.yaml")
        build_job(made)  # held from here on
        result = process("pretrain", str(tmp_path / "r.yaml"), "--auto-resume")
        assert result.code == 2 and f"by process {os.getpid()} on " in result.err
        lock.release(made.folder)

    def test_what_fails_leaves_no_lock_and_no_folder(self, tmp_path: Path) -> None:
        made = recipe(tmp_path, data={"sources": [str(tmp_path / "nothing.txt")]})
        with pytest.raises(UserError, match="no such file"):
            build_job(made)
        assert not made.folder.exists()

    def test_a_lock_that_is_removed_is_taken_anew(self, tmp_path: Path) -> None:
        """Relatives: the file removed by its holder, left by a kill, of a linked folder."""
        (tmp_path / lock.NAME).write_text("process 1 on nowhere")
        lock.hold(tmp_path)
        assert (tmp_path / lock.NAME).read_text().startswith(f"process {os.getpid()} on ")
        (tmp_path.parent / "alias").symlink_to(tmp_path)
        lock.hold(tmp_path.parent / "alias")  # the same folder
        lock.release(tmp_path.parent / "alias")
        assert tmp_path.is_dir() is False or not (tmp_path / lock.NAME).exists()
        (tmp_path.parent / "alias").unlink()
