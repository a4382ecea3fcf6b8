"""Untrusted folders: each fault is one clear line, exit 2, no code run, nothing written."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamaseek.checkpoints.hf import save_model
from tests.cli.run import Cli
from tests.models.shapes import tiny_model

INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good folder of three or more shards."""
    save_model(tiny_model("deepseek_v3"), tmp_path / "model", shard_bytes=60_000)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    return tmp_path / "model"


def config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = folder / INDEX
    data = json.loads(path.read_text())
    change(data["weight_map"])
    path.write_text(json.dumps(data))


def shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def holder(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def header(path: Path, change: Callable[[dict[str, Any]], object], raw: bytes = b"") -> None:
    """Rewrite a shard's header, its tensors untouched."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    data = json.loads(content[8 : 8 + length])
    change(data)
    text = raw or json.dumps(data).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def tensors(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = load_file(path)
    change(data)
    save_file(data, path)


def first_entry(data: dict[str, Any]) -> Any:
    return data[next(name for name in data if name != "__metadata__")]


class Evil:
    """Unpickling this makes a file called `ran` in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def twice(path: Path) -> bytes:
    content = path.read_bytes()
    text = content[8 : 8 + int.from_bytes(content[:8], "little")].decode().strip()
    name, rest = text[1:-1].split(":", 1)
    del rest
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return ("{" + f"{name}:{entry}," + text[1:]).encode()


FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ("config.json", "No such file")),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), ("is not JSON",)),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), ("not a JSON object",)),
    "config nests without end": (
        lambda f: (f / "config.json").write_text("[" * 200_000),
        ("config.json", "is not JSON"),
    ),
    "unknown architecture": (lambda f: config(f, model_type="mamba"), ("model_type", "'mamba'")),
    "a size is text": (lambda f: config(f, hidden_size="big"), ("hidden_size", "'big'")),
    "a size is negative": (lambda f: config(f, num_hidden_layers=-1), ("num_hidden_layers", "-1")),
    "config lies about width": (lambda f: config(f, hidden_size=48), ("shape", "config.json asks")),
    "config lies about layers": (lambda f: config(f, num_hidden_layers=9), ("lacks the tensor",)),
    "config lies about experts": (lambda f: config(f, n_routed_experts=4), ("shape",)),
    "unknown quantization": (
        lambda f: config(f, quantization_config={"quant_method": "hqq"}),
        ("quantization_config", "hqq"),
    ),
    "truncated shard": (
        lambda f: shard(f).write_bytes(shard(f).read_bytes()[:-100]),
        ("is truncated",),
    ),
    "empty shard": (lambda f: shard(f).write_bytes(b""), ("is truncated", "(0 bytes)")),
    "bytes behind the tensors": (
        lambda f: shard(f).write_bytes(shard(f).read_bytes() + b"more"),
        ("announced",),
    ),
    "index names a missing shard": (lambda f: shard(f).unlink(), ("no such file",)),
    "index leaves the folder": (
        lambda f: index(f, lambda m: m.update({NORM: "../../etc/passwd"})),
        ("outside the folder", "../../etc/passwd"),
    ),
    "index names an absolute path": (
        lambda f: index(f, lambda m: m.update({NORM: "/etc/passwd"})),
        ("outside the folder", "/etc/passwd"),
    ),
    "index without a map": (lambda f: (f / INDEX).write_text("{}"), ("weight_map",)),
    "index lies": (
        lambda f: index(f, lambda m: m.update({"model.nothing.weight": m[NORM]})),
        ("lacks model.nothing.weight",),
    ),
    "index omits a tensor": (lambda f: index(f, lambda m: m.pop(NORM)), (NORM, "does not list")),
    "tensor in two shards": (
        lambda f: tensors(shard(f), lambda t: t.update({NORM: torch.ones(32)})),
        (NORM, "holds as well"),
    ),
    "tensor twice in a header": (
        lambda f: header(shard(f), lambda d: None, twice(shard(f))),
        ("twice",),
    ),
    "wrong shape": (
        lambda f: tensors(holder(f, NORM), lambda t: t.update({NORM: torch.ones(31)})),
        (NORM, "[31]", "[32]"),
    ),
    "integers for weights": (
        lambda f: tensors(holder(f, NORM), lambda t: t.update({NORM: torch.ones(32).int()})),
        (NORM, "I32"),
    ),
    "header longer than the file": (
        lambda f: shard(f).write_bytes(struct.pack("<Q", 10**9) + b"{}"),
        ("is truncated",),
    ),
    "header is not JSON": (lambda f: header(shard(f), lambda d: None, b"\xff{}"), ("header",)),
    "unknown dtype": (
        lambda f: header(shard(f), lambda d: first_entry(d).update(dtype="F4")),
        ("unknown dtype", "F4"),
    ),
    "tensors overlap": (
        lambda f: header(shard(f), lambda d: first_entry(d).update(shape=[1], data_offsets=[0, 4])),
        ("overlaps",),
    ),
    "offsets and shape disagree": (
        lambda f: header(shard(f), lambda d: first_entry(d).update(shape=[3, 3])),
        ("bytes and is given",),
    ),
    "negative shape": (
        lambda f: header(shard(f), lambda d: first_entry(d).update(shape=[-1, 4])),
        ("whole number",),
    ),
    "pickle in place of safetensors": (
        lambda f: shard(f).write_bytes(pickle.dumps(Evil(), protocol=4)),
        ("is a pickle",),
    ),
    "torch file in place of safetensors": (
        lambda f: torch.save({NORM: torch.ones(32)}, shard(f)),
        ("is a pickle",),
    ),
    "fp8 without its scale": (
        lambda f: tensors(
            holder(f, "model.layers.0.self_attn.o_proj.weight"),
            lambda t: t.update(
                {
                    "model.layers.0.self_attn.o_proj.weight": t[
                        "model.layers.0.self_attn.o_proj.weight"
                    ].to(torch.float8_e4m3fn)
                }
            ),
        ),
        ("lacks the tensor", "o_proj.weight_scale_inv"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_clear_line(
    fault: str, folder: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    break_it, words = FAULTS[fault]
    break_it(folder)
    kept = sorted(path.name for path in folder.iterdir())
    for command in (["inspect", str(folder)], ["convert", str(folder), "out"]):
        result = cli(*command)
        assert result.code == 2, result.out
        assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
        assert len(result.err) < 600
        for word in words:
            assert word in result.err, result.err
    assert sorted(path.name for path in folder.iterdir()) == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_header_over_the_limit(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamaseek.herd.header.LARGEST_HEADER", 100)
    result = cli("inspect", str(folder))
    assert result.code == 2
    assert "its header of" in result.err and "over 100" in result.err


def test_a_good_folder(folder: Path, cli: Cli) -> None:
    result = cli("inspect", str(folder))
    assert result.code == 0
    for part in ("DeepseekV3ForCausalLM", "no model of these sizes", "model.layers.*.mlp.experts"):
        assert part in result.out
    facts = json.loads(cli("inspect", str(folder), "--json").out)
    assert facts["problems"] == [] and facts["files"] > 2
    assert facts["bytes"] == sum(group["nbytes"] for group in facts["tensors"])
