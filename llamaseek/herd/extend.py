"""A config whose context is longer: the rotary frequencies stretched as the papers did it."""

from __future__ import annotations

from dataclasses import replace

from llamaseek.errors import bad_value
from llamaseek.herd.configs import DeepseekV3Config, ModelConfig, RopeScaling


def extended(config: ModelConfig, to: int, rope: str, factor: float | None = None) -> ModelConfig:
    """`config` for contexts of `to` tokens, by "yarn" or "llama3" scaling.

    The factor, unless given, is `to` over the length before any scaling; in later stages over the
    same length. DeepSeek-V3 (§4.3) scales by 40 in both of its stages, to 32k and 128k, and puts
    YaRN's temperature into the softmax scale; Llama 3.1 scales 8,192 by 8 for 128k.
    Raises UserError if `to` is not longer than the context is now.
    """
    if to <= config.max_position_embeddings:
        allowed = f"more than the model's {config.max_position_embeddings} tokens"
        raise bad_value("model.extend.to", to, allowed)
    before = config.rope_scaling
    first = before.original_max_position_embeddings if before else config.max_position_embeddings
    in_softmax = rope == "yarn" and isinstance(config, DeepseekV3Config)
    scaling = RopeScaling(
        rope_type=rope,
        factor=factor or to / first,
        original_max_position_embeddings=first,
        mscale_all_dim=1.0 if in_softmax else 0.0,
    )
    return replace(config, max_position_embeddings=to, rope_scaling=scaling)
