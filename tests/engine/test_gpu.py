"""On a GPU: the CPU's tokens, graphs as without them, and nothing waits on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llamaseek.checkpoints.convert import Conversion
from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.checkpoints.quantize import Quantization
from llamaseek.engine.engine import Engine
from llamaseek.engine.forward.graphs import capturable
from llamaseek.engine.options import EngineOptions, Speculation
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.kernels.fp8 import E4M3
from llamaseek.models import CausalLM
from tests.engine.reference import (
    FAMILIES,
    answers,
    greedy_reference,
    near_ties,
    random_prompts,
    saved_model,
)
from tests.models.shapes import tiny_model

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Widths that matrix units take, and the published latent's proportions.
WIDE: dict[str, dict[str, Any]] = {
    "llama3": {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8},
    "deepseek_v3": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "moe_intermediate_size": 128,
        "initializer_range": 0.06,
    },
}


def on_gpu(family: str, folder: Path, dtype: torch.dtype, **changes: Any) -> CausalLM:
    save_model(tiny_model(family, **WIDE[family], **changes), folder)
    return load_model(folder, dtype, device=DEVICE).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("graphs", [True, False])
def test_greedy_tokens_are_transformers(family: str, graphs: bool, tmp_path: Path) -> None:
    """In float32, where only near-ties may differ; prompts in chunks, with shared prefixes."""
    _, theirs = saved_model(family, tmp_path)
    model = load_model(tmp_path, device=DEVICE)
    prompts = random_prompts(60)
    wanted = greedy_reference(theirs, prompts, 16)
    found, engine = answers(
        model, prompts, 16, max_num_batched_tokens=64, cuda_graphs=graphs, block_size=4
    )
    ties = near_ties(theirs, prompts, wanted, found)
    print(f"{family}: {ties} near-ties of {len(prompts)} answers")
    assert ties <= 3
    assert (engine.runner.graphs is not None) == (graphs and capturable(model))


def tokens_of(model: CausalLM, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    return answers(model, prompts, 24, **options)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_compute_what_they_captured(family: str, tmp_path: Path) -> None:
    """Eight rows fill a graph, so that the very same products are made with and without."""
    model = on_gpu(family, tmp_path, torch.bfloat16)
    prompts = [[n + 1, 5, 9, n + 30] for n in range(8)]
    runs = [tokens_of(model, prompts, cuda_graphs=graphs) for graphs in (True, True, False)]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_that_are_launched_ahead_change_no_token(family: str, tmp_path: Path) -> None:
    """All answers are as long, so that the very same products are made."""
    model = on_gpu(family, tmp_path, torch.bfloat16)
    given = {"max_tokens": 24, "ignore_eos": True}
    kinds = [
        SamplingParams(temperature=0.9, top_p=0.9, seed=1, **given),
        SamplingParams(temperature=1.1, top_k=20, repetition_penalty=1.2, seed=2, **given),
        SamplingParams(presence_penalty=0.5, frequency_penalty=0.3, **given),
        SamplingParams(logit_bias={7: 2.0}, **given),
    ]
    found = []
    for ahead in (True, False):
        engine = Engine(model)
        assert engine.ahead is not None
        engine.ahead = engine.ahead if ahead else None
        prompts = [[n + 1, 5, 9, n + 30] for n in range(8)]
        asked = [Request(prompt=p, params=kinds[n % 4]) for n, p in enumerate(prompts)]
        found.append([output.answers[0].tokens for output in engine.generate(asked)])
    assert found[0] == found[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
def test_decoding_waits_for_nothing(family: str, cache_dtype: str, tmp_path: Path) -> None:
    model = on_gpu(family, tmp_path, torch.bfloat16)
    options = EngineOptions(cache_dtype=cache_dtype, cuda_graphs=False)
    engine = Engine(model, options=options)
    for length in (20, 40):
        engine.add(Request(prompt=[1] * length, params=SamplingParams(max_tokens=9)))
    for _ in range(3):  # what is set up at first use may wait
        engine.step()
    plan = engine.scheduler.schedule()
    torch.cuda.synchronize()
    native = capturable(model)  # elsewhere experts' counts are asked for
    torch.cuda.set_sync_debug_mode("error" if native else "default")
    try:
        with torch.inference_mode():
            engine.runner.run(plan, [0, 1])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_drafts_change_no_token(tmp_path: Path) -> None:
    save_model(tiny_model("deepseek_v3", num_nextn_predict_layers=1), tmp_path)
    model = load_model(tmp_path, device=DEVICE)
    prompts = random_prompts(12)
    plain = tokens_of(model, prompts)
    drafted = tokens_of(model, prompts, speculation=Speculation(kind="mtp", depth=2))
    same = sum(a == b for a, b in zip(plain, drafted, strict=True))
    assert same >= 11  # a near-tie may fall the other way


@pytest.mark.parametrize("family", FAMILIES)
def test_seeds_draw_what_they_draw_on_a_cpu(family: str, tmp_path: Path) -> None:
    save_model(tiny_model(family), tmp_path)
    params = SamplingParams(max_tokens=12, temperature=0.8, top_p=0.9, seed=7)
    found = []
    for device in ("cpu", DEVICE):
        requests = [Request(prompt=prompt, params=params) for prompt in random_prompts(20)]
        outputs = Engine(load_model(tmp_path, device=device)).generate(requests)
        found.append([output.answers[0].tokens for output in outputs])
    same = sum(a == b for a, b in zip(*found, strict=True))
    assert same >= 18  # a draw may lie between two tokens


def test_loading_takes_the_weights_memory(tmp_path: Path) -> None:
    save_model(tiny_model("llama3", **{**WIDE["llama3"], "vocab_size": 60_000}), tmp_path)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = load_model(tmp_path, torch.bfloat16, device=DEVICE)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    peak = torch.cuda.max_memory_allocated() - before
    assert size <= peak < 1.5 * size + (64 << 20)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", ["8", "4", "fp8"])
def test_fewer_bits_are_the_widened_weights(family: str, bits: str, tmp_path: Path) -> None:
    if bits == "fp8" and torch.cuda.get_device_capability() < E4M3:
        pytest.skip("reads no e4m3")
    save_model(tiny_model(family, **WIDE[family]), tmp_path / "plain")
    Quantization(tmp_path / "plain", tmp_path / "few", bits, None if bits != "4" else 32).run()
    Conversion(tmp_path / "few", tmp_path / "wide", torch.float32).run()
    tokens = torch.arange(1, 41)[None]
    logits = []
    for folder, device in (("wide", "cpu"), ("few", DEVICE)):
        model = load_model(tmp_path / folder, fp8=True, device=device).eval()
        place = tokens.to(device)
        with torch.no_grad():
            logits.append(model.logits(model(place, place - 1)).cpu())
    assert (logits[1] - logits[0]).norm() / logits[0].norm() < 1e-3
