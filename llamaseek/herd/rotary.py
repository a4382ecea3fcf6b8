"""Scaling of rotary frequencies, as the `rope_parameters` of a `config.json` describe it.

Source: transformers' `modeling_rope_utils.py`, whose keys, defaults and formulas these are.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

from llamaseek.errors import UserError, bad_value
from llamaseek.herd.limits import check_field

KEYS = {
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "attention_factor",
        "truncate",
    ),
}
"""What each type of scaling is made from."""
WITHOUT_EFFECT = ("rope_type", "type", "rope_theta", "finetuned")
"""Keys beside them: which type it is, what stands in the config itself, and a note."""


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length a model was first trained on.

    `linear` divides them by `factor`. `llama3` uses factor, low/high_freq_factor and the original
    length (8 for Llama 3.1, 32 for 3.2). `yarn` uses factor, the original length, beta_fast/slow,
    the two mscales (0 is none) and, in place of what follows from those, `attention_factor`;
    `truncate` rounds the range of frequencies that are blended to whole ones.
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        for item in fields(self):
            check_field(f"rope_scaling.{item.name}", item.type, getattr(self, item.name))
        if self.rope_type not in KEYS:
            raise bad_value("rope_scaling.rope_type", self.rope_type, ", ".join(KEYS))
        if self.factor < 1:
            raise bad_value("rope_scaling.factor", self.factor, "a number of at least 1")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low >= high:
            raise bad_value(
                "rope_scaling.low_freq_factor", low, f"less than high_freq_factor ({high})"
            )
        if not 0 < self.beta_slow < self.beta_fast:
            allowed = f"above 0 and less than beta_fast ({self.beta_fast})"
            raise bad_value("rope_scaling.beta_slow", self.beta_slow, allowed)

    def to_dict(self) -> dict[str, Any]:
        """The keys this type of scaling has in `config.json`."""
        found = {key: getattr(self, key) for key in ("rope_type", *KEYS[self.rope_type])}
        absent = {"mscale": 0.0, "mscale_all_dim": 0.0, "attention_factor": None, "truncate": True}
        return {key: value for key, value in found.items() if absent.get(key, self) != value}


def read_scaling(data: dict[str, Any], length: Any) -> RopeScaling | None:
    """The scaling that a `config.json` or a recipe describes, None for none.

    `length` is the model's, which is the original one where none is given. Raises UserError, naming
    the key, for one that is missing, unknown, or has no meaning for this type.
    """
    kind = data.get("rope_type", data.get("type", "default"))
    keys = () if kind == "default" else KEYS.get(kind) if isinstance(kind, str) else None
    if keys is None:
        raise bad_value("rope_scaling.rope_type", kind, ", ".join(("default", *KEYS)))
    values = {key: value for key, value in data.items() if value is not None or key == "truncate"}
    if values.get("partial_rotary_factor") == 1:
        del values["partial_rotary_factor"]
    for key, value in values.items():
        if key not in (*keys, *WITHOUT_EFFECT):
            raise bad_value(f"rope_scaling.{key}", value, f"none, with rope_type {kind!r}")
    if kind == "default":
        return None
    given = {key: values[key] for key in keys if key in values}
    # transformers takes its defaults for these where they are 0.
    given = {key: value for key, value in given.items() if value or not key.startswith("beta_")}
    given.setdefault("original_max_position_embeddings", length)
    required = [f.name for f in fields(RopeScaling)[1:] if f.default is MISSING]
    for key in required if kind != "llama3" else keys:
        if key not in given:
            raise UserError(f"rope_scaling lacks {key}, which rope_type {kind!r} needs")
    return RopeScaling(rope_type=kind, **given)
