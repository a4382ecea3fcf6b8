"""How numbers are stored and multiplied, and what a byte count follows from that."""

from __future__ import annotations

from dataclasses import dataclass

from llamaseek.errors import bad_value, unknown_name


@dataclass(frozen=True)
class Format:
    """`matrix` bytes of a weight in a layer's matrices, `other` of one anywhere else (embedding,
    head, norms, router); `number` bytes of an activation or a cached number; `rate` the peak that
    products run at. `moments` bytes of AdamW state a parameter when training in it, 0 if never.
    """

    name: str
    matrix: float
    other: int
    number: int
    rate: str
    moments: int = 0


# fp8: one fp32 scale a 128 × 128 block, as DeepSeek-V3 is published; trained with fp32 master
# weights and gradients and bf16 moments (V3 report §3.3). int8: a scale a row is below 0.1%.
# int4: scale and zero point in bf16 for each group of 128.
FORMATS = {
    f.name: f
    for f in (
        Format("fp32", 4, 4, 4, "fp32", moments=8),
        Format("bf16", 2, 2, 2, "bf16", moments=8),
        Format("fp16", 2, 2, 2, "bf16"),
        Format("fp8", 1 + 4 / 128**2, 2, 2, "fp8", moments=4),
        Format("int8", 1, 2, 2, "bf16"),
        Format("int4", 0.5 + 4 / 128, 2, 2, "bf16"),
    )
}
NF4 = 0.5 + 4 / 64  # bytes of a weight in 4-bit NormalFloat, with an fp32 scale a block of 64
NF4_WIDE = 8  # more of them while it is widened: its level's number and the level
MASTER = GRADIENT = 4  # training keeps weights and gradients in fp32 (`train/machine.py`)


def find_format(name: str, task: str) -> Format:
    """The format called `name`, if `task` can run in it; UserError says what can."""
    if name not in FORMATS:
        raise unknown_name("dtype", name, list(FORMATS))
    found = FORMATS[name]
    if task == "lora" and name not in ("fp32", "bf16", "fp16"):
        raise bad_value("dtype", name, "fp32, bf16 or fp16 for the frozen base of lora")
    if task in ("sft", "pretrain") and not found.moments:
        raise bad_value("dtype", name, f"fp32, bf16 or fp8 for {task}")
    return found
