"""The architectures, what they are made of, and their Hugging Face folders on disk."""

from llamaseek.herd import DeepseekV3Config, Llama3Config, ModelConfig
from llamaseek.models.deepseek_v3 import DeepseekV3
from llamaseek.models.llama3 import Llama3
from llamaseek.models.trunk import CausalLM


def build_model(config: ModelConfig) -> CausalLM:
    """A freshly initialised model of the config's family."""
    if isinstance(config, DeepseekV3Config):
        return DeepseekV3(config)
    assert isinstance(config, Llama3Config)
    return Llama3(config)


__all__ = ["CausalLM", "DeepseekV3", "Llama3", "build_model"]
