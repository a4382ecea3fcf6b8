"""Models whose matrices stay in a GGUF file's blocks, beside the same widened to float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.checkpoints.peft import read_adapter, save_adapter
from llamaseek.checkpoints.to_gguf import GgufConversion
from llamaseek.engine import open as opening
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.herd import config_from_sizes
from llamaseek.kernels.build import Builder, builder
from llamaseek.models import CausalLM, build_model
from llamaseek.models.lora import LoRALinear, add_lora
from llamaseek.models.quant.blocks import BlockEmbedding, BlockExperts, BlockLinear
from tests.models.shapes import GGUF_DEEPSEEK, GGUF_LLAMA

WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama3", {**GGUF_LLAMA, "vocab_size": 300}),
    "llama of 256, tied": (
        "llama3",
        {**GGUF_LLAMA, **WIDE, "vocab_size": 300, "tie_word_embeddings": True},
    ),
    "deepseek": ("deepseek_v3", {**GGUF_DEEPSEEK, "vocab_size": 300}),
}
PROMPT = torch.randint(0, 300, (90,), generator=torch.Generator().manual_seed(0)).tolist()


def written(shape: str, asked: str, folder: Path) -> Path:
    family, sizes = SHAPES[shape]
    torch.manual_seed(0)
    model = build_model(config_from_sizes(family, sizes)).eval()
    save_model(model, folder / "model")
    GgufConversion(folder / "model", folder / "m.gguf", asked).run()
    return folder / "m.gguf"


@torch.no_grad()
def logits(model: CausalLM, tokens: list[int]) -> torch.Tensor:
    return model.logits(model(torch.tensor([tokens]), torch.arange(len(tokens))[None]))[0]


def scored(model: CausalLM, most: int) -> torch.Tensor:
    """log p of a prompt's tokens, computed `most` at a time."""
    engine = Engine(model, options=EngineOptions(max_num_batched_tokens=most))
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    (output,) = engine.generate([Request(prompt=PROMPT, params=params)])
    assert output.prompt_logprobs is not None
    return torch.tensor([found.logprob for found in output.prompt_logprobs if found])


@pytest.mark.parametrize("built", [True, False], ids=["kernels", "fallbacks"])
@pytest.mark.parametrize(
    ("shape", "asked"),
    [
        ("llama", "q4_0"),
        ("llama", "q4_1"),
        ("llama", "q4_k_m"),  # of 5 and 8 bits, since 256 does not divide its rows
        ("llama of 256, tied", "q4_k_m"),
        ("llama of 256, tied", "q8_0"),
        ("deepseek", "q8_0"),
    ],
)
def test_scores_are_the_widened_models(
    shape: str, asked: str, built: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts at once, a few tokens at a time, one by one."""
    if built and not builder().build():
        pytest.skip(builder().reason)
    path = written(shape, asked, tmp_path)
    packed, wide = opening.open_model(path, device="cpu"), load_model(path).eval()
    kinds = {type(module) for module in packed.modules()}
    plain = [name for name, m in packed.named_modules() if isinstance(m, nn.Linear)]
    assert {BlockLinear, BlockEmbedding} <= kinds and (shape != "deepseek" or BlockExperts in kinds)
    assert all(name.endswith("kv_b_proj") for name in plain)
    stored = {name: t for name, t in packed.state_dict().items() if t.dtype == torch.uint8}
    bits = sum(t.nbytes for t in stored.values()) * 8 / sum(t.numel() for t in wide.parameters())
    assert bits < (10 if shape == "llama" else 14)  # the head and the embedding are one matrix
    if not built:
        from llamaseek.kernels import blocks

        monkeypatch.setattr(torch.ops.llamaseek, "linear_blocks", blocks.linear_blocks)
        monkeypatch.setattr(torch.ops.llamaseek, "widen_blocks", blocks.widen_blocks)
    expected = logits(wide, PROMPT)
    scale = float(expected.abs().max())
    assert float((logits(packed, PROMPT) - expected).abs().max()) < 2e-3 * scale
    best = expected.log_softmax(-1)[:-1].gather(1, torch.tensor(PROMPT)[1:, None])[:, 0]
    for most in (512, 16, 1):
        assert float((scored(packed, most) - best).abs().max()) < 2e-3 * scale


def test_dtypes_and_adapters_widen(tmp_path: Path) -> None:
    path = written("llama", "q4_0", tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        word = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        model = opening.open_model(path, device="cpu", dtype=word)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert not any(isinstance(module, BlockLinear) for module in model.modules())


def test_without_a_compiler_blocks_are_widened_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = written("llama", "q4_0", tmp_path)
    none = Builder()
    none.reason = "no compiler"
    monkeypatch.setattr(opening, "builder", lambda: none)
    opening.say_widened.cache_clear()
    for _ in range(2):
        model = opening.open_model(path, device="cpu")
        assert not any(isinstance(module, BlockLinear) for module in model.modules())
    assert [record.getMessage() for record in caplog.records] == [
        "GGUF blocks are widened as they are read: no compiler"
    ]


def test_adapters_are_served_beside_blocks(tmp_path: Path) -> None:
    path = written("llama", "q8_0", tmp_path)
    tuned = load_model(path)
    add_lora(tuned, 4, 8.0, ["q_proj", "down_proj"])
    for layer in tuned.modules():
        if isinstance(layer, LoRALinear):
            nn.init.normal_(layer.lora_B.weight, std=0.2)
    save_adapter(tuned, tmp_path / "a", "base")
    asked = Request(prompt=PROMPT, params=SamplingParams(max_tokens=8), adapter="a")
    adapters = {"a": read_adapter(tmp_path / "a")}
    found = [
        Engine(model, adapters=adapters).generate([asked])[0].answers[0].tokens
        for model in (opening.open_model(path, device="cpu"), load_model(path).eval())
    ]
    assert found[0] == found[1]
