"""Answers of a model whose shares lie on two ranks: the tokens of one process."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path
from typing import Any
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import pytest
import torch

from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.checkpoints.shards import write_tensors
from llamaseek.engine.engine import Engine
from llamaseek.engine.leader import follow
from llamaseek.engine.options import EngineOptions, Speculation
from llamaseek.engine.ranks.shards import load_share, own_share
from llamaseek.engine.ranks.tensor_group import TensorGroup
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.kernels.build import builder
from llamaseek.models.lazy import Lazy, lazy
from llamaseek.models.quant.fp8 import quantize
from llamaseek.runtime.check import answering_problems
from tests.cli.run import Cli, process
from tests.engine.reference import random_prompts
from tests.models.shapes import tiny_config, tiny_model
from tests.parallel.launch import on_ranks
from tests.parallel.test_torchrun import ended, stop, torchrun, workers

EVEN = {"vocab_size": 96, "tie_word_embeddings": True}
LATENT = {"vocab_size": 96, "num_nextn_predict_layers": 1, "q_lora_rank": 16, "n_shared_experts": 2}
SIZES = {"llama3": EVEN, "deepseek_v3": LATENT}
PROMPTS = random_prompts(12, vocab=96)
NEW = 8
WAYS: dict[str, dict[str, Any]] = {
    "batched": {},
    "chunked, preempted": {"max_num_batched_tokens": 17, "max_num_seqs": 8, "cache_bytes": 30_000},
    "speculated": {"speculation": Speculation(kind="lookup", depth=3)},
    "speculated by its module": {"speculation": Speculation(kind="mtp", depth=2)},
    "int8 cache": {"cache_dtype": "int8"},
    "without kernels": {},
    "with kernels on one rank": {},
}
WITHOUT = {"without kernels": (0, 1), "with kernels on one rank": (1,)}
"""Ways in which some ranks have none, as where they are still compiled."""


def saved(family: str, folder: Path) -> Path:
    """A tiny model's folder."""
    save_model(tiny_model(family, **SIZES[family]), folder)
    return folder


def said(engine: Engine) -> list[list[int]]:
    """The engine's greedy answers."""
    params = SamplingParams(max_tokens=NEW, logprobs=2, prompt_logprobs=0)
    outputs = engine.generate(Request(prompt=prompt, params=params) for prompt in PROMPTS)
    return [output.answers[0].tokens for output in outputs]


def ways(family: str) -> dict[str, dict[str, Any]]:
    """Llama 3 has no module to draft with; a draft model is whole, on rank 0."""
    draft = Speculation(kind="model", depth=2, draft_model=tiny_model("llama3", 5, vocab_size=96))
    found = {k: v for k, v in WAYS.items() if family != "llama3" or "module" not in k}
    return {**found, "speculated by a model": {"speculation": draft}}


def split_answers(folder: Path, family: str) -> tuple[list[list[list[int]]], dict[str, int]]:
    """On a rank: answers in every way, those of rank 0; bytes it holds and reads by kind."""
    group = TensorGroup()
    model = load_share(folder, torch.float32, group)
    held = sum(tensor.nbytes for tensor in model.parameters())
    cached = sum(shape.numbers_per_token for shape in model.cache_shapes())
    answers = []
    built = builder().build()
    for way, options in ways(family).items():
        builder().ready = built and group.rank not in WITHOUT.get(way, ())
        if group.rank:
            follow(model, group)
            continue
        engine = Engine(model, options=EngineOptions(**options), group=group)
        answers.append(said(engine))
        assert engine.runner.fused is not None or engine.options.cache_dtype == "int8"
        assert engine.pool.used == 0
        group.tell(None)
    return answers, {"held": held, "cached": cached}


@pytest.mark.parametrize("family", SIZES)
def test_the_tokens_are_one_process_s(family: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path / "model")
    whole = load_model(folder)
    wanted = [said(Engine(whole, options=EngineOptions(**o))) for o in ways(family).values()]
    (found, first), (_, second) = on_ranks(2, split_answers, folder, family)
    for way, ours, right in zip(ways(family), found, wanted, strict=True):
        assert ours == right, way
    assert first == second
    total = sum(tensor.nbytes for tensor in whole.parameters())
    shared = sum(
        tensor.nbytes
        for name, tensor in whole.named_parameters()
        if any(part in name for part in ("norm", "_a_proj", "gate.weight", "eh_proj"))
    )
    assert first["held"] == shared + (total - shared) // 2
    cached = sum(shape.numbers_per_token for shape in whole.cache_shapes())
    assert first["cached"] == (cached // 2 if family == "llama3" else cached)


def member(rank: int) -> TensorGroup:
    """A rank of two that sends nothing."""
    group = object.__new__(TensorGroup)
    group.rank, group.size = rank, 2
    return group


def test_a_rank_reads_its_share_alone() -> None:
    """Of what is split by rows no other row; of what is split by columns a piece at a time."""
    read: list[tuple[int, int]] = []

    def rows(start: int, stop: int) -> torch.Tensor:
        read.append((start, stop))
        return torch.arange(start, stop)[:, None].expand(-1, 8).float()

    group = member(1)
    matrix = Lazy(torch.float32, (1024, 8), rows)
    own = torch.empty(512, 8)
    own_share("model.layers.0.mlp.up_proj.weight", matrix, group).copy_to(own)
    assert read == [(512, 1024)] and own[0, 0] == 512
    read.clear()
    half = torch.empty(1024, 4)
    own_share("model.layers.0.mlp.down_proj.weight", matrix, group).copy_to(half)
    assert read == [(0, 1024)] and half[-1, -1] == 1023
    for name in ("model.norm.weight", "model.layers.1.mlp.gate.weight"):
        assert own_share(name, matrix, group) is matrix


def test_after_a_failed_forward_no_rank_runs(tmp_path: Path) -> None:
    """Ranks may be out of step then; every answer says so, and the engine does not hang."""
    group = Alone()
    model = load_share(saved("llama3", tmp_path), torch.float32, group)
    engine = Engine(model, group=group)
    request = Request(prompt=[1, 2], params=SamplingParams(max_tokens=2))
    assert len(engine.generate([request])[0].answers[0].tokens) == 2
    group.lost = True
    errors = [next(engine.stream(request)).error or "" for _ in range(2)]
    group.lost = False
    errors.append(next(engine.stream(request)).error or "")
    assert "gone" in errors[0] and all("restart all ranks" in error for error in errors[1:]), errors
    assert engine.pool.used == 0


class Alone(TensorGroup):
    """Rank 0 of two, whose other rank gives zeros, or is lost."""

    def __init__(self) -> None:
        self.rank, self.size, self.lost = 0, 2, False

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        if self.lost:
            raise RuntimeError("gone")
        return x

    def beside(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, torch.zeros_like(x)), -1)

    def tell(self, message: object) -> None:
        """To nobody."""

    def share(self, x: torch.Tensor) -> torch.Tensor:
        return x


def blocks_model(folder: Path) -> Path:
    """A folder whose matrices are stored in fp8 blocks, of widths that no share is whole in."""
    model = tiny_model("llama3", **{**EVEN, "intermediate_size": 208})
    tensors = {}
    for name, tensor in model.state_dict().items():
        if "_proj" in name:
            numbers, scale = quantize(tensor)
            tensors[name], tensors[name + "_scale_inv"] = numbers, scale
        elif name != "lm_head.weight":
            tensors[name] = tensor
    save_model(model, folder)
    write_tensors(folder, {name: lazy(tensor) for name, tensor in tensors.items()})
    path = folder / "config.json"
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": blocks}))
    return folder


def test_shares_of_fp8_blocks_are_the_whole_s(tmp_path: Path) -> None:
    folder = blocks_model(tmp_path / "model")
    whole = load_model(folder).state_dict()
    first, second = (load_share(folder, torch.float32, member(r)).state_dict() for r in (0, 1))
    for name, right in whole.items():
        parts = first[name], second[name]
        dim = next((d for d in range(right.dim()) if parts[0].shape[d] != right.shape[d]), None)
        made = parts[0] if dim is None else torch.cat(parts, dim)
        assert torch.equal(made, right), name
        if dim is None:
            assert torch.equal(*parts), name


@pytest.mark.parametrize(
    ("family", "changes", "ranks", "words"),
    [
        ("llama3", {}, 3, ["3 ranks", "key-value heads (2)"]),
        ("llama3", {"vocab_size": 97}, 2, ["2 ranks", "the vocabulary (97)"]),
        ("deepseek_v3", {}, 8, ["8 ranks", "the attention heads (4)"]),
        ("deepseek_v3", {"moe_intermediate_size": 15}, 2, ["moe_intermediate_size (15)"]),
        ("llama3", {"is_reward_model": True}, 2, ["reward model"]),
    ],
)
def test_wrong_numbers_of_ranks_are_one_line(
    family: str, changes: dict[str, Any], ranks: int, words: list[str]
) -> None:
    config = tiny_config(family, **{"vocab_size": 96, **changes})
    problem = next(answering_problems(config, (), ranks))
    assert all(word in problem for word in words) and "\n" not in problem, problem


def test_torchrun_says_what_one_process_does(
    model: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of docs/parallel.md, on another model."""
    text = (Path(__file__).parents[2] / "docs" / "parallel.md").read_text()
    line = re.search(r"^torchrun --nproc-per-node 2 -m llamaseek (generate .*)$", text, re.M)
    assert line is not None
    words = [str(model) if w == "models/tiny-llama3" else w for w in shlex.split(line[1])]
    alone = cli(*words)
    assert alone.code == 0, alone.err
    code, out, err = ended(torchrun(2, *words))
    assert code == 0 and out == alone.out, err
    monkeypatch.setenv("WORLD_SIZE", "3")
    done = cli(*words)
    assert done.code == 2 and done.out == ""
    said = "error: torchrun: 3 ranks: 3 does not divide the key-value heads (2)\n"
    assert done.err == said
    done = cli(*words, "--device", "cuda:1")
    assert done.code == 2 and "cuda:1" in done.err and done.err.count("\n") == 1


@pytest.mark.parallel
def test_a_server_on_two_ranks_answers_and_ends(model: Path) -> None:
    run = torchrun(2, "serve", str(model), "--port", "0", "--name", "tiny")
    try:
        assert run.stdout is not None
        address = run.stdout.readline().split()[-1]
        body = {"model": "tiny", "prompt": "The fox", "max_tokens": 8, "temperature": 0}
        asked = UrlRequest(f"{address}/v1/completions", json.dumps(body).encode())
        asked.add_header("Content-Type", "application/json")
        with urlopen(asked, timeout=60) as found:
            answer = json.load(found)["choices"][0]["text"]
        alone = process("generate", str(model), "The fox", "--max-tokens", "8")
        assert alone.out == f"The fox{answer}\n"
        ranks = workers(run)
        run.send_signal(signal.SIGTERM)
        ended(run, 60)
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    finally:
        stop(run)
