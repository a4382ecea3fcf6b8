"""Compiles the paged kernels for GPUs and prints the shared memory they take, and may take."""

from __future__ import annotations

import json
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llamaseek.kernels import fp8_few, grouped, latent, packed_few, split

KIB = 1024
AMPERE, ADA, HOPPER = (80, 99 * KIB), (89, 99 * KIB), (90, 227 * KIB)
POINTERS = ("q", "keys", "values", "key_scales", "value_scales", "kept", "scales", "out", "x")
FLOATS = {"means": "*fp32", "logs": "*fp32", "scale": "fp32"}
WHOLE = {"tables": "*i64", "lengths": "*i64", "weight": "*fp8e4nv", "words": "*i32"}
HEADS = {"SIZE": 16, "HEADS": 32, "EIGHT": False}
GROUPED = {**HEADS, "SHARED": 4, "WIDTH": 128, "ROWS": 16, "COLUMNS": 128, "STEP": 64}
FOUR = {"STEP": 64, "BITS": 4}
LATENT = {**HEADS, "RANK": 512, "ROPE": 64, "COLUMNS": 512, "TURNED": 64, "STEP": 32}


def shared_memory(kernel: Any, sizes: dict[str, Any], capability: int, warps: int) -> int:
    """Bytes a program takes on a GPU of this compute capability."""
    kinds = {**FLOATS, **WHOLE}
    signature = {}
    for name in kernel.arg_names:
        found = "*bf16" if name in POINTERS else kinds.get(name, "i32")
        signature[name] = "constexpr" if name in sizes else found
    even = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, sizes, even)
    target, options = GPUTarget("cuda", capability, 32), {"num_warps": warps}
    return int(triton.compile(source, target=target, options=options).metadata.shared)


def main() -> None:
    """Print JSON: name → bytes taken and allowed."""
    few, many = {**LATENT, "ROWS": 16}, {**LATENT, "ROWS": 64}
    found = {}
    for name, kernel, sizes, (capability, allowed), warps in (
        ("grouped", grouped.attend, GROUPED, AMPERE, 4),
        ("latent", latent.attend, few, AMPERE, 4),
        ("latent of many heads", latent.attend, many, HOPPER, 8),
        ("fp8", fp8_few.product, {"ROWS": 64, "OUTPUTS": 32, "BLOCK": 128}, ADA, 4),
        ("packed", packed_few.product, {**FOUR, "ROWS": 64, "OUTPUTS": 32}, AMPERE, 4),
        ("combine", split.combine, {"CUTS": 64, "COLUMNS": 128}, AMPERE, 4),
    ):
        found[name] = (shared_memory(kernel, sizes, capability, warps), allowed)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
