"""The architectures, what they are made of, and their Hugging Face folders on disk."""

from collections.abc import Callable
from typing import Any

from llamaseek.herd import FAMILIES, ModelConfig, register_config
from llamaseek.models.deepseek_v3 import DeepseekV3
from llamaseek.models.llama3 import Llama3
from llamaseek.models.trunk import CausalLM

MODELS: dict[type[ModelConfig], Callable[[Any], CausalLM]] = {
    FAMILIES["llama3"]: Llama3,
    FAMILIES["deepseek_v3"]: DeepseekV3,
}
"""How a model is made of a config of each class."""


def register_family(
    family: str, config_class: type[ModelConfig], model_class: Callable[[Any], CausalLM]
) -> None:
    """Add an architecture: recipes name it in `model.family`, folders by its `model_type`.

    `model_class` makes a `CausalLM` of a `config_class`. Everything else (training, the engine,
    counts, plans, diagrams) asks the two classes. Call it before a recipe or a folder is read, in
    every process that reads one, or from an entry point of the group `llamaseek.families`, which
    every process calls by itself. Raises UserError where the name or the `model_type` is taken.
    """
    register_config(family, config_class)
    MODELS[config_class] = model_class


def build_model(config: ModelConfig) -> CausalLM:
    """A freshly initialized model of the config's family."""
    return MODELS[type(config)](config)


__all__ = ["CausalLM", "DeepseekV3", "Llama3", "build_model", "register_family"]
