"""A run folder from a stranger: no pickle in it is run, and what is broken is passed over."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from llamaseek.errors import UserError
from llamaseek.recipe.schema import Recipe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from llamaseek.train.saving.index import read_index
from llamaseek.train.saving.run_folder import RunFolder
from tests.train.saving.runs import copied_run, state, weights, whole_run

NAME = "model/model.norm.weight"


class Evil:
    """Unpickling this makes a file called `ran` in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def index(folder: Path, change: Callable[[Metadata], object]) -> None:
    """Rewrite `.metadata` after a change."""
    path = folder / ".metadata"
    found = pickle.loads(path.read_bytes())  # our own
    change(found)
    path.write_bytes(pickle.dumps(found))


def place(found: Metadata) -> Any:
    return found.storage_data[MetadataIndex(NAME, [0])]


def as_bytes(folder: Path) -> None:
    """An entry that is no tensor: torch unpickles it in full."""
    end = (folder / "__0_0.distcp").stat().st_size
    buffer = io.BytesIO()
    torch.save(Evil(), buffer)

    def change(found: Metadata) -> None:
        found.state_dict_metadata[NAME] = BytesStorageMetadata()
        info = found.storage_data.pop(MetadataIndex(NAME, [0]))
        found.storage_data[MetadataIndex(NAME)] = info
        info.offset, info.length = end, len(buffer.getvalue())

    index(folder, change)
    with (folder / "__0_0.distcp").open("ab") as file:
        file.write(buffer.getvalue())


def elsewhere(folder: Path) -> None:
    """An entry that is read from a file outside of the folder."""
    torch.save(torch.ones(32), folder.parent.parent / "secret")
    index(folder, lambda found: setattr(place(found), "relative_path", "../../secret"))


def packed(folder: Path) -> None:
    """A tensor that takes a thousand times the room of its file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    data = bytearray((folder / "__0_0.distcp").read_bytes())

    def change(found: Metadata) -> None:
        place(found).offset, place(found).length = len(data), len(buffer.getvalue())

    index(folder, change)
    (folder / "__0_0.distcp").write_bytes(data + buffer.getvalue())


def metadata(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / ".metadata").write_bytes(data)


def size(found: Metadata, value: Any) -> None:
    found.state_dict_metadata[NAME].size = value  # type: ignore[union-attr]


def flipped(folder: Path) -> None:
    """One bit of one tensor."""
    path = folder / "__0_0.distcp"
    found = pickle.loads((folder / ".metadata").read_bytes()).storage_data
    info = found[MetadataIndex("model/model.embed_tokens.weight", [0, 0])]
    data = bytearray(path.read_bytes())
    data[info.offset + info.length // 2] ^= 1
    path.write_bytes(data)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a call": (metadata(pickle.dumps(Evil())), "names pathlib.Path.touch"),
    "a call by another module": (
        metadata(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x09touch ran\x85R."),
        "names posix.system",
    ),
    "a dotted name": (
        metadata(b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c\x09touch ran\x85R."),
        "names torch.os.system",
    ),
    "an old opcode": (metadata(b"cposix\nsystem\n(S'touch ran'\ntR."), "uses GLOBAL"),
    "an entry that is no tensor": (as_bytes, "BytesStorageMetadata"),
    "a file elsewhere": (elsewhere, "is no file of this folder"),
    "a memo of 16 GB": (metadata(b"\x80\x04]r\xff\xff\xff\x7f."), "uses LONG_BINPUT"),
    "a size of 2**62": (
        lambda folder: index(folder, lambda f: size(f, torch.Size([2**62]))),
        "is",
    ),
    "a negative size": (
        lambda folder: index(folder, lambda f: setattr(place(f), "length", -1)),
        "-1 is no size",
    ),
    "packed tensors": (packed, "packed"),
}
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty index": (metadata(b""), "is not an index"),
    "no index": (lambda folder: (folder / ".metadata").unlink(), "there is none"),
    "half of the index": (
        lambda folder: (folder / ".metadata").write_bytes(
            (folder / ".metadata").read_bytes()[:-200]
        ),
        "is not an index",
    ),
    "half of the tensors": (
        lambda folder: (folder / "__0_0.distcp").write_bytes(
            (folder / "__0_0.distcp").read_bytes()[:5000]
        ),
        "is truncated",
    ),
    "no tensors": (lambda folder: (folder / "__0_0.distcp").unlink(), "is no file"),
    "a flipped bit": (flipped, "is not what was written"),
    "no progress": (lambda folder: (folder.parent / "progress.json").unlink(), "progress.json"),
    "an empty place in the data": (
        lambda folder: (folder.parent / "data.json").write_text(""),
        "data.json",
    ),
    "deep JSON": (
        lambda folder: (folder.parent / "data.json").write_text("[" * 200_000),
        "data.json",
    ),
    "another step's state": (
        lambda folder: (folder.parent / "progress.json").write_text(
            '{"steps_done": 2, "average_steps": 2}\n'
        ),
        "is of step 2",
    ),
}


@pytest.mark.parametrize("fault", [*HOSTILE, *BROKEN])
def test_the_checkpoint_before_is_taken(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = copied_run(tmp_path)
    break_it, reason = (HOSTILE | BROKEN)[fault]
    break_it(state(made, 6) / "weights")
    train(build_job(made), resume=True)
    warning = next(x for x in capfd.readouterr().err.splitlines() if x.startswith("warning: "))
    assert reason in warning and "step-6/state" in warning
    assert warning.endswith("kept as broken-step-6, going on from 4")
    assert not list(tmp_path.rglob("ran"))
    ours, theirs = weights(made.folder), weights(whole_run())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    kept = sorted(path.name for path in (made.folder / "checkpoints").iterdir())
    assert kept == ["broken-step-6", "step-2", "step-4", "step-6"]


def test_torch_itself_would_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the hostile folders are hostile: what this reads in place of torch's own reader."""
    monkeypatch.chdir(tmp_path)
    weights = state(copied_run(tmp_path), 6) / "weights"
    metadata(pickle.dumps(Evil()))(weights)
    with pytest.raises(AttributeError):
        FileSystemReader(weights).read_metadata()
    assert Path("ran").exists()


def test_the_index_is_what_torch_reads() -> None:
    folder = state_of_whole_run()
    ours, theirs = read_index(folder), FileSystemReader(folder).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data


def state_of_whole_run() -> Path:
    return whole_run() / "checkpoints" / "step-6" / "state" / "weights"


def test_no_good_checkpoint_is_one_line(tmp_path: Path) -> None:
    made = copied_run(tmp_path)
    for step in (2, 4, 6):
        (state(made, step) / "weights" / ".metadata").write_bytes(b"")
    with pytest.raises(UserError, match="step-6.*nor can any before it be") as error:
        train(build_job(made), resume=True)
    assert "\n" not in str(error.value)
    assert RunFolder(made.folder).saved_steps() == [2, 4, 6]  # nothing was renamed or removed


def test_exporting_reads_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamaseek.train.saving.saver import SavedWeights

    monkeypatch.chdir(tmp_path)
    folder = state(copied_run(tmp_path), 6) / "weights"
    metadata(pickle.dumps(Evil()))(folder)
    with pytest.raises(UserError, match="names pathlib.Path.touch"):
        SavedWeights(folder, averaged=False)
    assert not Path("ran").exists()


def odd_names(made: Recipe) -> None:
    checkpoints = made.folder / "checkpoints"
    for name in ("step-8-backup", "step-08", "step-٩", "step--1", "step-", "my-step-9", "step-1e3"):
        (checkpoints / name).mkdir()
    (checkpoints / "step-9").write_text("a file")
    (checkpoints / "step-10").symlink_to("nowhere")


def test_odd_names_beside_checkpoints_are_passed_over(tmp_path: Path) -> None:
    made = copied_run(tmp_path)
    odd_names(made)
    assert RunFolder(made.folder).saved_steps() == [2, 4, 6]
    train(build_job(made), resume=True)
    assert (made.folder / "checkpoints" / "step-8-backup").is_dir()
