"""What `train.float8` cannot be combined with: no torch yet."""

from __future__ import annotations

from collections.abc import Iterator

from llamaseek.herd import DeepseekV3Config, ModelConfig
from llamaseek.herd.check import BLOCK
from llamaseek.recipe import Recipe

TORCHAO = ("tensorwise", "rowwise")


def float8_problems(recipe: Recipe, config: ModelConfig) -> Iterator[str]:
    """What keeps a recipe's fp8 products from running, one line each."""
    kind, train = recipe.train.float8, recipe.train
    if kind == "none":
        return
    said = f"train.float8: {kind}"
    if kind in TORCHAO and train.device == "cpu":
        yield f"{said} needs a GPU; allowed on a CPU: none, and deepseek, which is emulated"
    if train.precision == "fp64" or kind in TORCHAO and train.precision == "fp32":
        yield f"{said} is not for train.precision {train.precision}; allowed: auto, bf16"
    if recipe.lora is not None:
        yield f"{said} is not for adapters, whose base is not trained; allowed: none"
    if recipe.stage in ("grpo", "ppo"):
        yield f"{said} is not for {recipe.stage}, whose engine reads plain weights; allowed: none"
    if recipe.parallel.tensor > 1:
        yield (
            f"parallel.tensor: {recipe.parallel.tensor} is not for train.float8, whose scales "
            "belong to whole matrices; allowed: data, shard, pipeline, context, expert"
        )
    yield from _widths(said, config) if kind == "deepseek" else ()


def _widths(said: str, config: ModelConfig) -> Iterator[str]:
    """Widths that blocks do not divide: narrow latents are padded, these would cost too much."""
    names = ["hidden_size", "intermediate_size"]
    if isinstance(config, DeepseekV3Config):
        names.append("moe_intermediate_size")
    for name in names:
        if getattr(config, name) % BLOCK:
            yield (
                f"{said} needs a multiple of {BLOCK} as model.config.{name}, "
                f"not {getattr(config, name)}"
            )
