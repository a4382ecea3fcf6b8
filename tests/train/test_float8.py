"""fp8 products in training: which layers, beside which plain run, refused where."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from llamaseek.checkpoints.hf import load_model
from llamaseek.errors import UserError
from llamaseek.models import build_model
from llamaseek.models.quant.fp8_training import (
    BlockScaledLinear,
    grouped_product,
    in_torchao,
    torchao_config,
    use_float8,
)
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.check import resolve
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from tests.models.shapes import rows, tiny_config
from tests.parallel.launch import on_ranks
from tests.parallel.scenes import train_steps
from tests.train.tiny import DEEPSEEK_SIZES, LLAMA_SIZES, recipe

WIDE = {"hidden_size": 128, "intermediate_size": 256}
SIZES = {
    "llama3": {**LLAMA_SIZES, **WIDE},
    "deepseek_v3": {**DEEPSEEK_SIZES, **WIDE, "moe_intermediate_size": 128},
}
OBJECTIVE = {"llama3": "next_token", "deepseek_v3": "multi_token"}


def fp8_recipe(folder: Path, family: str = "llama3", **changes: Any) -> Recipe:
    """A tiny run whose widths are whole blocks."""
    model = {"family": family, "config": SIZES[family]}
    return recipe(folder, family, model=model, **{"train__float8": "deepseek", **changes})


def losses(made: Recipe) -> list[float]:
    """The training loss of every step."""
    text = (train(build_job(made)).path / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [line["loss"] for line in found if "loss" in line]


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_a_run_tracks_the_plain_one(family: str, tmp_path: Path) -> None:
    steps = {"train__steps": 30, "train__eval_every": 30, "train__objective": OBJECTIVE[family]}
    steps |= {"train__lr": 1e-3, "train__warmup": 5, "data__length": 48, "data__holdout": 0.01}
    found = {
        kind: losses(
            fp8_recipe(tmp_path, family, train__float8=kind, out=str(tmp_path / kind), **steps)
        )
        for kind in ("none", "deepseek")
    }
    plain, ours = (sum(found[kind][-10:]) / 10 for kind in ("none", "deepseek"))
    print(f"{family}: {plain:.4f} plain, {ours:.4f} in fp8, {ours / plain - 1:+.2%}")
    assert found["deepseek"] != found["none"]
    assert plain < 0.8 * found["none"][0]
    assert abs(ours / plain - 1) < 0.005
    folder = tmp_path / "deepseek" / "model"  # a plain folder of the float32 weights
    assert all(type(m) is not BlockScaledLinear for m in load_model(folder).modules())


def test_layers_are_converted_and_what_is_sensitive_is_not() -> None:
    model = build_model(tiny_config("deepseek_v3", num_nextn_predict_layers=1))
    before = dict(model.named_parameters())
    use_float8(model, "deepseek", torch.device("cpu"))
    kinds = {name: type(module) for name, module in model.named_modules()}
    linears = {name for name, kind in kinds.items() if issubclass(kind, nn.Linear)}
    converted = {name for name in linears if kinds[name] is BlockScaledLinear}
    assert linears - converted == {"lm_head"}
    assert "model.layers.1.mlp.shared_experts.up_proj" in converted
    assert "model.layers.3.eh_proj" in converted and "model.layers.1.mlp.gate" not in converted
    assert all(moe.experts.product is grouped_product for moe in model.moe_layers().values())
    assert dict(model.named_parameters()) == before  # the same parameters under the same names


@pytest.mark.parametrize("kind", ["tensorwise", "rowwise"])
def test_torchao_takes_the_layers_alone(kind: str) -> None:
    pytest.importorskip("torchao.float8")
    wide = {"hidden_size": 32, "intermediate_size": 48, "qk_nope_head_dim": 12}
    model = build_model(tiny_config("deepseek_v3", **wide, kv_lora_rank=16))
    config = replace(torchao_config(kind), emulate=True)
    in_torchao(model, config)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    plain = {name for name, module in linears.items() if type(module) is nn.Linear}
    ours = {name for name in linears if type(linears[name]).__name__ == "Float8Linear"}
    assert ours and "lm_head" not in ours | plain
    for name in plain:  # widths that its kernels do not take
        assert any(size % 16 for size in linears[name].weight.shape), name
    assert all("self_attn" in name or "mlp" in name for name in ours)
    tokens, positions = rows()
    model(tokens, positions).square().mean().backward()
    assert all(linears[name].weight.grad is not None for name in ours)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__float8": "rowwise", "train__device": "cpu"}, ["rowwise needs a GPU", "deepseek"]),
        ({"train__precision": "fp64"}, ["fp64", "auto, bf16"]),
        ({"train__float8": "tensorwise", "train__precision": "fp32"}, ["fp32", "auto, bf16"]),
        ({"lora": {}}, ["adapters"]),
        ({"parallel": {"tensor": 2}}, ["parallel.tensor: 2", "train.float8"]),
        ({"model": {"config": {**SIZES["llama3"], "hidden_size": 96}}}, ["hidden_size", "96"]),
    ],
)
def test_what_cannot_be_is_one_line(
    changes: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    made = recipe(tmp_path, **{
        "model": {"config": SIZES["llama3"]}, "train__float8": "deepseek", **changes
    })  # fmt: skip
    with pytest.raises(UserError) as refused:
        resolve(made, None)
    message = str(refused.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_torchao_off_a_gpu_is_one_line() -> None:
    model = build_model(tiny_config("llama3"))
    with pytest.raises(UserError, match=r"train.float8: tensorwise needs a GPU .*8\.9"):
        use_float8(model, "tensorwise", torch.device("cpu"))


def test_ranks_with_shards_and_experts_compute_as_one(tmp_path: Path) -> None:
    """Experts' tokens lie in other tiles then, so their own gradients are near, not equal."""
    asked = {"float8": "deepseek", "precision": "fp32"}
    wanted = train_steps("deepseek_v3", {}, 1, **asked)
    plan = {"shard": 2, "expert": 2}
    found = on_ranks(2, partial(train_steps, "deepseek_v3", plan, 1, **asked))[0]
    ours, right = found["lines"][0], wanted["lines"][0]
    assert ours["loss"] == pytest.approx(right["loss"], rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-2)
    for name, gradient in wanted["gradients"].items():
        off = np.linalg.norm(found["gradients"][name] - gradient) / np.linalg.norm(gradient)
        assert off < (0.05 if ".experts." in name else 1e-4), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["tensorwise", "rowwise", "deepseek"])
def test_a_run_on_a_gpu_tracks_the_plain_one(kind: str, tmp_path: Path) -> None:
    found = [
        losses(fp8_recipe(
            tmp_path, train__float8=each, train__device="cuda", train__precision="bf16",
            train__steps=40, out=str(tmp_path / each),
        ))[-1]
        for each in ("none", kind)
    ]  # fmt: skip
    assert abs(found[1] / found[0] - 1) < 0.02
