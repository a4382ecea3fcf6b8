"""A model's config as the metadata of a GGUF file.

Keys: llama.cpp `conversion/llama.py` and `conversion/deepseek.py`, and what `src/models/` reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gguf import ExpertGatingFuncType, GGUFWriter, LlamaFileType, RopeScalingType
from gguf.constants import GGML_QUANT_VERSION

from llamaseek.errors import UserError
from llamaseek.herd import DeepseekV3Config, Llama3Config, ModelConfig, RopeScaling


def architecture(config: ModelConfig) -> str:
    """The name that GGUF has for a config's architecture.

    Raises `UserError` for a model that llama.cpp could not read.
    """
    if config.is_reward_model:
        raise UserError("a reward model cannot be written to a .gguf file; llama.cpp has none")
    if config.num_experts and not config.shared_experts:
        raise UserError("n_shared_experts: is 0; llama.cpp reads models with shared experts alone")
    if type(config) not in FAMILIES:
        raise UserError(f"{config.architecture} cannot be written to a .gguf file")
    return FAMILIES[type(config)][0]


def add_config(writer: GGUFWriter, config: ModelConfig, name: str, kind: LlamaFileType) -> None:
    """Put everything but the tokenizer into a file's metadata."""
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(kind)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if not config.is_causal:
        writer.add_causal_attention(False)
    FAMILIES[type(config)][1](writer, config)
    if config.rope_scaling is not None:
        _add_scaling(writer, config, config.rope_scaling)


def _add_llama(writer: GGUFWriter, config: Llama3Config) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def _add_deepseek(writer: GGUFWriter, config: DeepseekV3Config) -> None:
    """Latent attention is given as one key-value head over the latent, as llama.cpp computes it."""
    writer.add_block_count(config.num_hidden_layers + config.num_nextn_predict_layers)
    if config.num_nextn_predict_layers:
        writer.add_nextn_predict_layers(config.num_nextn_predict_layers)
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(config.q_lora_rank or 0)  # llama.cpp wants the key, and knows 0
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    if config.n_group > config.topk_group:  # else the groups limit nothing
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def _add_scaling(writer: GGUFWriter, config: ModelConfig, scaling: RopeScaling) -> None:
    """YaRN's keys. Llama 3.1's scaling is a tensor; its original length alone is a key."""
    if scaling.rope_type == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
        return
    writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
    if scaling.rope_type != "yarn":
        return
    for key, value in (("attention_factor", None), ("truncate", True)):
        if getattr(scaling, key) != value:
            raise UserError(f"rope_scaling.{key} has no place in a .gguf file")
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaling.factor)
    writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
    whole, part = scaling.mscale_all_dim, scaling.mscale
    if not config.yarn_scales_softmax and whole and part:
        raise UserError("rope_scaling.mscale has no place in a Llama's .gguf file")
    if config.yarn_scales_softmax:
        if whole and part != whole:
            raise UserError(
                f"rope_scaling.mscale is {part}, mscale_all_dim {whole}; a .gguf file has one key"
            )
        if whole:
            writer.add_rope_scaling_yarn_log_mul(0.1 * whole)


FAMILIES: dict[type[ModelConfig], tuple[str, Callable[[GGUFWriter, Any], None]]] = {
    Llama3Config: ("llama", _add_llama),
    DeepseekV3Config: ("deepseek2", _add_deepseek),
}
"""GGUF's name of an architecture, and what adds its keys, by the config's class."""
