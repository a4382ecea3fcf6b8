"""New models made on `meta`, cut and drawn a layer at a time: no rank holds one whole, and the
numbers are those of one process.

    python -m tests.parallel.test_new_models 2000   # MB: a model that large on four ranks
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from llamaseek.herd import ModelConfig, config_from_sizes
from llamaseek.models import build_model
from llamaseek.models.drawn import draw, undrawn_model
from llamaseek.parallel.ranks import ParallelModel
from llamaseek.recipe.parallel import ParallelRecipe
from llamaseek.runtime.device import hand_back_freed_memory
from tests.parallel.launch import on_ranks
from tests.parallel.scenes import SIZES

CPU = torch.device("cpu")
MB = 2**20
LAYOUTS = [
    ("llama3", {"shard": 4}),
    ("llama3", {"tensor": 2, "pipeline": 2}),
    ("deepseek_v3", {"shard": 2, "pipeline": 2}),
    ("deepseek_v3", {"shard": 2, "tensor": 2, "expert": 2}),
]


def undrawn(config: ModelConfig, seed: int = 3) -> Any:
    return undrawn_model(lambda: build_model(config), CPU, seed)


@pytest.mark.parametrize("family", list(SIZES))
def test_a_model_drawn_later_is_the_one_drawn_at_once(family: str) -> None:
    config = config_from_sizes(family, SIZES[family])
    torch.manual_seed(3)
    wanted, after = build_model(config), torch.rand(1)
    made = undrawn(config)
    assert torch.equal(after, torch.rand(1))  # what is drawn next is the same as well
    assert all(p.is_meta for p in made.parameters() if p.dim() > 1)
    for layer in reversed(list(made.modules())):
        draw(layer, CPU)
    for (name, own), (_, theirs) in zip(
        made.named_parameters(), wanted.named_parameters(), strict=True
    ):
        assert torch.equal(own, theirs), name
    assert made.tied == wanted.tied
    assert not made.tied or made.lm_head.weight is made.model.embed_tokens.weight


def different(family: str, plan: dict[str, int]) -> list[str]:
    """The weights of a rank that are not those of one process."""
    config = config_from_sizes(family, SIZES[family])
    torch.manual_seed(3)
    wanted = dict(build_model(config).named_parameters())
    ranks = ParallelModel(undrawn(config), ParallelRecipe(**plan), CPU, torch.float32)
    found = {}
    for weight in ranks.weights:
        whole = weight.parameter
        found[weight.name] = whole.full_tensor() if isinstance(whole, DTensor) else whole
    return [name for name, whole in found.items() if not torch.equal(whole, wanted[name])]


@pytest.mark.parametrize(("family", "plan"), LAYOUTS)
def test_ranks_draw_the_numbers_of_one_process(family: str, plan: dict[str, int]) -> None:
    assert on_ranks(4, different, family, plan) == [[]] * 4


def config_of(size: int) -> ModelConfig:
    """A Llama of about `size` MB in float32, in sixteen layers."""
    width = max(int((size * MB / 4 / 16 / 12) ** 0.5) // 64, 1) * 64
    sizes = {
        "vocab_size": 256, "hidden_size": width, "intermediate_size": width * 8 // 3 // 64 * 64,
        "num_hidden_layers": 16, "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64, "max_position_embeddings": 64,
    }  # fmt: skip
    return config_from_sizes("llama3", sizes)


def resident(field: str) -> int:
    """This process's memory: VmRSS now, VmHWM at the most since `clear_refs`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def peak(size: int) -> dict[str, float]:
    """MB that a rank of four takes to make a new model, and of its share and of a layer."""
    hand_back_freed_memory()  # as a trainer does
    ParallelModel(undrawn(config_of(8)), ParallelRecipe(shard=4), CPU, torch.float32)  # imports
    config = config_of(size)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    ranks = ParallelModel(undrawn(config), ParallelRecipe(shard=4), CPU, torch.float32)
    taken = resident("VmHWM") - before
    share = sum(own.numel() for own in ranks.own.values()) * 4
    layer = 4 * 4 * sum(w.own.numel() for w in ranks.weights if ".layers.0." in w.name)
    return {"taken": taken / MB, "share": share / MB, "layer": layer / MB}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_rank_holds_more_than_its_share_and_a_layer() -> None:
    for found in on_ranks(4, peak, 256):
        assert found["taken"] <= found["share"] + found["layer"], found  # MB


if __name__ == "__main__":
    print(on_ranks(4, peak, int(sys.argv[1])))
