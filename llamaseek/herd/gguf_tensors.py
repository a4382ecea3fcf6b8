"""Where the tensors of a model lie in a GGUF file, by Hugging Face's names. No torch.

GGUF has the weights of all routed experts in one tensor, latent attention's `kv_b_proj` as two,
one of them transposed, and in Llama's queries and keys the two halves of each head interleaved.
Names and layouts: llama.cpp `src/llama-arch.cpp` and `conversion/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llamaseek.gguf_header import GgufHeader, GgufTensor
from llamaseek.herd.configs import ModelConfig, Shape
from llamaseek.herd.header import StoredTensor
from llamaseek.herd.tensors import model_tensors

OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.kv_b_proj.weight": "attn_kv_b.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    "eh_proj.weight": "nextn.eh_proj.weight",
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "shared_head.norm.weight": "nextn.shared_head_norm.weight",
    "shared_head.head.weight": "nextn.shared_head_head.weight",
    "embed_tokens.weight": "nextn.embed_tokens.weight",
}
SECOND_COPIES = ("shared_head.head.weight", "embed_tokens.weight")
"""Of multi-token modules: the main model's embedding and head once more."""
KEY_PART, VALUE_PART = "attn_k_b.weight", "attn_v_b.weight"
FREQUENCIES = "rope_freqs.weight"
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Placed:
    """One tensor of a model in a GGUF file.

    `parts` is the tensor itself, or for `kv_b_proj` its keys' (heads, latent, width) and values'
    (heads, width, latent) parts. `first` is the row at which an expert begins. With `heads`, the
    rows of each head alternate between its first and its second half.
    """

    parts: tuple[GgufTensor, ...]
    shape: Shape
    first: int = 0
    heads: int = 0

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        if len(self.parts) > 1 or not self.shape[:-1]:
            return sum(part.nbytes for part in self.parts)
        return self.shape[0] * self.parts[0].row_bytes


@dataclass(frozen=True)
class GgufStored(StoredTensor):
    """A tensor of a GGUF file, with its place; `dtype` is GGUF's name of its type ("Q4_K")."""

    placed: Placed

    @property
    def is_float(self) -> bool:
        """Whether it holds numbers that a model can compute with: all of GGUF's but whole ones."""
        return not self.dtype.startswith("I") or self.dtype.startswith("IQ")

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.placed.nbytes


def stored_gguf(header: GgufHeader, config: ModelConfig) -> dict[str, GgufStored]:
    """Every tensor of a GGUF file by its name in the model, or by its own if it has none there."""
    return {
        name: GgufStored(name, place.parts[0].kind.name, place.shape, place.parts[0].path, place)
        for name, place in placed_tensors(header, config).items()
    }


def gguf_name(name: str) -> str:
    """The GGUF name of the tensor that holds a model's tensor `name`; the same name if none is."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    if (found := _IN_LAYER.fullmatch(name)) is None:
        return name
    layer, own = found[1], found[2]
    if expert := _EXPERT.fullmatch(own):
        return f"blk.{layer}.ffn_{expert[2]}_exps.weight"
    return f"blk.{layer}.{LAYER[own]}" if own in LAYER else name


def placed_tensors(header: GgufHeader, config: ModelConfig) -> dict[str, Placed]:
    """A file's tensors by the names they have in a model; those that it has no name for, by
    their own."""
    found: dict[str, Placed] = {}
    used = {FREQUENCIES}
    for name in _names(config):
        place = _place(header, config, name)
        if place is not None:
            found[name] = place
            used |= {part.name for part in place.parts}
    for name, tensor in header.tensors.items():
        if name not in used and not _superseded(name, used):
            found[name] = Placed((tensor,), tensor.shape)
    return found


def _names(config: ModelConfig) -> Iterator[str]:
    for name, _ in model_tensors(config):
        yield name
    for layer in range(config.num_hidden_layers, config.layer_count):
        for own in SECOND_COPIES:
            yield f"model.layers.{layer}.{own}"


def _superseded(name: str, used: set[str]) -> bool:
    """Whether it is the joined form, in old files, of what is there in two parts as well."""
    base = name.removesuffix("attn_kv_b.weight")
    return base != name and base + KEY_PART in used


def _place(header: GgufHeader, config: ModelConfig, name: str) -> Placed | None:
    theirs = gguf_name(name)
    if name.endswith("kv_b_proj.weight"):
        parts = [theirs.replace("attn_kv_b.weight", part) for part in (KEY_PART, VALUE_PART)]
        if all(part in header.tensors for part in parts):
            return _joined(header.tensors[parts[0]], header.tensors[parts[1]])
    tensor = header.tensors.get(theirs)
    if tensor is None:
        return None
    if expert := _EXPERT.search(name):
        rows = tensor.shape[-2] if len(tensor.shape) == 3 else 0
        return Placed((tensor,), tensor.shape[-2:], int(expert[1]) * rows)
    return Placed((tensor,), tensor.shape, heads=interleaved_heads(config, name))


def _joined(keys: GgufTensor, values: GgufTensor) -> Placed:
    """`kv_b_proj` (heads × (nope + value), latent) from its two parts."""
    if len(keys.shape) != 3 or len(values.shape) != 3:
        return Placed((keys, values), (0, 0))
    rows = keys.shape[0] * (keys.shape[2] + values.shape[1])
    return Placed((keys, values), (rows, keys.shape[1]))


def interleaved_heads(config: ModelConfig, name: str) -> int:
    """How many heads' rows a GGUF file holds with their two halves in turn: of a Llama's queries
    and keys, as Meta rotates them. 0 for a tensor whose rows are in Hugging Face's order.
    """
    if config.latents is not None:
        return 0
    if name.endswith("q_proj.weight"):
        return config.num_attention_heads
    return config.key_heads if name.endswith("k_proj.weight") else 0
