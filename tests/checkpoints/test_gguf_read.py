"""GGUF files as configs and tensors, against the gguf package and the formulas of its converter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from llamaseek.checkpoints.gguf.read import open_placed
from llamaseek.errors import UserError
from llamaseek.gguf_header import read_gguf
from llamaseek.herd import DeepseekV3Config, Llama3Config, RopeScaling
from llamaseek.herd.gguf_config import gguf_config
from llamaseek.herd.gguf_tensors import placed_tensors
from llamaseek.herd.tensors import model_tensors
from llamaseek.models.lazy import Lazy
from tests.checkpoints.gguf_files import (
    DEEPSEEK,
    HEADS,
    SHARED,
    SIZES,
    SMOLLM2,
    llama_tensors,
    needs_smollm2,
    write,
)

KINDS = [
    kind
    for kind in GGMLQuantizationType
    if kind.name not in ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K", "Q1_0")
]


def opened(path: Path) -> dict[str, Lazy]:
    header = read_gguf(path)
    return open_placed(placed_tensors(header, gguf_config(header)))


def whole(tensor: Lazy) -> torch.Tensor:
    return torch.cat([tensor.rows(start, stop) for start, stop in tensor.pieces()])


def refused(path: Path, **changes: Any) -> str:
    metadata = {**SIZES, **changes}
    write(path, {k: v for k, v in metadata.items() if v is not None}, llama_tensors())
    with pytest.raises(UserError) as raised:
        gguf_config(read_gguf(path))
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)
    return str(raised.value)


def test_a_llama_config(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", SIZES, llama_tensors())
    assert gguf_config(read_gguf(path)) == Llama3Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
    )


def test_a_missing_head_is_tied(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", SIZES, llama_tensors(tied=True))
    assert gguf_config(read_gguf(path)).tie_word_embeddings
    assert "lm_head.weight" not in opened(path)


def test_special_ids(tmp_path: Path) -> None:
    ids = {f"tokenizer.ggml.{k}_token_id": i for k, i in (("bos", 1), ("eos", 2), ("eot", 9))}
    path = write(tmp_path / "m.gguf", {**SIZES, **ids}, llama_tensors())
    config = gguf_config(read_gguf(path))
    assert config.bos_token_id == 1 and config.eos_token_id == (2, 9)


def interleave(halves: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of queries and keys."""
    shape = halves.shape
    return halves.reshape(heads, 2, shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(shape)


def test_queries_and_keys_are_halves_again(tmp_path: Path) -> None:
    ours = llama_tensors()
    theirs = dict(ours)
    for name in ours:
        if "attn_q." in name or "attn_k." in name:
            theirs[name] = interleave(ours[name], HEADS if "attn_q." in name else SHARED)
    found = opened(write(tmp_path / "m.gguf", SIZES, theirs))
    for name, theirs_name in {
        "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
        "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        np.testing.assert_array_equal(whole(found[name]).numpy(), ours[theirs_name])
    part = found["model.layers.1.self_attn.q_proj.weight"].rows(5, 37).numpy()
    np.testing.assert_array_equal(part, ours["blk.1.attn_q.weight"][5:37])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # scales drawn at random may be no number
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_that_the_package_widens(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    width = 256
    sizes = {**SIZES, "llama.embedding_length": width, "llama.attention.head_count": 16}
    sizes["llama.attention.head_count_kv"] = 16
    draw = np.random.default_rng(0)
    data = draw.integers(0, 256, (300, width // block * size), np.uint8)
    tensors: dict[str, Any] = llama_tensors()
    tensors["token_embd.weight"] = (data, kind)
    path = write(tmp_path / "m.gguf", sizes, tensors)
    ours = whole(opened(path)["model.embed_tokens.weight"]).float().numpy()
    np.testing.assert_array_equal(ours, dequantize(data, kind).astype(np.float32))


def test_quantized_matrices_keep_their_blocks(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_0
    draw = np.random.default_rng(0)
    data = draw.integers(0, 127, (64, 2 * 34), np.uint8)
    tensors: dict[str, Any] = {**llama_tensors(), "blk.0.attn_q.weight": (data, kind)}
    tensors["blk.0.attn_output.weight"] = (data, kind)
    found = opened(write(tmp_path / "m.gguf", SIZES, tensors))
    plain, turned = (
        found[f"model.layers.0.self_attn.{name}_proj.weight"].blocks  # type: ignore[attr-defined]
        for name in "oq"
    )
    assert plain.kind == turned.kind == kind and plain.order is None
    np.testing.assert_array_equal(plain.data, data)
    expected = dequantize(data, kind)[turned.order.numpy()]
    np.testing.assert_array_equal(turned.rows(0, 64).numpy(), expected)


def test_a_type_that_cannot_be_widened(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_K
    tensors: dict[str, Any] = llama_tensors()
    tensors["blk.0.ffn_down.weight"] = (np.zeros((64, 292), np.uint8), kind)
    path = write(tmp_path / "m.gguf", SIZES, tensors)
    with pytest.raises(UserError, match="blk.0.ffn_down.weight is Q8_K, which cannot be widened"):
        opened(path)


def divisors(scaling: RopeScaling, theta: float, width: int) -> np.ndarray:
    """llama.cpp's converter: what Llama 3.1 divides each rotary frequency by."""
    found = []
    low = scaling.original_max_position_embeddings / scaling.low_freq_factor
    high = scaling.original_max_position_embeddings / scaling.high_freq_factor
    for i in range(0, width, 2):
        wave = 2 * math.pi * theta ** (i / width)
        if wave < high:
            found.append(1.0)
        elif wave > low:
            found.append(scaling.factor)
        else:
            smooth = (low * scaling.low_freq_factor / wave - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            found.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(found, np.float32)


@pytest.mark.parametrize("theta", [500000.0, 10000.0])
@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("llama3", 8.0, 8192, 1.0, 4.0),
        RopeScaling("llama3", 32.0, 8192, 1.0, 4.0),
        RopeScaling("llama3", 4.0, 8192, 2.0, 16.0),
    ],
    ids=["3.1", "3.2", "its own"],
)
def test_llama_3_scaling_follows_from_the_divisors(
    scaling: RopeScaling, theta: float, tmp_path: Path
) -> None:
    sizes = {**SIZES, "llama.attention.head_count": 1, "llama.attention.head_count_kv": 1}
    sizes["llama.rope.freq_base"] = theta
    tensors = {**llama_tensors(), "rope_freqs.weight": divisors(scaling, theta, 64)}
    path = write(tmp_path / "m.gguf", sizes, tensors)
    found = gguf_config(read_gguf(path)).rope_scaling
    assert found is not None
    if scaling.low_freq_factor == 1.0:
        assert found == scaling
    np.testing.assert_allclose(divisors(found, theta, 64), divisors(scaling, theta, 64), rtol=1e-4)
    assert "rope_freqs.weight" not in opened(path)


def test_a_scaling_that_is_not_llama_3s(tmp_path: Path) -> None:
    wild = np.linspace(1, 9, 8).astype(np.float32)[::-1].copy()
    path = write(tmp_path / "m.gguf", SIZES, {**llama_tensors(), "rope_freqs.weight": wild})
    with pytest.raises(
        UserError, match="rope_freqs.weight holds a scaling that is not Llama 3.1's"
    ):
        gguf_config(read_gguf(path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"llama.embedding_length": None}, "lacks the key llama.embedding_length"),
        ({"llama.embedding_length": "64"}, "llama.embedding_length is '64', not a whole number"),
        ({"llama.attention.head_count": [4, 8]}, "head_count differs from layer to layer"),
        ({"llama.expert_count": 8}, "llama.expert_count is 8"),
        ({"llama.attention.key_length": 32}, "llama.attention.value_length is 16"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}, "longrope"),
        ({"llama.attention.sliding_window": 512}, "llama.attention.sliding_window (512)"),
        ({"llama.rope.scaling.attn_factor": 2.0}, "rope.scaling.attn_factor is 2.0"),
    ],
)
def test_settings_that_are_not_read(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    if "llama.attention.key_length" in changes:
        changes = {**changes, "llama.attention.value_length": 16}
    assert named in refused(tmp_path / "m.gguf", **changes)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf", {}, {"token_embd.weight": np.zeros((4, 32), np.float32)}, "qwen2"
    )
    with pytest.raises(UserError, match="is a qwen2 model; read are llama .*, deepseek2"):
        gguf_config(read_gguf(path))


def deepseek_tensors() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (300, 64),
        "output.weight": (300, 64),
        "output_norm.weight": (64,),
    }
    for layer in range(2):
        one: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (64,),
            "attn_q_a.weight": (24, 64),
            "attn_q_a_norm.weight": (24,),
            "attn_q_b.weight": (48, 24),
            "attn_kv_a_mqa.weight": (40, 64),
            "attn_kv_a_norm.weight": (32,),
            "attn_k_b.weight": (2, 32, 16),
            "attn_v_b.weight": (2, 12, 32),
            "attn_output.weight": (64, 24),
            "ffn_norm.weight": (64,),
        }
        if layer == 0:
            one |= {f"ffn_{n}.weight": (96, 64) for n in ("gate", "up")} | {
                "ffn_down.weight": (64, 96)
            }
        else:
            one |= {"ffn_gate_inp.weight": (4, 64), "exp_probs_b.bias": (4,)}
            one |= {f"ffn_{n}_exps.weight": (4, 48, 64) for n in ("gate", "up")}
            one |= {f"ffn_{n}_shexp.weight": (48, 64) for n in ("gate", "up")}
            one |= {"ffn_down_exps.weight": (4, 64, 48), "ffn_down_shexp.weight": (64, 48)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in one.items()}
    return {name: draw.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_deepseek(tmp_path: Path) -> None:
    tensors = deepseek_tensors()
    path = write(tmp_path / "m.gguf", DEEPSEEK, tensors, "deepseek2")
    config = gguf_config(read_gguf(path))
    assert config == DeepseekV3Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        q_lora_rank=24,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
        moe_intermediate_size=48,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
    )
    found = opened(path)
    assert {name: tensor.shape for name, tensor in found.items()} == dict(model_tensors(config))
    joined = whole(found["model.layers.0.self_attn.kv_b_proj.weight"]).numpy().reshape(2, 28, 32)
    np.testing.assert_array_equal(joined[:, :16], tensors["blk.0.attn_k_b.weight"].swapaxes(1, 2))
    np.testing.assert_array_equal(joined[:, 16:], tensors["blk.0.attn_v_b.weight"])
    some = found["model.layers.0.self_attn.kv_b_proj.weight"].rows(10, 33).numpy()
    np.testing.assert_array_equal(some, joined.reshape(56, 32)[10:33])
    expert = whole(found["model.layers.1.mlp.experts.2.up_proj.weight"]).numpy()
    np.testing.assert_array_equal(expert, tensors["blk.1.ffn_up_exps.weight"][2])


def test_yarn_of_deepseek(tmp_path: Path) -> None:
    keys = {
        "deepseek2.rope.scaling.type": "yarn",
        "deepseek2.rope.scaling.factor": 40.0,
        "deepseek2.rope.scaling.original_context_length": 4096,
        "deepseek2.rope.scaling.yarn_log_multiplier": 0.1,
    }
    path = write(tmp_path / "m.gguf", {**DEEPSEEK, **keys}, deepseek_tensors(), "deepseek2")
    expected = RopeScaling("yarn", 40.0, 4096, mscale=1.0, mscale_all_dim=1.0)
    assert gguf_config(read_gguf(path)).rope_scaling == expected


def test_an_unknown_tensor_keeps_its_own_name(tmp_path: Path) -> None:
    extra = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    path = write(tmp_path / "m.gguf", SIZES, {**llama_tensors(), **extra})
    header = read_gguf(path)
    assert "blk.0.attn_q.bias" in placed_tensors(header, gguf_config(header))


@needs_smollm2
def test_smollm2_equals_the_package() -> None:
    found = opened(SMOLLM2)
    theirs = {tensor.name: tensor for tensor in GGUFReader(SMOLLM2).tensors}
    tensor = theirs["blk.7.attn_k.weight"]
    rows = dequantize(tensor.data, tensor.tensor_type).reshape(3, 32, 2, 576)
    expected = rows.swapaxes(1, 2).reshape(192, 576)
    ours = whole(found["model.layers.7.self_attn.k_proj.weight"]).numpy()
    np.testing.assert_array_equal(ours, expected)
    embedding = theirs["token_embd.weight"]
    expected = dequantize(embedding.data[:500], embedding.tensor_type)
    np.testing.assert_array_equal(found["model.embed_tokens.weight"].rows(0, 500).numpy(), expected)
