"""Decoding from the cache equals the full forward; the latent cache holds only the latent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llamaseek.models import DeepseekV3
from tests.models.contiguous import ContiguousCache
from tests.models.shapes import rows, tiny_config, tiny_model


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama3", {}),
        ("llama3", {"num_key_value_heads": 1}),
        ("deepseek_v3", {}),
        ("deepseek_v3", {"q_lora_rank": 12, "v_head_dim": 12, "n_group": 4, "topk_group": 2}),
    ],
)
def test_ragged_decoding_equals_the_full_forward(family: str, changes: dict[str, Any]) -> None:
    model = tiny_model(family, **changes).eval()
    tokens, positions = rows(batch=3, time=14)
    prompts = torch.tensor([3, 9, 6])  # each row is cached up to here in one go, then by token
    with torch.no_grad():
        full = model(tokens, positions)
        cache = ContiguousCache(model.cache_shapes(), batch=3, length=14)
        longest = int(prompts.max())
        first = model(tokens[:, :longest], positions[:, :longest], cache)
        for row, prompt in enumerate(prompts):
            assert torch.allclose(first[row, :prompt], full[row, :prompt], atol=1e-4)
        for step in range(14 - longest):
            at = (prompts + step)[:, None]
            hidden = model(tokens.gather(1, at), at, cache)
            wanted = full.gather(1, at[..., None].expand(-1, -1, full.shape[-1]))
            assert torch.allclose(hidden, wanted, atol=1e-4)


def test_multi_token_module_decodes_from_its_own_slots() -> None:
    model = tiny_model("deepseek_v3", num_nextn_predict_layers=1).eval()
    assert isinstance(model, DeepseekV3)
    tokens, positions = rows(batch=2, time=9)
    with torch.no_grad():
        full = model(tokens[:, :-1], positions[:, :-1])
        ahead = model.mtp(0, full, tokens[:, 1:], positions[:, :-1])
        cache = ContiguousCache(model.cache_shapes(), batch=2, length=8)
        for t in range(8):
            now = slice(t, t + 1)
            hidden = model(tokens[:, now], positions[:, now], cache)
            step = model.mtp(0, hidden, tokens[:, t + 1 : t + 2], positions[:, now], cache)
            assert torch.allclose(step, ahead[:, now], atol=1e-4)


def test_latent_cache_holds_only_the_latent() -> None:
    config = tiny_config("deepseek_v3", num_nextn_predict_layers=1)
    model = tiny_model("deepseek_v3", num_nextn_predict_layers=1)
    cache = ContiguousCache(model.cache_shapes(), batch=2, length=5)
    assert len(cache.tensors) == config.num_hidden_layers + 1
    for layer in cache.tensors:
        numbers = sum(tensor.numel() for tensor in layer)
        assert numbers == 2 * 5 * (16 + 4)  # rows × slots × (kv_lora_rank + qk_rope_head_dim)


def test_documents_in_one_row_do_not_see_each_other() -> None:
    for family in ("llama3", "deepseek_v3"):
        model = tiny_model(family).eval()
        tokens, _ = rows(batch=1, time=12)
        packed = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
        with torch.no_grad():
            together = model(tokens, packed)
            alone = model(tokens[:, 5:], packed[:, 5:])
        assert torch.allclose(together[:, 5:], alone, atol=1e-5)


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_bidirectional_trunk_sees_the_future(family: str) -> None:
    model = tiny_model(family, is_causal=False).eval()
    tokens, positions = rows(batch=1, time=8)
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 97
    with torch.no_grad():
        before, after = model(tokens, positions), model(changed, positions)
    assert not torch.allclose(before[0, 0], after[0, 0], atol=1e-4)
