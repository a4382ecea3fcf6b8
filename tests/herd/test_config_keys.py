"""Every key of transformers' config classes: the same logits, or one line that names the key.

Each key is set off its default alone, left out, and changed together with another one. CI takes a
tenth of the pairs; `LLAMASEEK_SWEEP=200` takes that many for each family.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llamaseek.checkpoints.hf import load_model
from llamaseek.errors import UserError
from llamaseek.herd import config_from_dict
from llamaseek.herd.folder import read_config
from llamaseek.herd.json_config import unused_keys
from tests.models.test_parity import relative

PAIRS = int(os.environ.get("LLAMASEEK_SWEEP", "20"))
WITHIN = 1e-5
CLASSES: dict[str, Any] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "deepseek_v3": (transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM),
}
SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    },
    "deepseek_v3": {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "moe_intermediate_size": 16,
        "n_routed_experts": 16,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 64,
    },
}
REQUIRED = {
    "llama": list(SIZES["llama"])[:5],
    "deepseek_v3": [*list(SIZES["llama"])[:5], *list(SIZES["deepseek_v3"])[7:13]],
}
"""Without these there is no model of any use, whatever transformers would take."""

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
ROPE: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_theta": 500.0},
    {"rope_type": "default", "factor": 2.0},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "linear", "factor": 3.0, "rope_theta": 300.0},
    {"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "factor": 3.0, "mscale_all_dim": 1.0},
    {"rope_type": "linear"},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    LLAMA3,
    {**LLAMA3, "rope_theta": 1000.0},
    {**LLAMA3, "low_freq_factor": 2.0, "high_freq_factor": 3.0},
    {key: value for key, value in LLAMA3.items() if key != "low_freq_factor"},
    {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"},
    {**LLAMA3, "high_freq_factor": 1.0},
    {**LLAMA3, "attention_factor": 1.5},
    YARN,
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "finetuned": True},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "original_max_position_embeddings": 16},
    {**YARN, "factor": None},
    {**YARN, "rope_theta": 1000.0},
    {**YARN, "attention_factor": 1.5},
    {**YARN, "attention_factor": 0.5, "mscale": 0.7, "mscale_all_dim": 1.0},
    {**YARN, "truncate": False},
    {**YARN, "truncate": None},
    {**YARN, "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False},
    {**YARN, "beta_fast": None, "beta_slow": 0},
    {**YARN, "beta_fast": 1.0, "beta_slow": 2.0},
    {**YARN, "mscale": 0.7},
    {**YARN, "mscale_all_dim": 1.0},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0},
    {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    {**YARN, "original_max_position_embeddings": 10_000_000},
    {**YARN, "partial_rotary_factor": 1.0},
]
CHANGES: dict[str, list[Any]] = {
    "transformers_version": ["4.1.0"],
    "architectures": [["LlamaForTokenClassification"], ["MistralForCausalLM"]],
    "output_hidden_states": [True],
    "return_dict": [False],
    "dtype": ["float64", "bfloat16"],
    "chunk_size_feed_forward": [2],
    "is_encoder_decoder": [True],
    "id2label": [{"0": "good"}],
    "label2id": [{"good": 0}],
    "problem_type": ["regression"],
    "vocab_size": [67],
    "hidden_size": [40],
    "intermediate_size": [56],
    "num_hidden_layers": [3],
    "num_attention_heads": [8],
    "num_key_value_heads": [4, 1, None],
    "hidden_act": ["gelu", "relu", "swish"],
    "max_position_embeddings": [128],
    "initializer_range": [0.5],
    "rms_norm_eps": [0.1, None],
    "use_cache": [False],
    "pad_token_id": [5],
    "bos_token_id": [3, None],
    "eos_token_id": [[2, 3], None],
    "pretraining_tp": [2],
    "tie_word_embeddings": [True],
    "rope_parameters": ROPE,
    "rope_scaling": [ROPE[4], LLAMA3, YARN, {**YARN, "rope_theta": 700.0}],
    "rope_theta": [500.0, 0.5],
    "original_max_position_embeddings": [32],
    "attention_bias": [True],
    "attention_dropout": [0.5],
    "output_attentions": [True],
    "partial_rotary_factor": [0.5],
    "sliding_window": [4],
    "per_layer_config": [{"0": {"rms_norm_eps": 0.5}}],
    # Llama's
    "mlp_bias": [True],
    "head_dim": [16, None],
    # DeepSeek-V3's
    "moe_intermediate_size": [24],
    "n_shared_experts": [2],
    "n_routed_experts": [32],
    "num_local_experts": [32],
    "output_router_logits": [True],
    "routed_scaling_factor": [1.0],
    "kv_lora_rank": [24],
    "q_lora_rank": [20, None],
    "qk_rope_head_dim": [4],
    "v_head_dim": [12, 24],
    "qk_nope_head_dim": [12],
    "n_group": [2, 8, 1, None],
    "topk_group": [1, 4, None],
    "num_experts_per_tok": [1, 8],
    "first_k_dense_replace": [0, 4],
    "norm_topk_prob": [False, None],
    "rope_interleave": [False, None],
    "num_nextn_predict_layers": [0, 1],
    "num_mtp_layers": [1],
    "qk_head_dim": [20],
}
ONLY = {"llama": ("mlp_bias",), "deepseek_v3": tuple(list(CHANGES)[-19:])}


def changes(family: str) -> list[tuple[str, Any]]:
    other = ONLY["deepseek_v3" if family == "llama" else "llama"]
    return [(key, value) for key in CHANGES if key not in other for value in CHANGES[key]]


def base(family: str) -> dict[str, Any]:
    """A config.json with every size given, so that one change is one change."""
    return {"model_type": family, "architectures": [CLASSES[family][1].__name__], **SIZES[family]}


def reference(data: dict[str, Any]) -> Any:
    """transformers' model of a config.json, float32, its weights drawn without the config."""
    make_config, make_model = CLASSES[data["model_type"]]
    model = make_model(make_config.from_dict(json.loads(json.dumps(data)))).float().eval()
    draw = torch.Generator().manual_seed(0)
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("e_score_correction_bias"):
            weight.data.normal_(std=0.1, generator=draw)
        elif name in dict(model.named_parameters()):
            norm = "norm" in name
            weight.data.normal_(float(norm), 0.1 if norm else 0.15, generator=draw)
    return model


def names_of(key: str, value: Any) -> list[str]:
    """What an error may call a changed key: itself, or a key within it."""
    within = isinstance(value, dict) and key.startswith("rope")
    return [key, *(("rope_scaling", "rope_theta", *value) if within else ())]


def check(data: dict[str, Any], names: list[str], folder: Path) -> str:
    """Which of three ways it went; AssertionError where a difference is silent."""
    try:
        theirs = reference(data)
        tokens = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted = theirs(tokens, use_cache=False, return_dict=True).logits
        theirs.save_pretrained(folder)
    except Exception:
        theirs = None
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(data))
    try:
        if theirs is None:
            read_config(folder)
            return "transformers fails"
        ours = load_model(folder).eval()
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        assert any(name in message.replace(str(folder), "") for name in names), message
        return "refused"
    with torch.no_grad():
        logits = ours.logits(ours(tokens, torch.arange(40).expand(2, 40)))
    assert relative(logits, wanted) <= WITHIN, (names, float(relative(logits, wanted)))
    return "equal"


@pytest.mark.parametrize("family", CLASSES)
def test_every_key_of_transformers_is_known(family: str) -> None:
    default = CLASSES[family][0]().to_dict()
    assert not unused_keys(default)
    assert {key for key in default if not key.startswith("_")} <= {*CHANGES, "model_type"}
    assert unused_keys({**base(family), "sliding_windows": 3}) == ["sliding_windows"]


@pytest.mark.parametrize("family", CLASSES)
def test_each_key_alone(family: str, tmp_path: Path) -> None:
    assert check(base(family), [], tmp_path / "base") == "equal"
    ways = {"equal": 0, "refused": 0, "transformers fails": 0}
    for n, (key, value) in enumerate(changes(family)):
        data = {**base(family), key: value}
        ways[check(data, names_of(key, value), tmp_path / str(n))] += 1
    assert ways["equal"] > 40 and ways["refused"] > 15, ways


@pytest.mark.parametrize("family", CLASSES)
def test_each_key_left_out(family: str, tmp_path: Path) -> None:
    for key in SIZES[family]:
        data = {name: value for name, value in base(family).items() if name != key}
        if key in REQUIRED[family]:
            with pytest.raises(UserError, match=f"lacks.* {key}"):
                config_from_dict(data)
        else:
            assert check(data, [key], tmp_path / key) in ("equal", "transformers fails"), key


@pytest.mark.parametrize("family", CLASSES)
def test_pairs_of_keys(family: str, tmp_path: Path) -> None:
    draw = random.Random(3)
    for n in range(PAIRS):
        pair = draw.sample(changes(family), 2)
        data = {**base(family), **dict(pair)}
        check(data, [name for each in pair for name in names_of(*each)], tmp_path / str(n))


def test_missing_keys_are_transformers_defaults() -> None:
    for family in CLASSES:
        ours = config_from_dict({k: base(family)[k] for k in ("model_type", *REQUIRED[family])})
        theirs = CLASSES[family][0](**{k: base(family)[k] for k in REQUIRED[family]})
        assert theirs.rope_parameters == {"rope_type": "default", "rope_theta": ours.rope_theta}
        # Ids of tokens are the tokenizer's business; no class's default is right for most folders.
        other = ("bos_token_id", "eos_token_id", "rope_scaling")
        compared = [key for key in vars(ours) if key not in other and hasattr(theirs, key)]
        assert len(compared) > 10
        for key in compared:
            assert getattr(ours, key) == getattr(theirs, key), key


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM"),
        ({"model_type": "mllama", "text_config": {}}, "mllama"),
        ({"model_type": "mistral", "sliding_window": 4096}, "mistral"),
        ({"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"]}, "deepseek_v2"),
        ({"hidden_size": 8}, "model_type"),
        ({"model_type": 3}, "model_type"),
    ],
)
def test_other_architectures_are_named(data: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        config_from_dict(data)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    if data.get("model_type") != 3:
        assert "llama (Llama 2 and 3" in str(caught.value)
        assert "deepseek_v3 (DeepSeek-V3 and R1)" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 1e9),
        ("num_hidden_layers", 1_000_000_000),
        ("num_hidden_layers", True),
        ("n_routed_experts", 1 << 40),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", -1.0),
        ("rope_theta", float("inf")),
        ("rope_theta", [1]),
        ("routed_scaling_factor", None),
        ("tie_word_embeddings", "yes"),
        ("norm_topk_prob", 1),
        ("eos_token_id", "2"),
        ("eos_token_id", [2, "3"]),
        ("rope_scaling", [1]),
        ("rope_scaling", {"rope_type": ["yarn"]}),
        ("rope_scaling", {**YARN, "factor": "4"}),
        ("rope_scaling", {**YARN, "truncate": 1}),
        ("quantization_config", "gptq"),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [7]),
        ("id2label", ["a"]),
        ("hidden_act", ["silu"]),
        ("head_dim", 6),
    ],
)
def test_values_of_the_wrong_kind_are_named(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=key) as caught:
        config_from_dict({**base("deepseek_v3"), key: value})
    assert "\n" not in str(caught.value)


def test_layers_of_experts_have_a_limit() -> None:
    data = {**base("deepseek_v3"), "num_hidden_layers": 9000, "n_routed_experts": 6000}
    with pytest.raises(UserError, match="num_hidden_layers: 9,000 layers of 6,000 experts"):
        config_from_dict(data)
