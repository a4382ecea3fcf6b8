"""Tiny random models of both families for tests, ours and transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llamaseek.checkpoints.hf import load_model
from llamaseek.herd import ModelConfig, config_from_dict, config_from_sizes
from llamaseek.models import CausalLM, build_model

LLAMA = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
DEEPSEEK = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}

# What llama.cpp is held against: its kernels want widths that 32 divides.
GGUF_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
GGUF_DEEPSEEK = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}


def tiny_config(family: str, **changes: Any) -> ModelConfig:
    """A tiny config of a family, with some fields changed."""
    return config_from_sizes(family, {**(LLAMA if family == "llama3" else DEEPSEEK), **changes})


def tiny_model(family: str, seed: int = 0, **changes: Any) -> CausalLM:
    """A seeded tiny model; its routing biases are not all zero."""
    torch.manual_seed(seed)
    model = build_model(tiny_config(family, **changes))
    for moe in model.moe_layers().values():
        moe.gate.e_score_correction_bias.normal_(std=0.1)
    return model


def reference_model(config: ModelConfig, seed: int = 0) -> Any:
    """transformers' random model of the same config, in float32 and eval mode."""
    import transformers

    data = config.to_dict()
    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "deepseek_v3": (transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM),
    }
    make_config, make_model = kinds[data.pop("model_type")]
    torch.manual_seed(seed)
    model = make_model(make_config(**data)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.1)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


def ours_from(reference: Any, folder: Path) -> CausalLM:
    """Our model, read from the folder that transformers saves."""
    reference.save_pretrained(folder)
    return load_model(folder).eval()


def rows(vocab: int = 97, batch: int = 3, time: int = 17, seed: int = 1) -> tuple[Any, Any]:
    """Random tokens (B, T) and their positions."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab, (batch, time), generator=generator)
    return tokens, torch.arange(time).expand(batch, time)


__all__ = ["config_from_dict", "ours_from", "reference_model", "rows", "tiny_config", "tiny_model"]
