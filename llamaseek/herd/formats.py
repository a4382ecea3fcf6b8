"""How fp8 blocks and packed 4- and 8-bit weights are named and shaped in a model folder.

The fp8 names and the block of 128 are of DeepSeek-V3's release; the packed names are those of
compressed-tensors' `pack-quantized` format.
"""

from __future__ import annotations

from llamaseek.herd.configs import Shape

SCALE = "_scale_inv"
"""Ending of the float32 scales of an fp8 matrix, after the matrix's own name."""
FP8 = "F8_E4M3"
"""The dtype of fp8 blocks, as safetensors writes it."""
BLOCK = 128  # rows and columns that share a scale (DeepSeek-V3 report §3.3.2)
PACKED, PACKED_SCALE, PACKED_SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
GROUPS = (32, 64, 128, 256)  # inputs that share a scale
WORD = 32  # bits of a word that packed weights lie in
FLOATS = ("F64", "F32", "F16", "BF16", FP8)
"""Dtypes that a weight may be stored in, as safetensors writes them."""


DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    FP8: ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""PyTorch's name and the bytes of a number, by the dtype as safetensors writes it."""


def scale_shape(weight: Shape) -> Shape:
    """Scales of an fp8 matrix: one for every block of 128 × 128, the last ones smaller."""
    return tuple(-(-size // BLOCK) for size in weight)
