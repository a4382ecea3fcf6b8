"""A folder's `config.json` as the config of a model: every key is used, without effect, or refused.

transformers' config classes are the reference for what a key means, and what a missing one stands
for. Keys that neither they nor DeepSeek's release define have no effect there and none here.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from llamaseek.errors import UserError, bad_value, shorten
from llamaseek.herd.configs import FAMILIES, SCORING, ModelConfig, config_from_sizes, load_plugins
from llamaseek.herd.grouped import check_grouped
from llamaseek.herd.limits import check_json
from llamaseek.herd.rotary import read_scaling

ALIASES = {
    "num_local_experts": "n_routed_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
}
"""transformers' second names of a key."""
READ = (
    "model_type",
    "architectures",
    "id2label",
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "original_max_position_embeddings",
)
"""Keys that are looked at beside the fields of a config."""
WITHOUT_EFFECT = (
    "attention_dropout",  # training's; no recipe here drops attention weights
    "chunk_size_feed_forward",
    "dtype",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",  # splits a product into parts whose sum it is
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    # of DeepSeek's release, for training
    "aux_loss_alpha",
    "ep_size",
    "seq_aux",
)
"""Keys that change no number of a forward pass."""
VALUES: dict[str, tuple[Any, ...]] = {
    "attention_chunk_size": (None,),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (None, 1),
    "per_layer_config": (None, {}),
    "sliding_window": (None,),
}
"""The values that keys of other families may have in a folder of these."""


def config_from_dict(data: dict[str, Any]) -> ModelConfig:
    """The config of a `config.json`.

    Raises `UserError`, naming the key, for an architecture that is not read and for settings this
    code would run wrongly.
    """
    check_json(data)
    family, kind = _family(data)
    allowed = VALUES | kind.published_values
    for key, values in allowed.items():
        if key in data and data[key] not in values:
            raise bad_value(f"config.json {key}", data[key], " or ".join(map(repr, values)))
    _check_quantization(data)
    data = _by_first_name(data)
    kind.check_published(data)
    known = {item.name: str(item.type) for item in fields(kind)}
    sizes = {
        key: value
        for key, value in data.items()
        if key in known and (value is not None or key not in kind.derived)
    }
    sizes["is_reward_model"] = _is_reward_model(data)
    sizes |= _rotary(data, kind)
    if isinstance(sizes.get("eos_token_id"), list):
        sizes["eos_token_id"] = tuple(sizes["eos_token_id"])
    return config_from_sizes(family, kind.default_published(sizes) | sizes)


def unused_keys(data: dict[str, Any]) -> list[str]:
    """Keys of a readable `config.json` that are not known, and so have no effect."""
    kind = _family(data)[1]
    fixed = {**VALUES, **kind.published_values, **ALIASES}
    known = {*READ, *WITHOUT_EFFECT, *fixed, *kind.derived, *(item.name for item in fields(kind))}
    return [key for key in data if key not in known and not key.startswith("_")]


def _family(data: dict[str, Any]) -> tuple[str, type[ModelConfig]]:
    """The registered family of a `config.json`, by its type and architecture."""
    model_type, names = data.get("model_type"), data.get("architectures") or []
    if all(kind.model_type != model_type for kind in FAMILIES.values()):
        load_plugins()
    by_type = {kind.model_type: (name, kind) for name, kind in FAMILIES.items()}
    if model_type not in by_type:
        titles = {key: kind.title or kind.architecture for key, (_, kind) in by_type.items()}
        read = " and ".join(f"{key} ({title})" for key, title in titles.items())
        if model_type is None:
            raise UserError(f"lacks model_type; read are {read}")
        named = f" ({shorten(names[0])})" if names else ""
        raise UserError(f"model_type is {shorten(repr(model_type))}{named}; read are {read}")
    family, kind = by_type[model_type]
    scoring = kind.architecture.replace("ForCausalLM", SCORING)
    if names and names[0].lower() not in (kind.architecture.lower(), scoring.lower()):
        allowed = f"{kind.architecture} or {scoring}"
        raise bad_value("config.json architectures", names[0], allowed)
    return family, kind


def _by_first_name(data: dict[str, Any]) -> dict[str, Any]:
    """With each key under the name that is read; UserError where its two names disagree."""
    data = dict(data)
    for second, first in ALIASES.items():
        if second in data:
            value = data.pop(second)
            if data.setdefault(first, value) != value:
                raise bad_value(f"config.json {second}", value, f"{data[first]}, as {first} says")
    return data


def _is_reward_model(data: dict[str, Any]) -> bool:
    """Whether a `config.json` is a reward model's; UserError for a classifier of more classes."""
    names = data.get("architectures") or [""]
    if not names[0].endswith(SCORING):
        return False
    labels = data.get("id2label") or {}
    if len(labels) != 1:
        raise bad_value("config.json id2label", labels, "one label, as reward models have")
    return True


def _rotary(data: dict[str, Any], kind: type[ModelConfig]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, which stand in one of two objects or, the base, beside them.

    transformers reads `rope_scaling` where both objects are there; where they describe two things,
    one of them is wrong.
    """
    default = kind.default_published({}).get(
        "max_position_embeddings", kind.max_position_embeddings
    )
    length = data.get("max_position_embeddings", default)
    first = data.get("original_max_position_embeddings")
    found = []
    for key in ("rope_scaling", "rope_parameters"):
        if rope := data.get(key):
            if first is not None and rope.get("rope_type", rope.get("type")) in ("llama3", "yarn"):
                rope = {**rope, "original_max_position_embeddings": first}
            theta = rope.get("rope_theta", data.get("rope_theta", 10000.0))
            found.append((theta, read_scaling(rope, length)))
    if not found:
        found = [(data.get("rope_theta", 10000.0), None)]
    if found[0] != found[-1]:
        raise UserError("config.json rope_parameters: says another thing than rope_scaling")
    return {"rope_theta": found[0][0], "rope_scaling": found[0][1]}


def _check_quantization(data: dict[str, Any]) -> None:
    quantized = data.get("quantization_config")
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    packed = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    kinds = (blocks, packed)
    if quantized and check_grouped(quantized):
        return
    if quantized and not any(kind.items() <= quantized.items() for kind in kinds):
        allowed = f"none, {blocks}, {packed}, or the quant_method gptq or awq"
        raise bad_value("config.json quantization_config", quantized, allowed)
