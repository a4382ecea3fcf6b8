"""Which models exist: frozen configurations, from tiny study sizes up. No torch import."""

from llamaseek.herd.configs import (
    DeepseekV3Config,
    Llama3Config,
    ModelConfig,
    RopeScaling,
    config_from_dict,
    config_from_sizes,
)

__all__ = [
    "DeepseekV3Config",
    "Llama3Config",
    "ModelConfig",
    "RopeScaling",
    "config_from_dict",
    "config_from_sizes",
]
