"""Floating-point work a token.

Each weight that a token is multiplied with is a multiplication and an addition; attention adds
2 × T × H × (key width + value width) a layer. All T keys are counted although half are masked, the
convention of published utilisations (Chowdhery et al. 2022, App. B; `train/machine.py`). The
backward pass does the same twice: once for its inputs, once for its weights.
"""

from __future__ import annotations

from functools import lru_cache

from llamaseek.herd.configs import DeepseekV3Config, Llama3Config, ModelConfig
from llamaseek.herd.count import count_parameters

ACCUMULATE = 2  # a multiplication and an addition


@lru_cache(maxsize=64)
def matrix_flops(config: ModelConfig, multi_token: bool = False) -> int:
    """FLOPs of one token's matrix products in a forward pass; looking up a row is none.

    `multi_token` adds the modules that predict further ahead, each with the shared head.
    """
    count = count_parameters(config)
    weights = count.activated
    if not isinstance(config, DeepseekV3Config) and not config.tie_word_embeddings:
        weights -= count.embedding
    if multi_token and isinstance(config, DeepseekV3Config):
        heads = config.num_nextn_predict_layers * config.vocab_size * config.hidden_size
        weights += count.multi_token_activated + heads
    return ACCUMULATE * weights


def attention_flops(config: ModelConfig, keys: int, multi_token: bool = False) -> int:
    """FLOPs of one query token's scores and weighted sum over `keys` keys, all layers."""
    layers = config.num_hidden_layers
    if isinstance(config, DeepseekV3Config):
        widths = config.qk_head_dim + config.v_head_dim
        layers += config.num_nextn_predict_layers if multi_token else 0
    else:
        assert isinstance(config, Llama3Config)
        widths = 2 * config.head_dim
    return ACCUMULATE * layers * config.num_attention_heads * widths * keys


def training_flops(config: ModelConfig, task: str, length: int) -> int:
    """FLOPs of one token's forward and backward; a frozen matrix has no gradient of its own."""
    multi_token = task == "pretrain"
    passes = 2 if task == "lora" else 3
    matrices = passes * matrix_flops(config, multi_token)
    return matrices + 3 * attention_flops(config, length, multi_token)
