"""Compiles every Triton kernel that defaults reach for three kinds of GPU, and prints what each
takes of them: a JSON object a kernel and compute capability.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llamaseek.kernels import (
    few,
    fp8_few,
    fused_triton,
    grouped,
    latent,
    packed_few,
    routing,
    split,
)

KIB = 1024
AMPERE, ADA, HOPPER = 80, 89, 90
# Shared memory of a program; 8.6, which runs what is compiled for 8.0, has less than 8.0.
ALLOWED = {AMPERE: 99 * KIB, ADA: 99 * KIB, HOPPER: 227 * KIB}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
KINDS = {
    **dict.fromkeys(("means", "logs", "cos", "sin", "logits", "bias", "gates"), "*fp32"),
    **dict.fromkeys(("tables", "lengths", "slots", "chosen", "load"), "*i64"),
    **dict.fromkeys(("eps", "scale", "factor"), "fp32"),
    **dict.fromkeys(
        ("q", "k", "keys", "values", "key_scales", "value_scales", "kept", "scales", "out", "x",
         "gate", "up", "gradient", "by_gate", "by_up", "q_out", "k_out", "first", "second",
         "first_kept", "second_kept", "weight"), "*bf16"),
}  # fmt: skip
ODD = ("tokens", "cuts", "blocks", "groups", "heads", "programs")  # of no known divisor

HEADS = {"SIZE": 16, "HEADS": 32, "EIGHT": False}
GROUPED = {**HEADS, "SHARED": 4, "ROWS": 16, "STEP": 64}
LATENT = {**HEADS, "HEADS": 128, "RANK": 512, "ROPE": 64, "COLUMNS": 512, "TURNED": 64, "STEP": 32}
TURN = {"INTERLEAVED": True, "HEADS": 16, "HALF": 32}
V3 = {"LIMIT": 4, "BEST": 2, "CHOICES": 8, "NORMALIZE": True, "GROUPS": 8, "EACH": 32, "SLOTS": 8}

FACTORS = dict.fromkeys(("key_scales", "value_scales"), "*fp32")

Case = tuple[str, Any, dict[str, Any], dict[str, Any], dict[str, str]]
"""Name, kernel, its constants, how it is compiled, and kinds of arguments that differ."""


def cases(capability: int) -> Iterator[Case]:
    """Every kernel, in the sizes of the 8B and the 671B shape."""
    wide = {"COLUMNS": fused_triton.COLUMNS}
    yield "swiglu", fused_triton.swiglu_kernel, wide, {}, {}
    yield "swiglu backward", fused_triton.swiglu_backward_kernel, wide, {}, {}
    yield "rotate", fused_triton.rotate_kernel, {**TURN, "BACK": False}, {}, {}
    yield "rotate both", fused_triton.rotate_both_kernel, TURN, {}, {}
    yield "store", fused_triton.store_kernel, {"COLUMNS": 1024}, {}, {}
    norm = {"num_warps": 8}
    yield "norm", fused_triton.norm_kernel, {"COLUMNS": 8192}, norm, {"x": "*fp32"}
    yield "choose", routing.choose, V3, {}, {}
    yield "combine", split.combine, {"CUTS": 64, "COLUMNS": 128}, {}, {}
    for width in (64, 128):
        sizes = {**GROUPED, "WIDTH": width, "COLUMNS": width}
        yield f"grouped, {width} wide", grouped.attend, sizes, {}, {"slots": "i32"}
        eight = {**sizes, "EIGHT": True, "STEP": grouped.steps(torch.bfloat16, width, True)}
        kinds = {"slots": "i32", "keys": "*i8", "values": "*i8", **FACTORS}
        yield f"grouped in 8 bits, {width} wide", grouped.attend, eight, {}, kinds
    rows = 64 if capability == HOPPER else 16  # as `latent.head_block`
    warps = {"num_warps": 8 if rows > latent.NARROWEST else 4}
    yield "latent", latent.attend, {**LATENT, "ROWS": rows}, warps, {}
    for tokens in (16, 64):
        product = {"ROWS": tokens, "OUTPUTS": few.OUTPUTS}
        ahead = {"num_stages": few.STAGES}
        for bits, group in ((4, 0), (4, 32), (4, 64), (8, 0), (8, 32)):
            sizes = {**product, "STEP": 128, "BITS": bits, "GROUP": group}
            name = f"packed, {tokens} tokens, {bits} bits, groups of {group or 'a step'}"
            kinds = {"words": "*i32", "out": "*fp32"}
            yield name, packed_few.product, sizes, ahead, kinds
        if capability >= ADA:
            kinds = {"weight": "*fp8e4nv", "scales": "*fp32", "out": "*fp32"}
            sizes = {**product, "BLOCK": 128}
            yield f"fp8, {tokens} tokens", fp8_few.product, sizes, ahead, kinds


def compiled(case: Case, capability: int) -> Any:
    """The kernel for a compute capability, as the JIT would call the compiler."""
    _, kernel, sizes, options, kinds = case
    names = kernel.arg_names
    kinds = {name: {**KINDS, **kinds}.get(name, "i32") for name in names}
    kinds |= dict.fromkeys(sizes, "constexpr")
    even = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if kinds[name].startswith("*") or (kinds[name] == "i32" and name not in ODD)
    }
    source = ASTSource(kernel, kinds, sizes, even)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def usage(program: Any) -> dict[str, int]:
    """What the assembler gave it: registers, and bytes of stack, which spilled registers take."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "-res-usage", file.name]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    values = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", found))
    return {name.lower(): int(value) for name, value in values.items()}


def words_read(program: Any) -> list[int]:
    """Numbers that each load of int32 words takes, as Triton's first representation has them."""
    loads = re.findall(r"tt\.load .*tensor<([\dx]+)x!tt\.ptr<i32>>", program.asm["ttir"])
    sizes = [[int(size) for size in shape.split("x")] for shape in loads]
    return [first * second for first, second in sizes]


def main() -> None:
    """Compile them all."""
    for capability, allowed in ALLOWED.items():
        for case in cases(capability):
            program = compiled(case, capability)
            found = {"name": case[0], "capability": capability, "allowed": allowed}
            found |= {"shared": program.metadata.shared, **usage(program)}
            if case[0].startswith("packed"):
                sizes = case[2]
                words = sizes["OUTPUTS"] * sizes["STEP"] * sizes["BITS"] // 32
                found |= {"words": words, "read": words_read(program)}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
