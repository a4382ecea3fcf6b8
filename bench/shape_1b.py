"""Llama 3.2 1B with random weights, made once in a folder: ours in bf16, 8 and 4 bits, and GGUF."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamaseek.checkpoints.quantize import Quantization
from llamaseek.checkpoints.shards import write_tensors
from llamaseek.files import new_folder, write_json
from llamaseek.herd import config_from_sizes
from llamaseek.herd.configs import ModelConfig
from llamaseek.herd.tensors import model_tensors
from llamaseek.models.lazy import lazy

SIZES = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}
GGUF = {"bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def config() -> ModelConfig:
    """Of Llama 3.2 1B, but for the scaling of its rotary frequencies, which costs nothing."""
    return config_from_sizes("llama3", SIZES)


def random_tensors() -> Iterator[tuple[str, Tensor]]:
    """Every tensor in bf16; norms are ones. Seeded, one at a time."""
    generator = torch.Generator().manual_seed(0)
    for name, shape in model_tensors(config()):
        if len(shape) == 1:
            yield name, torch.ones(shape, dtype=torch.bfloat16)
        else:
            yield name, torch.randn(shape, generator=generator).mul_(0.02).bfloat16()


def make_ours(folder: Path, bits: Sequence[str] = ("8", "4")) -> None:
    """`bf16`, and `int8`, `int4` or `fp8`, under `folder`, those that are not there yet."""
    if not (folder / "bf16").is_dir():
        tensors = {name: lazy(tensor) for name, tensor in random_tensors()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        with new_folder(folder / "bf16", size, False) as target:
            write_tensors(target, tensors)
            write_json(target / "config.json", config().to_dict() | {"dtype": "bfloat16"})
    for few in bits:
        target = folder / (few if few == "fp8" else f"int{few}")
        if not target.is_dir():
            Quantization(folder / "bf16", target, few).run()


def make_gguf(folder: Path) -> None:
    """`f16.gguf` of the same shape, and llama.cpp's own quantization of it to each other type."""
    import gguf
    import llama_cpp

    plain = folder / "f16.gguf"
    if not plain.exists():
        writer: Any = gguf.GGUFWriter(str(plain) + ".part", "llama")
        _describe(writer)
        for name, tensor in random_tensors():
            half = tensor.half() if tensor.dim() == 2 else tensor.float()
            writer.add_tensor(_gguf_name(name), half.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        Path(str(plain) + ".part").rename(plain)
    for name, kind in GGUF.items():
        target = folder / f"{name}.gguf"
        if target.exists():
            continue
        wanted = llama_cpp.llama_model_quantize_default_params()
        wanted.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        paths = str(plain).encode(), str(target).encode()
        failed = llama_cpp.llama_model_quantize(*paths, ctypes.byref(wanted))
        assert not failed, f"llama.cpp could not make {target}"


def _describe(writer: Any) -> None:
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(SIZES["rope_theta"])
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(SIZES["vocab_size"])
    writer.add_file_type(1)
    writer.add_tokenizer_model("no_vocab")


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{PARTS[part]}.weight"


if __name__ == "__main__":
    make_ours(Path(sys.argv[1]))
    print(json.dumps([path.name for path in Path(sys.argv[1]).iterdir()]))
