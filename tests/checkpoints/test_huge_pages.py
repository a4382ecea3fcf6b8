"""Weights that stay in their files are asked for in huge pages, from folders and GGUF files."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.checkpoints.to_gguf import GgufConversion
from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from tests.models.shapes import GGUF_LLAMA

THERE = Path("/sys/kernel/mm/transparent_hugepage")


def flags(file: Path) -> list[set[str]]:
    """The kernel's flags of each mapping of a file in this process; hg asks for huge pages."""
    found, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(f" {file}")
        elif inside and line.startswith("VmFlags:"):
            found.append(set(line.split()[1:]))
    return found


@pytest.mark.skipif(not THERE.is_dir(), reason="this system has no huge pages for the asking")
@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_mapped_weights(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = config_from_sizes("llama3", {**GGUF_LLAMA, "vocab_size": 300})
    save_model(build_model(config), folder)
    source = folder
    if name == "model.gguf":
        source = folder / name
        GgufConversion(folder, source, "q8_0").run()
    model = load_model(source, mapped=True, packed=True)
    asked = flags((folder / name).resolve())
    del model
    assert asked and any("hg" in each for each in asked)
