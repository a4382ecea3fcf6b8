"""A .gguf file wherever a model folder is taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import llamaseek
from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.checkpoints.quantize import Quantization
from llamaseek.checkpoints.to_gguf import GgufConversion
from llamaseek.safety.guard import load_guard
from llamaseek.safety.verdict import Unread
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from tests.cli.run import Cli
from tests.models.shapes import tiny_model
from tests.safety.scripted import guard_tokenizer
from tests.train.tiny import recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that has the guard's words, in a folder, and beside it as `model.gguf`."""
    folder = tmp_path_factory.mktemp("verbs") / "model"
    tokenizer = guard_tokenizer()
    sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 2048}
    model = tiny_model("llama3", **sizes, eos_token_id=tokenizer.eos_id)
    save_model(model, folder)
    tokenizer.save(folder)
    GgufConversion(folder, folder.with_suffix(".gguf")).run()
    return folder


@pytest.fixture
def file(folder: Path) -> str:
    return str(folder.with_suffix(".gguf"))


def test_load(folder: Path, file: str) -> None:
    ours, theirs = llamaseek.load(file), llamaseek.load(folder)
    assert ours.generate("The red fox", max_tokens=12) == theirs.generate(
        "The red fox", max_tokens=12
    )


def test_generate_with_a_draft(file: str, cli: Cli) -> None:
    plain = cli("generate", file, "The red fox", "--max-tokens", "12")
    drafted = cli("generate", file, "The red fox", "--max-tokens", "12", "--speculate", file)
    assert plain.code == drafted.code == 0 and plain.out == drafted.out


def test_a_guard(folder: Path, file: str) -> None:
    """A random model gives no verdict; from either it is the same text that is none."""
    said = []
    for place in (file, folder):
        with pytest.raises(Unread) as raised:
            load_guard(place).check([{"role": "user", "content": "Hello"}])
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_quantize(file: str, tmp_path: Path) -> None:
    Quantization(Path(file), tmp_path / "int8", 8).run()
    assert load_model(tmp_path / "int8").config.hidden_size == 32


def test_training_goes_on_from_it(folder: Path, file: str, tmp_path: Path) -> None:
    trained = []
    for place in (file, str(folder)):
        start = {"model": {"init_from": place}, "tokenizer": {"path": place}}
        out = str(tmp_path / Path(place).stem / Path(place).suffix.lstrip("."))
        made = recipe(tmp_path, **start, out=out, train__steps=2, train__warmup=1)
        trained.append(load_model(train(build_job(made)).final).state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_plan_reads_its_config(file: str, cli: Cli) -> None:
    assert cli("plan", file, "--gpu", "h100-80gb", "--json").code == 0
    done = cli("inspect", file, "--json")
    assert done.code == 0 and json.loads(done.out)["architecture"] == "LlamaForCausalLM"


def test_what_is_no_gguf_file(cli: Cli, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"hello there, this is no model")
    for command in (("inspect", str(wrong)), ("generate", str(wrong), "x")):
        done = cli(*command)
        assert done.code == 2 and "not a GGUF file" in done.err and done.err.count("\n") == 1
    done = cli("chat", str(tmp_path / "missing.gguf"))
    assert done.code == 2 and "no such file" in done.err
    (tmp_path / "notes.txt").write_text("x")
    done = cli("chat", str(tmp_path / "notes.txt"))
    assert done.code == 2 and "it is a file, and not a GGUF one" in done.err
