"""Memory of a host whose GPUs' ranks begin a run, and write a checkpoint in the background."""

from __future__ import annotations

from llamaseek.dry_run.rank import RankReport
from llamaseek.herd import ModelConfig
from llamaseek.herd.tensors import count_parameters, layer_parts
from llamaseek.plan.gpus import Gpu
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.check import by_layer

PROCESS = 3e9  # of a rank: Python, PyTorch, CUDA's libraries and context; assumed, not measured


def host_memory(
    recipe: Recipe, config: ModelConfig, reports: list[RankReport], gpu: Gpu
) -> dict[str, int]:
    """Ranks a host, and bytes there before the first step and while a checkpoint is written."""
    ranks = min(gpu.node, recipe.parallel.ranks)
    share = max(report.weights + report.optimizer for report in reports)
    copied = share if recipe.train.save_in_background else 0
    read = PROCESS + read_bytes(recipe, config)
    return {
        "ranks": ranks,
        "start_bytes": int(ranks * read),
        "save_bytes": int(ranks * (PROCESS + copied)),
    }


def read_bytes(recipe: Recipe, config: ModelConfig) -> float:
    """Of the model in the host's memory, in float32: whole where something needs it whole, else a
    layer of what is read from a folder in bf16, and nothing of a new one, drawn on the GPU.
    """
    new = not recipe.model.init_from
    if not by_layer(recipe) or (new and recipe.train.float8 != "none"):
        return 4.0 * count_parameters(config).total
    layers = range(config.num_hidden_layers)
    return 0 if new else 4.0 * max(sum(layer_parts(config, n).values()) for n in layers)
