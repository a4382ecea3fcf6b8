"""The table of docs/models.md names what the code's own lists hold, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llamaseek.checkpoints import adapter_config
from llamaseek.checkpoints.gguf.kinds import ASKED
from llamaseek.herd import DeepseekV3Config, Llama3Config, gguf_config, grouped, json_config, rotary
from llamaseek.herd.formats import FLOATS, GROUPS
from llamaseek.kernels.blocks import KINDS
from llamaseek.text.gguf.pre_tokenizers import PRE_TOKENIZERS
from llamaseek.text.gguf.tokenizer import MODELS
from llamaseek.text.tokenizer import META_FILE, TOKENIZER_FILE

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
SECTION = PAGE.partition("## What is read, written and refused\n")[2].partition("\n## ")[0]
ROWS = {
    cells[0]: cells[1:]
    for line in SECTION.splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
}
CLASSES = (Llama3Config, DeepseekV3Config)
FIXED = set(json_config.VALUES).union(*(kind.published_values for kind in CLASSES))
INITIAL = {str(each).lower() for each in adapter_config.INITIAL}
READ, WRITTEN, REFUSED = range(3)


@pytest.mark.parametrize(
    ("row", "column", "listed"),
    [
        ("architectures", READ, {kind.model_type for kind in CLASSES} | set(gguf_config.READ)),
        ("rotary scaling", READ, {"default", *rotary.KEYS}),
        ("keys of `config.json`", REFUSED, FIXED),
        ("numbers in safetensors", READ, set(FLOATS)),
        ("packed weights", READ, {"pack-quantized", *map(str, GROUPS)}),
        (
            "GPTQ and AWQ",
            READ,
            {*grouped.VALUES["gptq"]["format"], grouped.VALUES["awq"]["version"][0]},
        ),
        ("GPTQ and AWQ", REFUSED, {key for keys in grouped.VALUES.values() for key in keys}),
        ("GGUF types", READ, {*KINDS, "gguf"}),
        ("GGUF types", WRITTEN, set(ASKED)),
        ("tokenizers", READ, {TOKENIZER_FILE, META_FILE, *MODELS}),
        ("adapters", READ, {*adapter_config.USED, *INITIAL}),
        (
            "adapters",
            REFUSED,
            {*adapter_config.VALUES, "pissa", "olora", "corda", "loftq"},
        ),
    ],
)
def test_a_cell_is_the_codes_list(row: str, column: int, listed: set[str]) -> None:
    assert set(re.findall(r"`([^`]+)`", ROWS[row][column])) == listed


def test_pre_tokenizers_are_the_codes_list() -> None:
    found = SECTION.partition("Pre-tokenizers of GGUF files:")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([^`]+)`", found)) == set(PRE_TOKENIZERS)
