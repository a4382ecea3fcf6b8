"""Which models exist: frozen configurations, from tiny study sizes up. No torch import."""

from llamaseek.herd.configs import (
    FAMILIES,
    ModelConfig,
    config_from_sizes,
    find_family,
    register_config,
)
from llamaseek.herd.deepseek_v3 import DeepseekV3Config
from llamaseek.herd.json_config import config_from_dict
from llamaseek.herd.llama3 import Llama3Config
from llamaseek.herd.rotary import RopeScaling

register_config("llama3", Llama3Config)
register_config("deepseek_v3", DeepseekV3Config)

__all__ = [
    "FAMILIES",
    "DeepseekV3Config",
    "Llama3Config",
    "ModelConfig",
    "RopeScaling",
    "config_from_dict",
    "config_from_sizes",
    "find_family",
    "register_config",
]
