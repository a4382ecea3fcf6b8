"""Triton's compiler and NVIDIA's assembler need no GPU; they say what a program takes of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

pytest.importorskip("triton")
CAPABILITIES = [80, 89, 90]


@cache
def compiled() -> list[dict[str, Any]]:
    """Every kernel for every capability, in a process without the interpreter."""
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compiled"]
    done = subprocess.run(
        command, env=without, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_spill_no_registers_and_fit_their_shared_memory(capability: int) -> None:
    found = [kernel for kernel in compiled() if kernel["capability"] == capability]
    assert len(found) == (23 if capability == 80 else 25)  # 8.0 does not know fp8
    for kernel in found:
        assert kernel["stack"] == kernel["local"] == 0, kernel
        assert kernel["shared"] <= kernel["allowed"], kernel


def test_packed_products_read_each_word_once() -> None:
    packed = [kernel for kernel in compiled() if "words" in kernel]
    assert len(packed) == 10 * len(CAPABILITIES)
    for kernel in packed:
        assert kernel["read"] == [kernel["words"]], kernel
