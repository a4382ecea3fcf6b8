"""What a config's fields may hold: their types, finite numbers, sizes that can be built.

A config.json is untrusted input. It is checked before anything is built from it: a string in place
of a number would load and fail at the first token, and a billion layers would mean a billion tensor
names to compare.
"""

from __future__ import annotations

import math
from typing import Any

from llamaseek.errors import UserError, bad_value

LARGEST = {
    "num_hidden_layers": 10_000,
    "n_routed_experts": 1 << 16,
    "max_position_embeddings": 1 << 31,
    "original_max_position_embeddings": 1 << 31,
}
"""The largest integer of a field, LARGEST_SIZE for others: far above any published model."""

LARGEST_SIZE = 1 << 24
MOST_EXPERTS = 1_000_000
"""Routed experts in all layers together; DeepSeek-V3 has 14,848."""

JSON_TYPES: dict[str, type] = {
    "model_type": str,
    "architectures": list,
    "rope_parameters": dict,
    "rope_scaling": dict,
    "quantization_config": dict,
    "id2label": dict,
}
"""Keys of a config.json that are read before its fields are."""

KINDS = {"str": "a string", "list": "a list", "dict": "an object"}


def check_json(data: dict[str, Any]) -> None:
    """UserError, naming the key, where a key of a config.json has the wrong JSON type."""
    for key, kind in JSON_TYPES.items():
        if not isinstance(data.get(key), kind | None):
            raise bad_value(f"config.json {key}", data[key], KINDS[kind.__name__])
    if not all(isinstance(name, str) for name in data.get("architectures") or []):
        raise bad_value("config.json architectures", data["architectures"], "a list of strings")


def check_field(name: str, kind: Any, value: Any, least: int = 1) -> None:
    """UserError where a field's value is not of its annotated type, not finite, or out of bounds.

    `least` is the smallest of whole numbers that are sizes; ids of tokens may be -1, for none.
    """
    kinds = str(getattr(kind, "__name__", kind)).split(" | ")
    if value is None and "None" in kinds:
        return
    if "int" in kinds and "None" in kinds and name.endswith("token_id"):
        ids = value if isinstance(value, tuple) and len(kinds) > 2 else (value,)
        for one in ids:
            _check_whole(name, one, -1)
    elif "int" in kinds:
        _check_whole(name, value, least)
    elif "float" in kinds:
        _check_number(name, value)
    elif "bool" in kinds and not isinstance(value, bool):
        raise bad_value(f"model.{name}", value, "true, false")


def check_experts(layers: int, experts: int) -> None:
    """UserError where all layers together have more experts than MOST_EXPERTS."""
    if layers * experts > MOST_EXPERTS:
        raise UserError(
            f"model.num_hidden_layers: {layers:,} layers of {experts:,} experts are more than "
            f"{MOST_EXPERTS:,} experts"
        )


def _check_whole(name: str, value: Any, least: int) -> None:
    most = LARGEST.get(name.rpartition(".")[2], LARGEST_SIZE)
    if type(value) is not int or not least <= value <= most:
        raise bad_value(f"model.{name}", value, f"an integer of at least {least}, at most {most:,}")


def _check_number(name: str, value: Any) -> None:
    """All numbers of a config are factors, bases or small addends: none is negative."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < 1e30 or not math.isfinite(value) or value < 0:
        raise bad_value(f"model.{name}", value, "a finite number of at least 0")
