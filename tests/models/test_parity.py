"""Logits, gradients and folders agree with transformers, in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from llamaseek.checkpoints.hf import save_model, to_hf
from tests.models.shapes import ours_from, reference_model, rows, tiny_config, tiny_model

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LLAMA3_8 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama3", {"num_key_value_heads": 4}),
    ("llama3", {"num_key_value_heads": 2}),
    ("llama3", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    ("llama3", {"rope_scaling": LLAMA3_8}),
    ("llama3", {"rope_scaling": {**LLAMA3_8, "factor": 32.0}, "tie_word_embeddings": True}),
    ("deepseek_v3", {}),
    ("deepseek_v3", {"q_lora_rank": 12}),
    ("deepseek_v3", {"rope_scaling": YARN}),
    ("deepseek_v3", {"rope_scaling": {**YARN, "mscale": 0.7}, "q_lora_rank": 12}),
    ("deepseek_v3", {"n_group": 4, "topk_group": 2}),
    ("deepseek_v3", {"n_group": 2, "topk_group": 1, "n_shared_experts": 2}),
    ("deepseek_v3", {"first_k_dense_replace": 0, "norm_topk_prob": False}),
    ("deepseek_v3", {"first_k_dense_replace": 2, "v_head_dim": 12}),
]


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference over the reference's scale."""
    return float((ours - theirs).detach().abs().max() / theirs.abs().max())


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_logits_and_gradients_equal_transformers(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    reference = reference_model(tiny_config(family, **changes))
    ours = ours_from(reference, tmp_path)
    tokens, positions = rows(time=40)
    theirs = reference(tokens, use_cache=False).logits
    logits = ours.logits(ours(tokens, positions))
    assert relative(logits, theirs) <= 1e-4
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    F.cross_entropy(theirs[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        wanted = expected[name].grad.view_as(parameter)  # gate and up stand apart in ours
        assert parameter.grad is not None, name
        assert relative(parameter.grad, wanted) <= 1e-4, name


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_transformers_reads_what_we_write(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    model = tiny_model(family, **changes).eval()
    save_model(model, tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokens, positions = rows(time=40)
    with torch.no_grad():
        ours = model.logits(model(tokens, positions))
        assert relative(ours, theirs(tokens, use_cache=False).logits) <= 1e-4


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_folders_round_trip_bit_for_bit(family: str, tmp_path: Path) -> None:
    extra = {"num_nextn_predict_layers": 2} if family == "deepseek_v3" else {}
    from llamaseek.checkpoints.hf import load_model

    model = tiny_model(family, **extra)
    save_model(model, tmp_path)
    again = dict(to_hf(load_model(tmp_path)))
    for name, tensor in to_hf(model):
        assert torch.equal(tensor, again[name]), name
