"""A PEFT folder's `adapter_config.json`: every key is used, without effect, or refused by name.

Source: peft's `LoraConfig` (0.21) and how `tuners/lora/` computes with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError, bad_value, shorten
from llamaseek.files import read_json_object

CONFIG = "adapter_config.json"
USED = (
    "alpha_pattern",
    "init_lora_weights",
    "lora_alpha",
    "modules_to_save",
    "r",
    "rank_pattern",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
)
WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",  # the four *_config say how the first weights were found
    "eva_config",
    "exclude_modules",  # which layers have adapters is seen from the tensors
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
)
VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "ensure_weight_tying": (False,),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "use_qalora": (False,),
}
"""The values that are understood of keys that change the formula; any other key must be empty."""
INITIAL = (True, False, "gaussian", "orthogonal", "eva")
"""First weights that leave the base as it is. PiSSA, OLoRA and others change it: such an adapter
belongs to weights that no folder holds, until peft converts it to a plain one."""
REPEATS = re.compile(r"[*+{]")
UNSAFE = re.compile(r"\)[*+?{]|\(\?|\\[1-9]")


@dataclass(frozen=True)
class AdapterConfig:
    """What the tensors of an adapter mean."""

    path: Path
    rank: int
    alpha: float
    rslora: bool
    dora: bool
    ranks: dict[str, int]
    alphas: dict[str, float]
    token_ids: list[int] | dict[str, list[int]]

    def scaling(self, layer: str = "") -> float:
        """What B A is multiplied by in a layer; in one without a pattern of its own by default."""
        rank = self.rank_of(layer)
        alpha = self.alphas.get(_pattern(self.alphas, layer), self.alpha)
        return float(alpha / (rank**0.5 if self.rslora else rank))

    def rank_of(self, layer: str) -> int:
        """The rank of a layer's matrices."""
        return self.ranks.get(_pattern(self.ranks, layer), self.rank)

    def tokens_of(self, layer: str) -> list[int]:
        """The ids whose rows of an embedding or head were trained."""
        if isinstance(self.token_ids, list):
            return self.token_ids
        found = [ids for name, ids in self.token_ids.items() if f".{layer}".endswith(f".{name}")]
        return found[0] if found else []


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The checked `adapter_config.json`. UserError, naming the key, for what is not understood."""
    path = folder / CONFIG
    data = read_json_object(path)
    _check_keys(path, data)
    rank, alpha = data.get("r"), data.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise bad_value(f"{path} r", rank, "an integer of at least 1")
    if not _is_number(alpha):
        raise bad_value(f"{path} lora_alpha", alpha, "a number")
    ranks = _patterns(path, "rank_pattern", data)
    for key, value in ranks.items():
        if type(value) is not int or value < 1:
            raise bad_value(f"{path} rank_pattern.{key}", value, "an integer of at least 1")
    return AdapterConfig(
        path=path,
        rank=rank,
        alpha=alpha,  # type: ignore[arg-type]
        rslora=bool(data.get("use_rslora")),
        dora=bool(data.get("use_dora")),
        ranks=ranks,
        alphas=_patterns(path, "alpha_pattern", data),
        token_ids=_token_ids(path, data.get("trainable_token_indices") or []),
    )


def _check_keys(path: Path, data: dict[str, Any]) -> None:
    for key, value in data.items():
        allowed = VALUES.get(key, (None, False, "", [], {}))
        if key not in (*USED, *WITHOUT_EFFECT) and value not in allowed:
            raise bad_value(f"{path} {key}", value, " or ".join(map(repr, allowed)))
    if "peft_type" not in data:
        raise UserError(f"{path}: lacks peft_type")
    initial = data.get("init_lora_weights", True)
    if initial not in INITIAL:
        raise UserError(
            f"{path} init_lora_weights: {shorten(repr(initial))} changes the base's weights; "
            "convert the adapter with peft: save_pretrained(…, "
            "path_initial_model_for_weight_conversion=…)"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e30


def _patterns(path: Path, name: str, data: dict[str, Any]) -> dict[str, Any]:
    """Numbers by pattern, which is a regular expression; slow ones are refused."""
    found = data.get(name) or {}
    if not isinstance(found, dict):
        raise bad_value(f"{path} {name}", found, "numbers by the names of layers")
    for key, value in found.items():
        if not _is_number(value):
            raise bad_value(f"{path} {name}.{key}", value, "a number")
        if not key or len(key) > 200 or len(REPEATS.findall(key)) > 2 or UNSAFE.search(key):
            raise bad_value(f"{path} {name}", key, "names of layers, and simple patterns of them")
        try:
            re.compile(key)
        except re.error as error:
            raise UserError(f"{path} {name}: {key!r} is no pattern ({error})") from None
    return found


def _pattern(patterns: dict[str, Any], layer: str) -> str:
    """The first pattern that is all of a layer's name, or its end after a dot."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", layer)), "")


def _token_ids(path: Path, value: Any) -> list[int] | dict[str, list[int]]:
    lists = list(value.values()) if isinstance(value, dict) else [value]
    whole = all(isinstance(ids, list) and all(type(i) is int for i in ids) for ids in lists)
    if not isinstance(value, list | dict) or not whole:
        raise bad_value(f"{path} trainable_token_indices", value, "ids, or ids by module")
    return value
