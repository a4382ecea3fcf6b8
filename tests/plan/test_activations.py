"""What a layer keeps for its backward pass is what autograd really saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llamaseek.herd import config_from_sizes
from llamaseek.models import CausalLM, build_model
from llamaseek.models.attention import BLOCKED_LENGTH
from llamaseek.models.lora import add_lora
from llamaseek.plan.activations import TrainingPass, layer_saved, pairs, rotary_tables
from llamaseek.plan.weights import adapter_size, layer_size, linear_names

LLAMA = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
DEEPSEEK = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 2,
}
CASES: list[tuple[str, dict[str, Any], int, int, int]] = [
    ("llama3", LLAMA, 1, 2, 300),  # several blocks, the last one short
    ("llama3", LLAMA, 1, 1, 256),  # one row: blocks look into its keys
    ("llama3", LLAMA | {"num_key_value_heads": 8}, 1, 2, 100),
    ("llama3", LLAMA, 1, 2, 1100),  # beyond the blocked length: the fused kernel
    ("deepseek_v3", DEEPSEEK, 1, 2, 200),  # dense
    ("deepseek_v3", DEEPSEEK, 2, 2, 200),  # mixture of experts
    ("deepseek_v3", DEEPSEEK | {"q_lora_rank": 20}, 2, 1, 200),
    ("deepseek_v3", DEEPSEEK | {"n_shared_experts": 2}, 2, 1, 1100),
    ("deepseek_v3", DEEPSEEK | {"n_shared_experts": 0}, 2, 2, 130),
]


def saved_bytes(model: CausalLM, layer: int, tokens: Tensor, bf16: bool) -> int:
    """Distinct storages, parameters apart, that the layer's forward saves."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, Any] = {}  # storages are kept alive, so that no address is used twice
    inside = False

    def switch(on: bool) -> Any:
        def hook(*_: Any) -> None:
            nonlocal inside
            inside = on

        return hook

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if inside and storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    module = model.model.layers[layer]
    module.register_forward_pre_hook(switch(True))
    module.register_forward_hook(switch(False))
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
    ):
        model(tokens, positions)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("family", "sizes", "layer", "rows", "length"), CASES)
def test_saved_bytes_equal_autograds(
    family: str,
    sizes: dict[str, Any],
    layer: int,
    rows: int,
    length: int,
    bf16: bool,
    adapters: bool,
) -> None:
    config = config_from_sizes(family, sizes)
    torch.manual_seed(0)
    model = build_model(config)
    names = linear_names(config) - {"k_proj", "kv_a_proj_with_mqa", "up_proj"}
    if adapters:
        model.to(torch.bfloat16 if bf16 else torch.float32)
        add_lora(model, 4, 4.0, sorted(names))
    run = TrainingPass(
        rows,
        length,
        number=2 if bf16 else 4,
        blocked=length <= BLOCKED_LENGTH,
        adapters=names if adapters else None,
        rank=4 if adapters else 0,
    )
    expected = layer_saved(config, layer, run) + rotary_tables(config, run)
    if bf16:  # copies of weights that are stored wider
        size = layer_size(config, layer)
        wide = adapter_size(config, layer, names, 4) if adapters else size.matrices + size.routed
        expected += 2 * wide
        # The router multiplies in fp32, a frozen bf16 one as a copy.
        expected += 4 * 64 * 8 * (adapters and size.routed > 0)
    if config.is_moe_layer(layer):  # rows' tokens, which `_AddRows` keeps where no hook sees them
        expected -= 8 * config.experts_per_token * rows * length
    tokens = torch.randint(0, 512, (rows, length))
    assert saved_bytes(model, layer, tokens, bf16) == pytest.approx(expected, rel=1e-3)


def test_blocks_skip_the_keys_after_them() -> None:
    brute = sum(min((q // 128 + 1) * 128, 300) for q in range(300))
    assert pairs(300, keys_only=False) == brute
    assert pairs(300, keys_only=True) == 128 + 256 + 300
