"""A GGUF file's metadata as the config of a model. No torch, no weights but a rotary table.

Sources: llama.cpp `src/llama-model.cpp`, `src/models/llama.cpp` and `src/models/deepseek2.cpp` for
what each key means and what a missing one stands for; `conversion/` for what is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import ExpertGatingFuncType, GGMLQuantizationType

from llamaseek.errors import UserError, shorten
from llamaseek.gguf_header import GgufHeader, GgufTensor
from llamaseek.herd.configs import ModelConfig
from llamaseek.herd.deepseek_v3 import DeepseekV3Config
from llamaseek.herd.llama3 import Llama3Config
from llamaseek.herd.rotary import RopeScaling

ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
READ = {"llama": Llama3Config.title, "deepseek2": DeepseekV3Config.title}
SHARED = (
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.causal",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
    "expert_count",
    "expert_used_count",
    "tensor_data_layout",
)
OF_DEEPSEEK = (
    "attention.q_lora_rank",
    "attention.kv_lora_rank",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "leading_dense_block_count",
    "expert_feed_forward_length",
    "expert_shared_count",
    "expert_group_count",
    "expert_group_used_count",
    "expert_weights_scale",
    "expert_weights_norm",
    "expert_gating_func",
    "nextn_predict_layers",
)
NEXTN = "blk.{}.nextn.eh_proj.weight"
NOT_LLAMA3 = "rope_freqs.weight holds a scaling that is not Llama 3.1's, which is not read"
LLAMA3_FREQUENCIES = (1.0, 4.0, 8192)
"""low_freq_factor, high_freq_factor and original length of every Llama 3 that has scaling."""


def gguf_config(header: GgufHeader) -> ModelConfig:
    """The config of a GGUF file.

    Raises `UserError`, naming the key, for an architecture that is not read, for a key that is
    missing or has no meaning here, and for settings that would be run wrongly.
    """
    arch = header.architecture
    if arch not in READ:
        known = ", ".join(f"{name} ({what})" for name, what in READ.items())
        raise UserError(f"{header.path}: is a {shorten(arch)} model; read are {known}")
    _refuse_unknown(header)
    try:
        return _llama(header) if arch == "llama" else _deepseek(header)
    except UserError as error:
        message = str(error)
        raise UserError(
            message if str(header.path) in message else f"{header.path}: {message}"
        ) from None


def _refuse_unknown(header: GgufHeader) -> None:
    arch = header.architecture
    known = {f"{arch}.{key}" for key in SHARED + (OF_DEEPSEEK if arch == "deepseek2" else ())}
    for key, value in header.metadata.items():
        if key.startswith(f"{arch}.") and key not in known:
            raise UserError(f"{header.path}: {key} ({shorten(repr(value))}) is not understood")


def _llama(header: GgufHeader) -> Llama3Config:
    if experts := header.get("{arch}.expert_count", int, 0):
        raise UserError(f"llama.expert_count is {experts}; read are Llama models without experts")
    shared = _shared(header)
    width, heads = shared["hidden_size"], shared["num_attention_heads"]
    head = header.get("{arch}.attention.key_length", int, width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (found := header.get("{arch}." + key, int, head)) != head:
            raise UserError(
                f"llama.{key} is {found}; read are files where it is {head}, as keys have"
            )
    return Llama3Config(
        **shared,
        num_key_value_heads=_one(header, "attention.head_count_kv", heads),
        head_dim=head,
        rope_scaling=_frequencies(header) or _scaling(header),
    )


def _deepseek(header: GgufHeader) -> DeepseekV3Config:
    shared = _shared(header)
    gating = header.get("{arch}.expert_gating_func", int, ExpertGatingFuncType.SOFTMAX)
    if gating != ExpertGatingFuncType.SIGMOID:
        raise UserError(
            f"deepseek2.expert_gating_func is {gating} (2 is sigmoid, which DeepSeek-V3 has); "
            "DeepSeek-V2, which has softmax, is not read"
        )
    rotary = header.need("{arch}.rope.dimension_count", int)
    latent = "key_length_mla" if _has(header, "attention.key_length_mla") else "key_length"
    key = header.need("{arch}.attention." + latent, int)
    value = header.need("{arch}.attention." + latent.replace("key", "value"), int)
    ahead = header.get("{arch}.nextn_predict_layers", int, 0)
    layers = shared.pop("num_hidden_layers") - ahead
    stored = NEXTN.format(layers) in header.tensors
    return DeepseekV3Config(
        **shared,
        num_hidden_layers=layers,
        num_nextn_predict_layers=ahead if stored else 0,
        q_lora_rank=header.get("{arch}.attention.q_lora_rank", int, 0) or None,
        kv_lora_rank=header.need("{arch}.attention.kv_lora_rank", int),
        qk_nope_head_dim=key - rotary,
        qk_rope_head_dim=rotary,
        v_head_dim=value,
        moe_intermediate_size=_one(header, "expert_feed_forward_length"),
        n_routed_experts=header.need("{arch}.expert_count", int),
        num_experts_per_tok=_one(header, "expert_used_count"),
        n_shared_experts=header.get("{arch}.expert_shared_count", int, 0),
        n_group=header.get("{arch}.expert_group_count", int, 0) or 1,
        topk_group=header.get("{arch}.expert_group_used_count", int, 0) or 1,
        first_k_dense_replace=header.get("{arch}.leading_dense_block_count", int, 0),
        norm_topk_prob=header.get("{arch}.expert_weights_norm", bool, False),
        routed_scaling_factor=header.get("{arch}.expert_weights_scale", float, 0.0) or 1.0,
        rope_scaling=_scaling(header),
    )


def _shared(header: GgufHeader) -> dict[str, Any]:
    """What both families' configs have, but for rotary scaling."""
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError("lacks the tensor token_embd.weight; it holds a vocabulary or half a split")
    layers = header.need("{arch}.block_count", int)
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": header.need("{arch}.embedding_length", int),
        "intermediate_size": _one(header, "feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": _one(header, "attention.head_count"),
        "max_position_embeddings": header.need("{arch}.context_length", int),
        "rms_norm_eps": header.need("{arch}.attention.layer_norm_rms_epsilon", float),
        "rope_theta": header.get("{arch}.rope.freq_base", float, 10000.0),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "is_causal": header.get("{arch}.attention.causal", bool, True),
        **_special_ids(header),
    }


def _one(header: GgufHeader, key: str, default: int | None = None) -> int:
    """A size that may stand once or once a layer; UserError where layers differ."""
    key = header.key("{arch}." + key)
    value = header.metadata.get(key, default)
    if isinstance(value, list) and value and all(each == value[0] for each in value):
        value = value[0]
    if isinstance(value, list):
        raise UserError(f"{key} differs from layer to layer, which is not read")
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"lacks the key {key}" if value is None else f"{key} is {value!r}")
    return value


def _has(header: GgufHeader, key: str) -> bool:
    return header.key("{arch}." + key) in header.metadata


def _special_ids(header: GgufHeader) -> dict[str, Any]:
    """Ids that begin, end and fill texts, as `config.json` has them."""
    ids = {key: header.get(f"tokenizer.ggml.{key}", int) for key in ENDS}
    ends = tuple(dict.fromkeys(i for i in ids.values() if i is not None))
    return {
        "bos_token_id": header.get("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": header.get("tokenizer.ggml.padding_token_id", int),
    }


def _scaling(header: GgufHeader) -> RopeScaling | None:
    """Rotary scaling by metadata: YaRN, or none."""
    kind = header.get("{arch}.rope.scaling.type", str, "none")
    factor = header.get("{arch}.rope.scaling.factor", float, 0.0)
    factor = factor or header.get("{arch}.rope.scale_linear", float, 1.0)
    for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        if (found := header.get("{arch}.rope.scaling." + key, float, 1.0)) != 1.0:
            raise UserError(f"{header.key('{arch}')}.rope.scaling.{key} is {found}; read is 1")
    if factor in (0.0, 1.0) and kind != "yarn":
        return None
    length = header.get("{arch}.context_length", int, 1)
    if kind in ("linear", "none"):
        return RopeScaling("linear", factor, length)
    if kind != "yarn":
        raise UserError(
            f"rope.scaling.type is {kind!r} with factor {factor}; read are yarn, linear and none"
        )
    # The key holds a tenth of mscale_all_dim; mscale itself is in no key, and is the same in every
    # DeepSeek that was published.
    mscale = round(10 * header.get("{arch}.rope.scaling.yarn_log_multiplier", float, 0.0), 6)
    return RopeScaling(
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=header.get(
            "{arch}.rope.scaling.original_context_length", int, length
        ),
        beta_fast=header.get("{arch}.rope.scaling.yarn_beta_fast", float, 32.0),
        beta_slow=header.get("{arch}.rope.scaling.yarn_beta_slow", float, 1.0),
        mscale=mscale,
        mscale_all_dim=mscale,
    )


def _frequencies(header: GgufHeader) -> RopeScaling | None:
    """Llama 3.1's scaling, of which a file holds only what each frequency is divided by.

    The factor is the largest divisor; where a frequency is blended, (1 / divisor - 1 / factor) /
    (1 - 1 / factor) is a line over 1 / wavelength, from which low and high follow.
    """
    tensor = header.tensors.get("rope_freqs.weight")
    if tensor is None:
        return None
    divisors = read_floats(tensor)
    theta = header.get("{arch}.rope.freq_base", float, 10000.0)
    exponent = np.arange(0, 2 * len(divisors), 2, dtype=np.float64) / (2 * len(divisors))
    waves = 2 * np.pi * theta**exponent
    low, high, length = LLAMA3_FREQUENCIES
    length = header.get("{arch}.rope.scaling.original_context_length", int, length)
    factor = float(divisors.max())
    if factor == 1.0:
        return None
    found = RopeScaling("llama3", round(factor, 6), length, low, high)
    if not np.allclose(_divisors(found, waves), divisors, rtol=1e-5):
        found = _fitted(divisors, waves, length, round(factor, 6))
    if not np.allclose(_divisors(found, waves), divisors, rtol=1e-4):
        raise UserError(NOT_LLAMA3)
    return found


def _divisors(scaling: RopeScaling, waves: np.ndarray) -> np.ndarray:
    """What frequencies of these wavelengths are divided by."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (scaling.original_max_position_embeddings / waves - low) / (high - low)
    smooth = smooth.clip(0, 1)
    return 1 / ((1 - smooth) / scaling.factor + smooth)  # type: ignore[no-any-return]


def _fitted(divisors: np.ndarray, waves: np.ndarray, length: int, factor: float) -> RopeScaling:
    """The scaling whose blended frequencies are those seen, for this original length."""
    blended = (divisors > 1 + 1e-6) & (divisors < factor - 1e-6 * factor)
    if blended.sum() < 2:
        raise UserError(NOT_LLAMA3)
    share = (1 / divisors[blended] - 1 / factor) / (1 - 1 / factor)
    slope, start = np.polyfit(length / waves[blended], share, 1)
    low, high = float(-start / slope), float((1 - start) / slope)
    if not 0 <= low < high:
        raise UserError(NOT_LLAMA3)
    return RopeScaling("llama3", factor, length, round(low, 5), round(high, 5))


def read_floats(tensor: GgufTensor) -> np.ndarray:
    """A small tensor of float32 numbers as float64; UserError for another type."""
    if tensor.kind != GGMLQuantizationType.F32:
        raise UserError(f"{tensor.path}: {tensor.name} is {tensor.kind.name}; read is F32")
    count = tensor.nbytes // 4
    found = np.fromfile(tensor.path, dtype="<f4", count=count, offset=tensor.offset)
    return found.astype(np.float64)
