"""GPTQ and AWQ: matrices of 4 bits with scales and zero points, as folders hold them. No torch.

A matrix (N, K) in G groups of inputs, w = (code - zero) · scale, is stored turned:

| | `qweight` int32 | `qzeros` int32 | `scales` |
|---|---|---|---|
| GPTQ | (K / 8, N), eight inputs a word | (G, N / 8), less one unless `gptq_v2` | (G, N) |
| AWQ | (K, N / 8), eight outputs a word, by `AWQ_ORDER` | (G, N / 8), the same | (G, N) |

Sources: AutoGPTQ `qlinear_cuda_old.py`, GPTQModel `qlinear/__init__.py`, AutoAWQ `gemm.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llamaseek.errors import bad_value
from llamaseek.herd.configs import Shape
from llamaseek.herd.header import StoredTensor

QWEIGHT, QZEROS, SCALES, ORDER, BIAS = ".qweight", ".qzeros", ".scales", ".g_idx", ".bias"
"""Endings of their names; GPTQ has `g_idx`, the group of each input, and a bias that is zero."""
PER_WORD = 8  # codes of 4 bits in an int32, lowest bits first
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output, of eight, whose code is the i-th of an AWQ word."""
VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    "gptq": {
        "bits": (4,),
        "desc_act": (False,),
        "checkpoint_format": ("gptq", "gptq_v2"),
        "format": ("gptq", "gptq_v2"),
        "is_marlin_format": (False,),
        "pack_dtype": ("int32",),
        "dynamic": (None, {}),
        "rotation": (None,),
    },
    "awq": {
        "bits": (4,),
        "w_bit": (4,),
        "version": ("gemm", "GEMM"),
    },
}
"""What is read of each; what stands in a key without effect on the layout is not looked at."""


def check_grouped(quantized: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` is GPTQ's or AWQ's; UserError for a kind that is not read."""
    method = quantized.get("quant_method")
    if method not in VALUES:
        return False
    for key, values in VALUES[method].items():
        if key in quantized and quantized[key] not in values:
            allowed = " or ".join(map(repr, values))
            raise bad_value(f"config.json quantization_config.{key}", quantized[key], allowed)
    if not {"bits", "w_bit"} & set(quantized):
        raise bad_value("config.json quantization_config.bits", None, "4")
    return True


def grouped_shapes(base: str, shape: Shape, stored: Mapping[str, StoredTensor]) -> dict[str, Shape]:
    """The tensors that a matrix of `shape` should be stored in, with their shapes."""
    rows, inputs = shape
    turned = stored[base + QWEIGHT].shape
    gptq = turned == (inputs // PER_WORD, rows)
    scales = stored.get(base + SCALES)
    groups = scales.shape[0] if scales is not None and scales.shape else 1
    groups = groups if groups and inputs % groups == 0 else 1
    wanted: dict[str, Shape] = {
        QWEIGHT: turned if gptq else (inputs, rows // PER_WORD),
        QZEROS: (groups, rows // PER_WORD),
        SCALES: (groups, rows),
    }
    for further, size in ((ORDER, inputs), (BIAS, rows)):
        if base + further in stored:
            wanted[further] = (size,)
    return {base + suffix: size for suffix, size in wanted.items()}


def grouped_dtypes(name: str, tensor: StoredTensor) -> Iterator[str]:
    """What is wrong with the dtype of one of those tensors."""
    whole = not name.endswith((SCALES, BIAS))
    if whole and tensor.dtype != "I32" or not whole and not tensor.is_float:
        kind = "I32" if whole else "floating-point numbers"
        yield f"{tensor.path}: {name} is {tensor.dtype}; allowed: {kind}"
