"""`quantize`: a model folder with its matrices in fewer bits, made a few rows at a time.

Linear layers, routed and shared experts get the bits that are asked for. The head gets 8 bits, a
scale a row, since it decides between all tokens at once; one that is tied to the embedding is
stored apart, and the folder's config says so. So do matrices whose width no group divides. What
is stored as before: the embedding, of which a step reads a row a token; norms; the router and its
bias; and latent attention's `kv_b_proj`, which decoding takes apart into two products a head.
In fp8 the head stays too.

N rows, K inputs, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamaseek.checkpoints.calibrate import calibrated, read_rows
from llamaseek.checkpoints.convert import DerivedFolder, read_any
from llamaseek.checkpoints.hf import config_json, load_model
from llamaseek.checkpoints.widen import dequantized
from llamaseek.errors import UserError, bad_value
from llamaseek.files import check_apart
from llamaseek.herd.formats import (
    BLOCK,
    GROUPS,
    PACKED,
    PACKED_SCALE,
    PACKED_SHAPE,
    SCALE,
    scale_shape,
)
from llamaseek.models.lazy import Lazy, lazy
from llamaseek.models.quant import fp8
from llamaseek.models.quant.rounding import quantize

BITS = ("8", "4", "fp8")
FP8 = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": [BLOCK, BLOCK],
}
GROUP = 32
HEAD = "lm_head"
NUMBERS = 1 << 23  # of a matrix quantized at once


@dataclass(frozen=True)
class Plan:
    """Bits and group (0: a scale a row) of a matrix, or fp8 blocks."""

    bits: int
    group: int
    fp8: bool = False


def plan_for(name: str, shape: tuple[int, ...], wanted: Plan) -> Plan | None:
    """How the tensor `name` is stored, None where it stays as it is."""
    base, _, last = name.rpartition(".")
    layer = base.rpartition(".")[2]
    matrix = last == "weight" and len(shape) == 2 and ("_proj" in layer or layer == HEAD)
    if not matrix or layer == "kv_b_proj":
        return None
    if wanted.fp8:
        return None if layer == HEAD else wanted
    if shape[1] % 8:
        return None
    if layer == HEAD or (wanted.group and shape[1] % wanted.group):
        return Plan(8, 0)
    return wanted


class Packing:
    """One matrix as numbers and scales. Scales are made along with the numbers, and kept till read.

    Numbers are words of 4 or 8 bits each, or fp8.
    """

    def __init__(self, source: Lazy, plan: Plan) -> None:
        self.source, self.plan = source, plan
        self._scales: list[Tensor] = []

    def tensors(self, base: str) -> dict[str, Lazy]:
        """What is stored, numbers before scales."""
        (rows, inputs), plan = self.source.shape, self.plan
        if plan.fp8:
            name, blocks = f"{base}.weight", scale_shape((rows, inputs))
            return {
                name: Lazy(torch.float8_e4m3fn, (rows, inputs), self._numbers),
                name + SCALE: Lazy(torch.float32, blocks, self._scale_rows),
            }
        words, groups = inputs * plan.bits // 32, inputs // plan.group if plan.group else 1
        return {
            base + PACKED: Lazy(torch.int32, (rows, words), self._numbers),
            base + PACKED_SCALE: Lazy(torch.bfloat16, (rows, groups), self._scale_rows),
            base + PACKED_SHAPE: lazy(torch.tensor(self.source.shape)),
        }

    def _numbers(self, start: int, stop: int) -> Tensor:
        plan = self.plan
        step = max(NUMBERS // self.source.shape[1] // 128 * 128, 128)
        found = []
        for at in range(start, stop, step):
            rows = self.source.rows(at, min(at + step, stop))
            made = fp8.quantize(rows) if plan.fp8 else quantize(rows, plan.bits, plan.group)
            numbers, scales = made
            found.append(numbers)
            self._scales.append(scales)
        return torch.cat(found)

    def _scale_rows(self, start: int, stop: int) -> Tensor:
        whole = torch.cat(self._scales)
        if stop == len(whole):
            self._scales = []
        return whole[start:stop]


class Quantization(DerivedFolder):
    """A checked quantization: made before anything is written, then run."""

    def __init__(
        self,
        source: Path,
        target: Path,
        bits: int | str,
        group: int | None = None,
        calibrate: Path | None = None,
        products: torch.dtype = torch.float32,
    ) -> None:
        """`bits` 8, 4 or "fp8"; `group` inputs share a scale, 0 is a scale a row; None is 32 in 4
        bits, 0 in 8. In fp8 a block of 128 × 128 does. With the text `calibrate`, layers are
        rounded by GPTQ, for which the model is loaded whole, in float32, and multiplies in
        `products`.

        Raises `UserError` for what cannot be done, and for a folder that is already quantized.
        """
        wanted = checked(str(bits), group)
        if wanted.fp8 and calibrate is not None:
            raise bad_value("--calibrate", calibrate, "--bits 8 or 4")
        check_apart(target, source)
        config, tensors = read_any(source)
        kept = wanted.fp8 and any(name.endswith(SCALE) for name in tensors)
        if kept or any(name.endswith(PACKED) for name in tensors):
            raise UserError(f"{source}: is already quantized")
        self.source, self.target, self.relation = source, target, "quantized"
        shared = f" in groups of {wanted.group}" if wanted.group else ""
        self.what = f"matrices in {'fp8' if wanted.fp8 else f'{wanted.bits} bits{shared}'}"
        self.rows = None if calibrate is None else read_rows(calibrate, source)
        if calibrate is not None:
            self.what += ", rounded by GPTQ"
        plain = dequantized(tensors, torch.bfloat16)
        self.before = sum(tensor.nbytes for tensor in plain.values())
        if config.get("tie_word_embeddings") and not wanted.fp8:
            config["tie_word_embeddings"] = False
            plain[f"{HEAD}.weight"] = plain["model.embed_tokens.weight"]
        plans = {n: plan_for(n, t.shape, wanted) for n, t in plain.items()}
        self.plans, self.products = plans, products
        self.tensors = _packed(plain, plans)
        config.pop("torch_dtype", None)
        config["quantization_config"] = quantization_config(plans)
        self.config = config_json(config, {"norm": plain["model.norm.weight"]})

    def prepare(self) -> None:
        """Put what GPTQ makes in the place of what plain rounding would."""
        if self.rows is None:
            return
        plans = {name: (p.bits, p.group) for name, p in self.plans.items() if p is not None}
        model = load_model(self.source).eval()
        for name, (words, scales) in calibrated(model, self.rows, plans, self.products):
            base = name.removesuffix(".weight")
            self.tensors[base + PACKED] = lazy(words)
            self.tensors[base + PACKED_SCALE] = lazy(scales)


def checked(bits: str, group: int | None) -> Plan:
    """What `--bits` and `--group` ask for; UserError for what they may not be."""
    if bits not in BITS:
        raise bad_value("--bits", bits, ", ".join(BITS))
    if bits == "fp8":
        if group is not None:
            raise bad_value("--group", group, f"nothing in fp8, whose blocks are {BLOCK} x {BLOCK}")
        return Plan(8, BLOCK, fp8=True)
    group = (GROUP if bits == "4" else 0) if group is None else group
    allowed = (0, *GROUPS)
    if group not in allowed:
        raise bad_value("--group", group, ", ".join(map(str, allowed)))
    return Plan(int(bits), group)


def _packed(plain: Mapping[str, Lazy], plans: Mapping[str, Plan | None]) -> dict[str, Lazy]:
    found: dict[str, Lazy] = {}
    for name, tensor in plain.items():
        plan = plans[name]
        if plan is None:
            found[name] = tensor
        else:
            found |= Packing(tensor, plan).tensors(name.removesuffix(".weight"))
    return found


def quantization_config(plans: Mapping[str, Plan | None]) -> dict[str, Any]:
    """What `config.json` says of the plans: in compressed-tensors' words, or DeepSeek-V3's."""
    layers: dict[Plan, set[str]] = {}
    kept: set[str] = set()
    for name, plan in plans.items():
        layer = name.removesuffix(".weight").rpartition(".")[2]
        if plan is not None:
            layers.setdefault(plan, set()).add(layer)
        elif "_proj" in layer or layer == "gate":
            kept.add(layer)
    if any(plan.fp8 for plan in layers):
        return {**FP8, "modules_to_not_convert": sorted(kept | {HEAD})}
    groups = {
        f"group_{number}": {
            "targets": [f"re:.*{layer}$" for layer in sorted(layers[plan])],
            "weights": {
                "num_bits": plan.bits,
                "type": "int",
                "symmetric": True,
                "dynamic": False,
                "strategy": "group" if plan.group else "channel",
                "group_size": plan.group or None,
            },
            "input_activations": None,
            "output_activations": None,
        }
        for number, plan in enumerate(sorted(layers, key=lambda p: (p.bits, p.group)))
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [f"re:.*{layer}$" for layer in sorted(kept)],
    }
