"""Small GGUF files, made with the gguf package, and the real one where it is at hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, TokenType
from tokenizers.pre_tokenizers import ByteLevel

from llamaseek.checkpoints.sources import cached

GIVEN = os.environ.get("LLAMASEEK_SMOLLM2")
SMOLLM2 = Path(GIVEN) if GIVEN else cached("smollm2-135m-instruct") or Path("/nowhere")
needs_smollm2 = pytest.mark.skipif(
    not SMOLLM2.is_file(),
    reason="no SmolLM2 in the cache or in LLAMASEEK_SMOLLM2; llamaseek download gets it",
)

WIDTH, HEADS, SHARED, INNER, VOCABULARY, LAYERS = 64, 4, 2, 96, 300, 2
SIZES = {
    "llama.block_count": LAYERS,
    "llama.context_length": 128,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": SHARED,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
}
"""Metadata of a Llama of 300 tokens and two layers."""

DEEPSEEK = {
    "deepseek2.block_count": 2,
    "deepseek2.context_length": 128,
    "deepseek2.embedding_length": 64,
    "deepseek2.feed_forward_length": 96,
    "deepseek2.attention.head_count": 2,
    "deepseek2.attention.head_count_kv": 1,
    "deepseek2.attention.layer_norm_rms_epsilon": 1e-6,
    "deepseek2.attention.q_lora_rank": 24,
    "deepseek2.attention.kv_lora_rank": 32,
    "deepseek2.attention.key_length": 40,
    "deepseek2.attention.value_length": 32,
    "deepseek2.attention.key_length_mla": 24,
    "deepseek2.attention.value_length_mla": 12,
    "deepseek2.rope.dimension_count": 8,
    "deepseek2.leading_dense_block_count": 1,
    "deepseek2.expert_feed_forward_length": 48,
    "deepseek2.expert_count": 4,
    "deepseek2.expert_used_count": 2,
    "deepseek2.expert_shared_count": 1,
    "deepseek2.expert_group_count": 2,
    "deepseek2.expert_group_used_count": 1,
    "deepseek2.expert_weights_scale": 2.5,
    "deepseek2.expert_weights_norm": True,
    "deepseek2.expert_gating_func": 2,
}
"""Metadata of a DeepSeek-V3 of one dense layer and one of four experts."""


def write(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | tuple[np.ndarray, Any]],
    architecture: str = "llama",
    **options: Any,
) -> Path:
    """A file of these keys and tensors; a tensor with a type is its bytes."""
    writer = GGUFWriter(path, architecture, **options)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, tensor in tensors.items():
        data, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)


def llama_tensors(seed: int = 0, tied: bool = False) -> dict[str, np.ndarray]:
    """Random float32 tensors for SIZES, under GGUF's names."""
    draw = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return draw.normal(0, 0.2, (rows, columns)).astype(np.float32)

    def norm(width: int) -> np.ndarray:
        return draw.uniform(0.5, 1.5, width).astype(np.float32)

    found = {"token_embd.weight": matrix(VOCABULARY, WIDTH), "output_norm.weight": norm(WIDTH)}
    if not tied:
        found["output.weight"] = matrix(VOCABULARY, WIDTH)
    kept = WIDTH // HEADS * SHARED
    for layer in range(LAYERS):
        one = {
            "attn_norm": norm(WIDTH),
            "attn_q": matrix(WIDTH, WIDTH),
            "attn_k": matrix(kept, WIDTH),
            "attn_v": matrix(kept, WIDTH),
            "attn_output": matrix(WIDTH, WIDTH),
            "ffn_norm": norm(WIDTH),
            "ffn_gate": matrix(INNER, WIDTH),
            "ffn_up": matrix(INNER, WIDTH),
            "ffn_down": matrix(WIDTH, INNER),
        }
        found |= {f"blk.{layer}.{name}.weight": value for name, value in one.items()}
    return found


def byte_vocabulary(extra: list[str], size: int = VOCABULARY) -> dict[str, Any]:
    """Metadata of a byte-level tokenizer of 256 bytes, one merge, and control tokens `extra`."""
    tokens = [*sorted(ByteLevel.alphabet()), "he", *extra]
    types = [TokenType.NORMAL] * 257 + [TokenType.CONTROL] * len(extra)
    spare = size - len(tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens + [f"[PAD{i}]" for i in range(spare)],
        "tokenizer.ggml.token_type": [int(t) for t in types] + [int(TokenType.UNUSED)] * spare,
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.eot_token_id": 259,
        "tokenizer.chat_template": TEMPLATE,
    }


CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def small_llama(path: Path, **changes: Any) -> Path:
    """A whole random Llama with a tokenizer; `changes` are keys, None takes one out."""
    metadata = {**SIZES, **byte_vocabulary(CONTROL), **changes}
    kept = {key: value for key, value in metadata.items() if value is not None}
    return write(path, kept, llama_tensors())
