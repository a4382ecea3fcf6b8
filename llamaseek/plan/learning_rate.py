"""The learning rates that models of a size are trained with, and a warning far from them.

Published rates follow a power of the number of parameters N:

- pre-training 6e-4 · (125M / N)^0.318: GPT-3's table 2.1 from end to end (125M 6e-4, 175B 6e-5);
  Llama 3 8B, 70B and 405B (3e-4, 1.5e-4, 8e-5) lie within a factor of 2.1;
- fine-tuning 2e-4 · (135M / N)^0.5: SmolLM2-135M 1e-3 and 1.7B 3e-4 (alignment-handbook), Tulu 3
  8B 5e-6 and 70B 2e-6, Llama 3 405B 1e-5 lie within a factor of 5.5;
- LoRA ten times that (QLoRA §B.2: 7B 2e-4, 65B 1e-4; Schulman et al. 2025, "LoRA Without Regret"),
  at most 1e-3;
- preferences and rewards from programs a 25th (SmolLM2-135M DPO 1e-6; Tulu 3 DPO 8B 5e-7, 70B 2e-7;
  DeepSeekMath 7B GRPO 1e-6), by LoRA ten times that (Zephyr 7B 5e-6).
"""

from __future__ import annotations

from llamaseek.herd import ModelConfig
from llamaseek.herd.tensors import count_parameters
from llamaseek.recipe.schema import Recipe
from llamaseek.units import count

FAR = 10.0  # times the usual rate, from which on a run is warned of
SPREAD = 3.0  # the usual range is the rate divided and multiplied by this
SHARES = {"dpo": 0.04, "grpo": 0.04, "ppo": 0.04}
"""Stages that start from an instruct model, by their share of the fine-tuning rate."""


def usual_rate(parameters: int, stage: str, lora: bool = False, starts: bool = True) -> float:
    """The learning rate that a model of so many parameters is usually trained with at `stage`.

    `starts` is whether it goes on from a trained model.
    """
    if stage == "pretrain" and not starts:
        return float(6e-4 * (125e6 / parameters) ** 0.318)
    tuning = float(2e-4 * (135e6 / parameters) ** 0.5) * SHARES.get(stage, 1.0)
    return min(10 * tuning, 1e-3) if lora else tuning


def unusual_rate(recipe: Recipe, config: ModelConfig) -> str | None:
    """A warning, with the usual range, where `train.lr` is ten times off what is usual."""
    parameters, rate = count_parameters(config).total, recipe.train.lr
    starts = recipe.model.init_from is not None
    usual = usual_rate(parameters, recipe.stage, recipe.lora is not None, starts)
    if usual / FAR <= rate <= usual * FAR:
        return None
    way = "LoRA, " if recipe.lora is not None else ""
    return (
        f"train.lr: {rate:g} is far from what models of {count(parameters)} parameters are "
        f"trained with ({way}{recipe.stage}: {usual / SPREAD:.0e} to {usual * SPREAD:.0e})"
    )
