"""GPTQ and AWQ folders, packed here word by word as their documentation says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llamaseek.checkpoints.convert import Conversion
from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.engine.open import open_model
from llamaseek.errors import UserError
from llamaseek.kernels.build import builder
from llamaseek.models.quant.blocks import BlockExperts, BlockLinear
from tests.cli.run import Cli
from tests.models.shapes import GGUF_DEEPSEEK, GGUF_LLAMA, reference_model, rows, tiny_config
from tests.models.test_parity import relative

SIZES = {"llama3": GGUF_LLAMA, "deepseek_v3": GGUF_DEEPSEEK}
GPTQ = {"quant_method": "gptq", "bits": 4, "desc_act": False, "damp_percent": 0.1}
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "gptq": ({**GPTQ, "sym": False, "group_size": 32}, False),
    "gptq symmetric": ({**GPTQ, "sym": True, "group_size": 32, "checkpoint_format": "gptq"}, True),
    "gptq rows": ({**GPTQ, "sym": True, "group_size": -1}, True),
    "gptq_v2": ({**GPTQ, "sym": False, "group_size": 32, "checkpoint_format": "gptq_v2"}, False),
    "awq": ({**AWQ, "group_size": 32}, False),
}


def nibbles(codes: np.ndarray) -> np.ndarray:
    """codes (..., 8) below 16 → int32 words (...), the first lowest."""
    words = np.zeros(codes.shape[:-1], dtype=np.uint32)
    for place in range(8):
        words |= codes[..., place].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def by_outputs(codes: np.ndarray, awq: bool) -> np.ndarray:
    """codes (A, N) → words (A, N / 8); AWQ's i-th nibble holds output 0, 2, 4, 6, 1, 3, 5, 7."""
    eights = codes.reshape(codes.shape[0], -1, 8)
    return nibbles(eights[..., [0, 2, 4, 6, 1, 3, 5, 7]] if awq else eights)


def quantized(
    weight: torch.Tensor, config: dict[str, Any], symmetric: bool
) -> tuple[dict[str, Any], torch.Tensor]:
    """The tensors of one matrix (N, K), and the numbers (N, K) they stand for."""
    inputs, outputs = weight.shape[1], weight.shape[0]
    size = config["group_size"] if config["group_size"] > 0 else inputs
    turned = weight.float().T.reshape(-1, size, outputs).numpy()  # (G, group, N)
    low, high = turned.min(1), turned.max(1)
    scales = ((high - low) / 15).astype(np.float16)
    zeros = np.round(-low / scales).clip(1, 15)
    if symmetric:
        scales, zeros = (np.abs(turned).max(1) / 7.5).astype(np.float16), np.full_like(zeros, 8)
    wide = scales.astype(np.float32)[:, None]
    codes = np.round(turned / wide + zeros[:, None]).clip(0, 15).reshape(inputs, outputs)
    dense = (codes.reshape(turned.shape) - zeros[:, None]) * wide
    awq = config["quant_method"] == "awq"
    less = 0 if awq or config.get("checkpoint_format") == "gptq_v2" else 1
    down = codes.reshape(-1, 8, outputs).transpose(0, 2, 1)
    found = {
        "qweight": by_outputs(codes, True) if awq else nibbles(down),
        "qzeros": by_outputs(zeros - less, awq),
        "scales": scales,
    }
    if not awq:
        found["g_idx"] = np.arange(inputs, dtype=np.int32) // size
    return found, torch.from_numpy(dense.reshape(inputs, outputs).T.copy())


def made(family: str, kind: str, folder: Path) -> Any:
    """A quantized folder, and transformers' model of the numbers it stands for."""
    folder.mkdir()
    config, symmetric = KINDS[kind]
    theirs = reference_model(tiny_config(family, **SIZES[family]))
    theirs.save_pretrained(folder)
    plain = load_model(folder)
    save_model(plain, folder / "dense")
    tensors = load_file(folder / "dense" / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in list(tensors.items()):
        if not name.endswith("_proj.weight") and "kv_a_proj_with_mqa" not in name:
            stored[name] = tensor.half() if "norm" in name or "embed" in name else tensor
            tensors[name] = stored[name].float()
            continue
        parts, tensors[name] = quantized(tensor, config, symmetric)
        base = name.removesuffix("weight")
        stored |= {
            base + part: torch.from_numpy(np.ascontiguousarray(v)) for part, v in parts.items()
        }
    data = json.loads((folder / "dense" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "quantization_config": config}))
    save_file(stored, folder / "model.safetensors")
    save_file(tensors, folder / "dense" / "model.safetensors", {"format": "pt"})
    return type(theirs).from_pretrained(folder / "dense").eval()


def logits(folder: Path, **options: Any) -> torch.Tensor:
    model = load_model(folder, **options).eval()
    tokens, positions = rows()
    with torch.no_grad():
        return model.logits(model(tokens, positions))


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_plain_formula(family: str, kind: str, tmp_path: Path) -> None:
    theirs = made(family, kind, tmp_path / "model")
    with torch.no_grad():
        wanted = theirs(rows()[0], use_cache=False).logits
    assert relative(logits(tmp_path / "model"), wanted) < 1e-5
    Conversion(tmp_path / "model", tmp_path / "wide", torch.float32).run()
    assert "quantization_config" not in json.loads((tmp_path / "wide/config.json").read_text())
    assert relative(logits(tmp_path / "wide"), wanted) < 1e-5
    Conversion(tmp_path / "model", tmp_path / "kept").run()
    assert relative(logits(tmp_path / "kept"), wanted) < 1e-5


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_engines_multiply_blocks(family: str, kind: str, tmp_path: Path) -> None:
    """Blocks hold the same numbers; the kernels' activations of 15 bits keep the logits of the
    plain formula within 1e-3."""
    builder().build()
    theirs = made(family, kind, tmp_path / "model")
    model = load_model(tmp_path / "model", packed=True)
    dense = dict(load_model(tmp_path / "model").named_parameters())
    layers = {n: m for n, m in model.named_modules() if isinstance(m, BlockLinear)}
    assert len(layers) > 10
    bits = 4.5 if KINDS[kind][1] else 8.5  # Q4_0, or Q8_0 for zero points of their own
    for name, layer in layers.items():
        assert relative(layer.dense(torch.float32), dense[f"{name}.weight"].detach()) < 1e-6
        assert layer.weight_blocks.numel() * 8 == bits * layer.in_features * layer.out_features
    experts = any(isinstance(module, BlockExperts) for module in model.modules())
    assert experts == (family == "deepseek_v3")
    with torch.no_grad():
        wanted = theirs(rows()[0], use_cache=False).logits
    assert relative(logits(tmp_path / "model", packed=True), wanted) < 1e-3


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("gptq", {"desc_act": True}, "quantization_config.desc_act: True"),
        ("gptq", {"bits": 3}, "quantization_config.bits: 3"),
        (
            "gptq",
            {"checkpoint_format": "marlin"},
            "quantization_config.checkpoint_format: 'marlin'",
        ),
        ("gptq", {"dynamic": {"-:.*": {}}}, "quantization_config.dynamic"),
        ("awq", {"version": "gemv"}, "quantization_config.version: 'gemv'"),
        ("awq", {"bits": 8}, "quantization_config.bits: 8"),
        ("awq", {"quant_method": "bitsandbytes"}, "quantization_config: "),
        ("awq", {"quant_method": "hqq"}, "quantization_config: "),
    ],
)
def test_other_kinds_are_named(
    kind: str, change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    made("llama3", kind, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "quantization_config": KINDS[kind][0] | change}))
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "model")
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.update({"g_idx": t["g_idx"].flip(0)}), r"g_idx: is an order of its own"),
        (lambda t: t.update({"bias": torch.ones(64)}), r"q_proj\.bias: is not zero"),
        (lambda t: t.pop("qzeros"), r"lacks the tensor .*q_proj\.qzeros"),
        (lambda t: t.update({"qzeros": t["qzeros"].float()}), r"q_proj\.qzeros is F32"),
        (lambda t: t.update({"qweight": t["qweight"][:4]}), r"q_proj\.qweight has shape \[4, 64\]"),
        (lambda t: t.update({"scales": t["scales"][:, :8]}), r"q_proj\.scales has shape \[2, 8\]"),
    ],
)
def test_broken_tensors_are_named(change: Any, named: str, tmp_path: Path) -> None:
    made("llama3", "gptq", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    prefix = "model.layers.0.self_attn.q_proj."
    parts = {
        name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if prefix in name
    }
    change(parts)
    whole = {prefix + name: tensor.contiguous() for name, tensor in parts.items()}
    save_file({**tensors, **whole}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(UserError, match=named):
        load_model(tmp_path / "model")


def test_verbs_take_such_a_folder(cli: Cli, tmp_path: Path) -> None:
    made("llama3", "awq", tmp_path / "model")
    facts = json.loads(cli("inspect", str(tmp_path / "model"), "--json").out)
    opened = open_model(tmp_path / "model")
    assert any(isinstance(module, BlockLinear) for module in opened.modules())
    exact = open_model(tmp_path / "model", dtype="fp32")
    assert not any(isinstance(module, BlockLinear) for module in exact.modules())
    assert facts["problems"] == [] and facts["dtypes"]["I32"] == 42
    assert (
        cli("plan", str(tmp_path / "model"), "--task", "inference", "--gpu", "h100-80gb").code == 0
    )
    assert (
        cli("convert", str(tmp_path / "model"), str(tmp_path / "new"), "--dtype", "bfloat16").code
        == 0
    )
    assert json.loads(cli("inspect", str(tmp_path / "new"), "--json").out)["dtypes"] == {"BF16": 30}
