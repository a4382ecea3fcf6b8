"""Published numbers: the lecture's GPUs, 405B's GPU-hours, DeepSeek-V3's calibration, caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llamaseek.checkpoints.hf import save_model
from llamaseek.checkpoints.quantize import Quantization
from llamaseek.checkpoints.to_gguf import GgufConversion
from llamaseek.errors import UserError
from llamaseek.herd import config_from_sizes
from llamaseek.herd.published import ENTRIES, find
from llamaseek.herd.tensors import count_parameters
from llamaseek.models import build_model
from llamaseek.plan.answer import answer, flops_per_token
from llamaseek.plan.cost import read_bytes
from llamaseek.plan.flops import (
    attention_flops,
    matrix_flops,
    recipe_flops,
    task_flops,
)
from llamaseek.plan.formats import FORMATS
from llamaseek.plan.gpus import GPUS
from llamaseek.plan.layout import Layout
from llamaseek.plan.question import RUNS, ask, calibration, implied_utilization
from llamaseek.recipe.load import make_recipe
from llamaseek.text.train_bpe import SMALLEST, train_bpe
from llamaseek.train.loop import Trainer
from tests.models.shapes import GGUF_LLAMA, tiny_config
from tests.parallel.scenes import job_of, recipe_of


def plan(*words: Any, **options: Any) -> dict[str, Any]:
    return answer(ask(*words, **options))


def test_a_trillion_parameters_in_bf16_take_25_gpus_of_80_gb() -> None:
    found = plan(None, "h100-80gb", params=1e12)
    assert found["gpus_for_weights"] == 25 and found["weight_bytes"] == 2e12
    assert plan(None, "a100", params=1e12)["gpus_for_weights"] == 25
    assert plan(None, "h100", params=1e12, dtype="fp32")["gpus_for_weights"] == 50
    states = plan(None, "h100", params=1e12, task="pretrain")
    assert states["bytes"]["total"] == 16e12 and states["gpus_for_task"] == 223


@pytest.mark.parametrize("utilization", [0.38, 0.41])
def test_405b_takes_its_published_gpu_hours(utilization: float) -> None:
    found = plan(
        "llama-3.1-405b",
        "h100-80gb",
        "pretrain",
        gpus=16384,
        batch=2048,
        tokens=15.6e12,
        utilization=utilization,
    )
    assert found["context"] == 8192 and found["bound"] == "compute"
    assert found["gpu_hours"] == pytest.approx(30.84e6, rel=0.15)
    assert found["days"] == pytest.approx(found["gpu_hours"] / 16384 / 24)
    # The paper's own 6 N D is 3.8 × 10^25 FLOPs (§3.2); attention comes on top.
    flops = 15.6e12 * matrix_flops(find("llama-3.1-405b").config) * 3
    assert flops == pytest.approx(3.8e25, rel=0.01)
    assert 15.6e12 * found["flops_per_token"] > 1.05 * flops


def test_deepseek_v3s_published_hours_calibrate_the_utilization() -> None:
    found = plan("deepseek-v3", "h800", "pretrain", dtype="fp8", gpus=2048, batch=15360)
    shares = found["calibration"]
    assert shares["gpu_hours"] == 2.664e6 and shares["tokens"] == 14.8e12
    assert shares["utilization_of_bf16_peak"] == pytest.approx(
        2 * shares["utilization_of_fp8_peak"], rel=1e-3
    )
    # DeepSeek later reported 43.73% of the bf16 peak, attention counted without its mask
    # (arXiv 2505.09343, table 4), from a measured step.
    assert shares["utilization_of_bf16_peak"] == pytest.approx(0.4373, rel=0.05)
    run = next(run for run in RUNS if run.model == "deepseek-v3-base")
    config, gpu = find(run.model).config, GPUS[run.gpu]
    again = implied_utilization(config, gpu, "fp8", run.tokens, run.context, run.gpu_hours)
    exact = plan(
        "deepseek-v3-base",
        "h800",
        "pretrain",
        dtype="fp8",
        gpus=2048,
        batch=15360,
        tokens=14.8e12,
        utilization=again,
    )
    assert exact["gpu_hours"] == pytest.approx(2.664e6, rel=1e-6)
    assert calibration(find("llama-3.1-8b").config) is None


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("llama-3.1-8b", 131072), ("llama-3.1-405b", 516096), ("deepseek-v3", 70272)],
)
def test_cache_bytes_a_token(name: str, wanted: int) -> None:
    found = plan(name, "h200", batch=3, context=1000)
    assert found["cache_bytes_per_token"] == wanted
    assert found["bytes"]["cache"] == 3 * 1000 * wanted


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_flops_are_those_torch_counts(family: str) -> None:
    config = tiny_config(family)
    model = build_model(config).eval()
    tokens = torch.randint(0, config.vocab_size, (1, 8))
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    made = 0

    def count(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal made
        made += 2 * output.numel() * inputs[0].shape[-1]

    for module in linear:
        module.register_forward_hook(count)
    with torch.no_grad():
        model.logits(model(tokens, torch.arange(8)[None]))
    for moe in model.moe_layers().values():  # stacked experts and the router are no Linear
        expert = moe.experts.gate_up_proj[0].numel() + moe.experts.down_proj[0].numel()
        made += 2 * 8 * (expert * moe.gate.config.num_experts_per_tok + moe.gate.weight.numel())
    assert 8 * matrix_flops(config) == pytest.approx(made, rel=0.02)  # norms are parameters too


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_the_progress_bar_counts_what_the_planner_counts(name: str) -> None:
    config = ENTRIES[name].config
    task = "sft" if config.is_reward_model or not config.is_causal else "pretrain"
    train = {"objective": "multi_token" if task == "pretrain" else "next_token"}
    recipe = make_recipe({"name": "any", "stage": "pretrain", "train": train})
    length = min(8192, config.max_position_embeddings)
    question = ask(name, "mi300x", task, context=length)
    assert recipe_flops(recipe, config, length) == flops_per_token(question)


def test_a_run_shows_the_share_of_the_planner_s_flops(tmp_path: Path) -> None:
    """Multi-token modules are in, the look-up in an untied embedding is not."""
    recipe = recipe_of("deepseek_v3", {}, out=str(tmp_path))
    job = job_of(recipe)
    config = job.model.config
    assert config.multi_token_depth == 1 and not config.tie_word_embeddings
    shown = Trainer(job).flops
    assert shown == task_flops(config, "pretrain", recipe.data.length)
    numbers = sum(p.numel() for p in job.model.parameters())
    assert numbers == count_parameters(config).total + count_parameters(config).multi_token


def test_frozen_matrices_save_a_third_of_their_flops() -> None:
    config = find("llama-3.1-8b").config
    whole, lora = (task_flops(config, task, 8192) for task in ("sft", "lora"))
    assert whole - lora == matrix_flops(config)
    assert attention_flops(config, 8192) == 2 * 32 * 32 * 256 * 8192


def test_decoding_reads_all_weights_but_the_embedding_and_only_chosen_experts() -> None:
    llama, deepseek = find("llama-3.1-8b").config, find("deepseek-v3").config
    bf16 = FORMATS["bf16"]
    table = llama.vocab_size * llama.hidden_size
    whole = read_bytes(llama, bf16, 1, Layout())
    assert whole == pytest.approx(2 * (8_030_261_248 - table), rel=1e-5)
    one, many = (read_bytes(deepseek, bf16, rows, Layout()) for rows in (1, 4096))
    assert one == pytest.approx(2 * 36.6e9, rel=0.01)  # what one token activates
    assert many == pytest.approx(2 * (671e9 - 129280 * 7168), rel=0.001)


def test_cost_is_hours_times_price() -> None:
    found = plan("llama-3.1-8b", "h100", "sft", tokens=1e9, price=2.5)
    assert found["cost"] == pytest.approx(2.5 * found["gpu_hours"])
    assert found["cost_per_million_tokens"] == pytest.approx(found["cost"] / 1000)
    served = plan("llama-3.1-8b", "h100", price=2.5, batch=16)
    rate = served["tokens_per_second"] / served["gpus"]
    assert served["cost_per_million_tokens"] == pytest.approx(2.5 * 1e6 / rate / 3600)


def test_eight_bits_and_four_take_less() -> None:
    sizes = [
        plan("llama-3.1-70b", "h100", dtype=dtype)["weight_bytes"]
        for dtype in ("fp32", "bf16", "fp8", "int8", "int4")
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 2 * sizes[1]
    assert sizes[-1] < 0.31 * sizes[1]


def test_a_model_that_no_number_of_gpus_can_hold_is_one_line() -> None:
    with pytest.raises(UserError, match="no layout of rtx4090-24gb .* a shorter --context"):
        plan("llama-3.1-405b", "rtx4090", "pretrain", batch=1)


def test_a_folders_config_is_planned_too(tmp_path: Any) -> None:
    import json

    config = config_from_sizes("llama3", {**vars(tiny_config("llama3"))})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert plan(str(tmp_path), "l40s", context=64)["gpus_for_task"] == 1


@pytest.mark.parametrize(("bits", "wanted"), [(4, "int4"), (8, "int8"), (None, "fp32")])
def test_a_folder_is_planned_as_it_is_stored(bits: int | None, wanted: str, tmp_path: Path) -> None:
    """Weights in fewer bits take fewer bytes; training still computes in bf16."""
    save_model(build_model(ENTRIES["tiny-llama3"].config), tmp_path / "model")
    folder = tmp_path / "model"
    if bits:
        folder = tmp_path / "quantized"
        Quantization(tmp_path / "model", folder, bits).run()
    found = answer(ask(str(folder), "h100-80gb"))
    assert found["dtype"] == wanted
    assert answer(ask(str(folder), "h100-80gb", task="sft"))["dtype"] == "bf16"
    assert answer(ask(str(folder), "h100-80gb", dtype="bf16"))["dtype"] == "bf16"
    assert answer(ask("tiny-llama3", "h100-80gb"))["dtype"] == "bf16"


@pytest.mark.parametrize(
    ("dtype", "wanted"), [("q4_0", "int4"), ("q8_0", "int8"), ("f16", "fp16"), ("bf16", "bf16")]
)
def test_a_gguf_file_is_planned_as_it_is_stored(dtype: str, wanted: str, tmp_path: Path) -> None:
    model = build_model(config_from_sizes("llama3", {**GGUF_LLAMA, "vocab_size": SMALLEST}))
    save_model(model, tmp_path / "model")
    train_bpe(["a"], SMALLEST).save(tmp_path / "model")
    GgufConversion(tmp_path / "model", tmp_path / "model.gguf", dtype).run()
    assert answer(ask(str(tmp_path / "model.gguf"), "cpu"))["dtype"] == wanted
