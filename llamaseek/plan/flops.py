"""FLOPs of one token: the count that progress bars, benchmarks and both planners ask.

A token is multiplied with every weight that it activates: the chosen experts, a tied table as the
head, and not the embedding, of which it reads one row. Attention counts all keys, masked or not, as
published utilisations do. Activations that are computed again are time, not work.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from llamaseek.herd import DeepseekV3Config, Llama3Config, ModelConfig
from llamaseek.herd.tensors import count_parameters, tied

if TYPE_CHECKING:
    from llamaseek.recipe.schema import Recipe

ACCUMULATE = 2  # a multiplication and an addition


@lru_cache(maxsize=64)
def matrix_flops(config: ModelConfig, modules: int = 0) -> int:
    """FLOPs of one token's matrix products in a forward pass, with those of so many `modules` that
    predict further ahead, each of which reads the shared head again.
    """
    count = count_parameters(config)
    weights = count.activated
    if not config.num_experts and not tied(config):
        weights -= count.embedding
    if modules:
        each = count.multi_token_activated // config.multi_token_depth
        weights += modules * (each + config.vocab_size * config.hidden_size)
    return ACCUMULATE * weights


def attention_flops(config: ModelConfig, keys: int, modules: int = 0) -> int:
    """FLOPs of one query token's scores and weighted sum over `keys` keys, all layers."""
    if isinstance(config, DeepseekV3Config):
        widths = config.qk_head_dim + config.v_head_dim
    else:
        assert isinstance(config, Llama3Config)
        widths = 2 * config.head_dim
    layers = config.num_hidden_layers + modules
    return ACCUMULATE * layers * config.num_attention_heads * widths * keys


def training_flops(config: ModelConfig, length: int, modules: int = 0, frozen: bool = False) -> int:
    """FLOPs of one token's forward and backward in rows of `length` tokens.

    A `frozen` matrix, as under LoRA, has no gradient of its own.
    """
    passes = 2 if frozen else 3
    return passes * matrix_flops(config, modules) + 3 * attention_flops(config, length, modules)


def task_flops(config: ModelConfig, task: str, length: int) -> int:
    """FLOPs of training one token; pre-training has multi-token modules, fine-tuning none."""
    modules = config.multi_token_depth if task == "pretrain" else 0
    return training_flops(config, length, modules, task == "lora")


def recipe_flops(recipe: Recipe, config: ModelConfig, length: int) -> int:
    """FLOPs that a recipe trains one token of `config` with, in rows of `length` tokens."""
    modules = trained_modules(recipe, config)
    return training_flops(config, length, modules, recipe.lora is not None)


def trained_modules(recipe: Recipe, config: ModelConfig) -> int:
    """How many multi-token modules a recipe trains: all of them, or none."""
    return config.multi_token_depth if recipe.train.objective == "multi_token" else 0
