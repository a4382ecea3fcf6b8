"""Tracking: what each tool holds of a run is what metrics.jsonl says; a tool that fails is left."""

from __future__ import annotations

import json
import math
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from llamaseek.api import check_recipe
from llamaseek.errors import UserError
from llamaseek.report.page import write_report
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from llamaseek.train.tracking import tracker, trackers
from llamaseek.train.tracking.tracker import TrackedRun
from tests.train.tiny import recipe

Numbers = dict[tuple[str, int], float]
STEPS, MORE = 30, 32


def logged(folder: Path) -> Numbers:
    """Every number of metrics.jsonl by its name and step."""
    found: Numbers = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        values = ((k, v) for k, v in line.items() if isinstance(v, int | float) and k != "step")
        found |= {(name, line["step"]): float(value) for name, value in values}
    return found


def run(folder: Path, *tools: str, steps: int = STEPS, resume: bool = False) -> Path:
    """A tiny run of 30 steps with a checkpoint at 20; its folder."""
    changes = {"train__steps": steps, "train__track": tools, "train__save_every": 20}
    made = recipe(folder, "llama3", train__eval_every=10, **changes)
    return train(build_job(made, resume), resume, report=write_report).path


def from_tensorboard(folder: Path) -> Numbers:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0})
    read.Reload()
    tags = read.Tags()["scalars"]
    assert "recipe/text_summary" in read.Tags()["tensors"]
    return {(tag, event.step): event.value for tag in tags for event in read.Scalars(tag)}


def stored(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file, which is a LevelDB log: blocks of 32 KiB after 7 bytes.

    Each part has a checksum, a length and a kind: 1 whole, 2 first, 3 middle, 4 last.
    """
    at, whole = 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def from_wandb(folder: Path) -> Numbers:
    from wandb.proto.wandb_internal_pb2 import Record

    found: Numbers = {}
    kinds: set[str] = set()
    files: list[str] = []
    ids: set[str] = set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in stored(path.read_bytes()):
            record = Record.FromString(data)
            kinds.add(str(record.WhichOneof("record_type")))
            items = {
                (item.key or item.nested_key[0]): json.loads(item.value_json)
                for item in record.history.item
                if len(item.nested_key) < 2  # others are parts of tables
            }
            values = {k: float(v) for k, v in items.items() if k[0] != "_" and k != "step"}
            found |= {(k, items["step"]): v for k, v in values.items()}
            files += [one.path for one in record.artifact.manifest.contents]
            ids |= {record.run.run_id} - {""}
    assert len(ids) == 1 and kinds >= {"run", "history", "exit"}
    assert {"report.html", "recipe.yaml", "metrics.jsonl"} <= set(files)
    return found


def from_mlflow(folder: Path) -> Numbers:
    from mlflow import MlflowClient

    client = MlflowClient()
    number = client.get_experiment_by_name("llamaseek").experiment_id
    (found,) = client.search_runs([number])
    assert found.info.status == "FINISHED" and found.data.params["model.family"] == "llama3"
    files = {one.path for one in client.list_artifacts(found.info.run_id)}
    assert {"report.html", "recipe.yaml", "metrics.jsonl"} <= files
    return {
        (name, metric.step): metric.value
        for name in found.data.metrics
        for metric in client.get_metric_history(found.info.run_id, name)
    }


def from_trackio(folder: Path) -> Numbers:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (found,) = trackio.Api().runs("llamaseek")
    assert found.config["model"]["family"] == "llama3"
    values: Numbers = {}
    for row in SQLiteStorage.get_logs("llamaseek", found.name, run_id=found.id):
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        values |= {(name, row["step"]): float(value) for name, value in numbers.items()}
    return values


READERS = {
    "tensorboard": from_tensorboard,
    "wandb": from_wandb,
    "mlflow": from_mlflow,
    "trackio": from_trackio,
}


@pytest.mark.parametrize("tool", READERS)
def test_a_tool_holds_the_numbers_of_the_metrics(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of 30 steps, resumed to 32: all in one run of the tool, read by the tool itself."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    if tool != "tensorboard":
        pytest.importorskip(tool, reason=f"needs the package {tool} (pip install llamaseek[track])")
    monkeypatch.chdir(tmp_path)
    run(tmp_path, tool)
    folder = run(tmp_path, tool, steps=MORE, resume=True)
    assert "warning" not in capsys.readouterr().err
    wanted, found = logged(folder), READERS[tool](folder)
    assert {step for name, step in wanted if name == "loss"} == set(range(1, MORE + 1))
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert math.isclose(found[key], value, rel_tol=1e-6), key


class Recorder:
    """A tracker that keeps what it gets, and fails at a step."""

    def __init__(self, run: TrackedRun, fails: int) -> None:
        self.run, self.fails = run, fails
        self.got: defaultdict[str, list[Any]] = defaultdict(list)
        self.id = run.id or "first"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.fails:
            raise ConnectionError("the server is\naway")
        self.got["log"].append(step)

    def table(self, name: str, rows: Any) -> None:
        self.got["table"].append(name)

    def file(self, path: Path) -> None:
        self.got["file"].append(path.name)

    def close(self, completed: bool) -> None:
        self.got["close"].append(completed)


def recorders(monkeypatch: pytest.MonkeyPatch, fails: dict[str, int]) -> dict[str, Recorder]:
    opened: dict[str, Recorder] = {}

    def open_one(name: str, run: TrackedRun) -> Recorder:
        return opened.setdefault(name, Recorder(run, fails.get(name, -1)))

    monkeypatch.setattr(trackers, "open_tracker", open_one)
    return opened


def test_a_tool_that_fails_is_left_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = recorders(monkeypatch, {"wandb": 4})
    folder = run(tmp_path, "wandb", "mlflow", steps=6)
    assert (folder / "model" / "config.json").is_file()
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert warning == "warning: train.track: wandb failed and gets no more: the server is away"
    assert opened["wandb"].got["log"] == [1, 2, 3] and not opened["wandb"].got["close"]
    assert opened["mlflow"].got["log"] == [1, 2, 3, 4, 5, 6, 6]
    files = opened["mlflow"].got["file"]
    assert files == [*(n for n in trackers.FILES if (folder / n).exists()), "report.html"]
    assert opened["mlflow"].got["close"] == [True]
    assert json.loads((folder / "tracking.json").read_text()) == {
        "mlflow": "first",
        "wandb": "first",
    }


def test_a_resumed_run_goes_on_in_the_same_tracked_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorders(monkeypatch, {})
    folder = run(tmp_path, "wandb", steps=2)
    (folder / "tracking.json").write_text('{"wandb": "abc"}')
    again = recorders(monkeypatch, {})
    run(tmp_path, "wandb", steps=3, resume=True)
    assert again["wandb"].run.id == "abc" and again["wandb"].run.done == 2
    fresh = recorders(monkeypatch, {})
    run(tmp_path, "wandb", steps=2)
    assert fresh["wandb"].run.id is None


def test_a_package_that_is_missing_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    made = recipe(tmp_path, "llama3", train__track=["trackio"])
    with pytest.raises(UserError, match=r"train.track: the package trackio is not installed; pip"):
        check_recipe(made)
    assert not made.folder.exists()
    with pytest.raises(UserError, match="train.track.*neptune.*tensorboard"):
        recipe(tmp_path, "llama3", train__track=["neptune"])
    assert recipe(tmp_path, "llama3", train__track="wandb").train.track == ["wandb"]
