"""Conversion killed, out of disk, in bounded memory; and the commands around it."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from llamaseek.checkpoints import shards
from llamaseek.checkpoints.convert import Conversion
from llamaseek.checkpoints.hf import save_model
from llamaseek.checkpoints.quantize import Quantization
from llamaseek.errors import UserError
from llamaseek.herd.configs import config_from_sizes
from tests.cli.run import Cli
from tests.models.shapes import tiny_model

KILLS = 10


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_killed_at_random_moments_then_rerun(tmp_path: Path) -> None:
    """Ten kills, each at another share of the time a whole run takes."""
    source, target = tmp_path / "source", tmp_path / "target"
    model = tiny_model("llama3", hidden_size=512, intermediate_size=4096, num_hidden_layers=3)
    save_model(model, source)
    (source / "tokenizer.json").write_text("{}")
    Conversion(source, tmp_path / "whole", torch.float32, shard_bytes=10**7).run()
    code = (
        "import sys, torch; from pathlib import Path;"
        "from llamaseek.checkpoints.convert import Conversion;"
        "print('ready', flush=True);"
        "Conversion(Path(sys.argv[1]), Path(sys.argv[2]), torch.float32, shard_bytes=10**7)"
        ".run(True, lambda n: __import__('time').sleep(0.01))"
    )
    command = [sys.executable, "-c", code, str(source), str(target)]
    before = digest(source)
    start = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        start = time.perf_counter()
        assert process.wait() == 0
    duration = time.perf_counter() - start
    expected = digest(tmp_path / "whole")
    assert digest(target) == expected
    chance = random.Random(0)
    for _ in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline()
            time.sleep(chance.uniform(0, duration))
            process.send_signal(signal.SIGKILL)
        # Never half: what stands under the name is whole, or nothing stands there.
        assert not target.exists() or digest(target) == expected
    Conversion(source, target, torch.float32, shard_bytes=10**7).run(overwrite=True)
    assert digest(target) == expected
    assert digest(source) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target", "whole"]


@pytest.mark.parametrize("after", [0, 100_000])
def test_a_full_disk(after: int, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    save_model(tiny_model("deepseek_v3"), source)
    before = digest(source)
    written = 0
    real = shards._bytes

    def full(rows: Any, dtype: Any) -> Any:
        nonlocal written
        piece = real(rows, dtype)
        written += len(piece)
        if written > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return piece

    monkeypatch.setattr(shards, "_bytes", full)
    result = cli("convert", str(source), str(tmp_path / "target"))
    assert result.code == 2
    said = f"error: {tmp_path / 'target'}: cannot be written (No space left on device: "
    assert result.err.startswith(said) and result.err.count("\n") == 1
    assert "B are needed, " in result.err and f"B are free in {tmp_path})" in result.err
    assert digest(source) == before
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_too_little_room_is_seen_before_writing(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny_model("llama3"), tmp_path / "source")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    result = cli("convert", str(tmp_path / "source"), str(tmp_path / "target"))
    assert result.code == 2
    assert "B, 1.00 kB are free" in result.err
    assert not (tmp_path / "target").exists()


def test_an_existing_folder_stays(tmp_path: Path, cli: Cli) -> None:
    save_model(tiny_model("llama3"), tmp_path / "source")
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    words = ["convert", str(tmp_path / "source"), str(target)]
    for more in ([], ["--overwrite"]):  # a slip of the pen does not take a folder of something else
        result = cli(*words, *more)
        assert result.code == 2 and "is not a model folder, so it is not replaced" in result.err
        assert (target / "mine.txt").read_text() == "mine"
    (target / "config.json").write_text("{}")
    result = cli(*words)
    assert result.code == 2 and "--overwrite" in result.err
    assert (target / "mine.txt").read_text() == "mine"
    assert cli(*words, "--overwrite").code == 0
    assert not (target / "mine.txt").exists()


def test_onto_itself(tmp_path: Path) -> None:
    save_model(tiny_model("llama3"), tmp_path / "source")
    for target in (tmp_path / "source", tmp_path / "source" / "inside"):
        with pytest.raises(UserError, match="inside the folder it is made from"):
            Conversion(tmp_path / "source", target)
    with pytest.raises(UserError, match="which it is made from"):
        Conversion(tmp_path / "source", tmp_path)
    with pytest.raises(UserError, match="which it is made from"):
        Quantization(tmp_path / "source", tmp_path, 8)


def test_bad_words(tmp_path: Path, cli: Cli) -> None:
    save_model(tiny_model("llama3"), tmp_path / "source")
    words = ["convert", str(tmp_path / "source"), str(tmp_path / "target")]
    for extra, message in (
        (["--dtype", "int8"], "--dtype: 'int8' is not allowed; allowed: keep, bfloat16"),
        (["--shard-gb", "0"], "--shard-gb: 0.0 is not allowed"),
        (["--shard-gb", "nan"], "--shard-gb: nan is not allowed"),
        (["--adapter", str(tmp_path)], "adapter_config.json: cannot be read"),
    ):
        result = cli(*words, *extra)
        assert result.code == 2 and message in result.err, result.err
    assert "no such folder" in cli("convert", "nowhere", "out").err


def test_a_weight_too_large_for_float16(tmp_path: Path) -> None:
    model = tiny_model("llama3")
    with torch.no_grad():
        model.model.norm.weight[3] = 1e6
    save_model(model, tmp_path / "source")
    with pytest.raises(UserError, match="float16: a weight is too large"):
        Conversion(tmp_path / "source", tmp_path / "out", torch.float16).run()
    assert not (tmp_path / "out").exists()


def test_inspect_knows_the_herd(tmp_path: Path, cli: Cli) -> None:
    config = config_from_sizes("llama3", {**_sizes("tiny-llama3"), "rope_theta": 123.0})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    from llamaseek.models import build_model

    save_model(build_model(config), tmp_path)
    out = cli("inspect", str(tmp_path)).out
    assert "as tiny-llama3 but for rope_theta 123.0" in out


def _sizes(name: str) -> dict[str, Any]:
    from dataclasses import asdict

    from llamaseek.herd.published import ENTRIES

    return asdict(ENTRIES[name].config)


def test_memory_of_a_conversion(tmp_path: Path) -> None:
    """A tenth of `bench/convert.py`'s size: the peak is that of some rows, not of the model."""
    if not Path("/proc/self/status").exists():
        pytest.skip("RssAnon is Linux's")
    from bench.convert import alone, keep, make_folder, widen

    make_folder(tmp_path / "source", 1.0)
    for name, work in (("keep", keep), ("widen", widen)):
        _, memory = alone(work, tmp_path / "source", tmp_path / name)
        print(f"{name}: {memory:.2f} GB above a bare import")
        assert memory < 0.5
