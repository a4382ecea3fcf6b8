"""The type in which each tensor of a GGUF file is written, by the requested type.

The choice follows llama.cpp's (`src/llama-quant.cpp`): vectors and the router stay in float32; the
head, and with it a tied embedding, gets 6 or 8 bits; `q4_k_m` has 6 bits for the values' and
feed-forward's last matrices in the first and last eighth of the layers and in every third between.
Rows that no block divides fall back to smaller blocks, and at last to float16.
"""

from __future__ import annotations

import re

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from llamaseek.errors import bad_value

Kind = GGMLQuantizationType
ASKED: dict[str, tuple[Kind, LlamaFileType]] = {
    "f32": (Kind.F32, LlamaFileType.ALL_F32),
    "f16": (Kind.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Kind.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "q4_1": (Kind.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q4_k_m": (Kind.Q4_K, LlamaFileType.MOSTLY_Q4_K_M),
}
"""What `--dtype` may be for a GGUF file: the type of most matrices, and the file's own."""
WHOLE = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0)
FALL_BACK = {Kind.Q4_K: Kind.Q5_0, Kind.Q6_K: Kind.Q8_0}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_MORE_BITS = re.compile(r"attn_v\.weight|attn_v_b\.weight|ffn_down(_exps|_shexp)?\.weight")


def asked_kind(name: str) -> tuple[Kind, LlamaFileType]:
    """The types that `--dtype` names; UserError for another word."""
    if name not in ASKED:
        raise bad_value("--dtype", name, ", ".join(ASKED) + " for a .gguf file")
    return ASKED[name]


def kind_of(name: str, shape: tuple[int, ...], asked: str, layers: int, tied: bool) -> Kind:
    """The type of the tensor called `name` in a file of `layers` layers."""
    wanted = ASKED[asked][0]
    if len(shape) == 1 or "ffn_gate_inp" in name or "_norm" in name:
        return Kind.F32
    if wanted not in WHOLE and (name == "output.weight" or (tied and name == "token_embd.weight")):
        wanted = Kind.Q6_K if shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else Kind.Q8_0
    elif asked == "q4_k_m" and _has_more_bits(name, layers):
        wanted = Kind.Q6_K
    return _fitting(wanted, shape[-1])


def _has_more_bits(name: str, layers: int) -> bool:
    found = _LAYER.fullmatch(name)
    if found is None or not _MORE_BITS.fullmatch(found[2]):
        return False
    layer, eighth = int(found[1]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fitting(wanted: Kind, width: int) -> Kind:
    """The type itself, or the nearest whose blocks divide a row of `width` numbers."""
    for kind in (wanted, FALL_BACK.get(wanted, wanted)):
        if width % GGML_QUANT_SIZES[kind][0] == 0:
            return kind
    return Kind.F16
