"""What a training step computes on a GPU, counted on tensors without numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
STEPS = [f"{family} {length}" for family in ("llama3", "deepseek_v3") for length in (8192, 131072)]
GB = 1e9


@cache
def counted() -> dict[str, Any]:
    """Everything, in a process of its own: PyTorch is told before it starts that there is a GPU."""
    command = [sys.executable, "-m", "tests.gpu.counts"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {name: found for line in lines for name, found in line.items()}


@pytest.mark.parametrize("step", STEPS)
def test_no_tensor_of_a_step_has_as_many_numbers_as_a_mask(step: str) -> None:
    found = counted()[step]
    assert found["kernels"]["_varlen_attn"] > 0, "documents were not kept apart"
    assert found["largest"] < 1


@pytest.mark.parametrize("step", STEPS)
def test_the_host_reads_nothing_in_a_step(step: str) -> None:
    assert counted()[step]["waits"] == []


def test_a_layer_of_the_8b_shape_moves_little_beside_its_products() -> None:
    found = counted()["layer"]
    assert found["small_kernels"] <= 40, found["kernels"]
    assert found["bytes"] <= 8 * GB, found["moved"]


@pytest.mark.parametrize(("family", "most"), [("llama3", 16), ("deepseek_v3", 40)])
def test_a_layer_that_decodes_has_few_kernels(family: str, most: int) -> None:
    found = counted()[f"decode {family}"]
    assert found["waits"] == []
    assert found["total"] <= most, found["kernels"]


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_prompts_are_computed_without_a_mask(family: str) -> None:
    found = counted()[f"prompt {family}"]
    assert found["kernels"]["_varlen_attn"] == found["kernels"]["attend_paged"] > 0
    assert found["waits"] == []
    assert found["largest"] < 1


def test_the_host_waits_once_for_where_tokens_go() -> None:
    found = counted()["experts"]
    assert found["kernels"]["all_to_all_single"] >= 4
    assert found["waits"] == ["tolist"]


def test_the_host_waits_once_for_the_tokens_of_a_step() -> None:
    assert counted()["sampling"] == [["tolist"]] * 2
