"""Adapters agree with PEFT's on the same model: outputs, gradients, names, merging."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import nn

from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from llamaseek.models.lora import LoRALinear, add_lora, merge
from tests.models.contiguous import ContiguousCache
from tests.models.shapes import rows, tiny_model

TARGETS = {
    "llama3": ("q_proj", "v_proj", "down_proj"),
    "deepseek_v3": ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj"),
}
FAMILIES = list(TARGETS)


def adapted(family: str, dtype: torch.dtype = torch.float32, **kind: bool) -> CausalLM:
    """A tiny model whose adapters are not zero any more."""
    model = tiny_model(family).to(dtype)
    add_lora(model, rank=4, alpha=10.0, targets=TARGETS[family], **kind)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_B.weight, std=0.3)
            if module.lora_magnitude_vector is not None:
                nn.init.uniform_(module.lora_magnitude_vector, 0.5, 1.5)
    return model


def peft_twin(model: CausalLM, family: str, **kind: bool) -> Any:
    """PEFT's adapters with the same numbers, on the model before ours were added."""
    plain: Any = tiny_model(family)
    # Without `model_type` PEFT takes the modules as they are: no conversion for transformers 5.
    plain.config = SimpleNamespace(to_dict=dict, **vars(plain.config))
    targets = list(TARGETS[family])
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=targets, **kind)
    twin: Any = peft.get_peft_model(plain, config)
    state = {f"base_model.model.{name}": p for name, p in adapters(model).items()}
    found = peft.set_peft_model_state_dict(twin, state)
    assert not found.unexpected_keys
    return twin


def adapters(model: CausalLM) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_gradients_and_names_equal_peft(family: str, kind: dict[str, bool]) -> None:
    model = adapted(family, **kind)
    twin = peft_twin(model, family, **kind)
    # The outputs are normalized, so that gradients by a row's norm are small sums of large terms.
    model, twin = model.double(), twin.double()
    tokens, positions = rows()
    ours, theirs = model(tokens, positions), twin(tokens, positions)
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()
    ours.square().sum().backward()
    theirs.square().sum().backward()
    wanted = {
        name.replace(".default", "").replace("vector.weight", "vector"): p.grad
        for name, p in twin.named_parameters()
        if p.requires_grad
    }
    assert {f"base_model.model.{name}" for name in adapters(model)} == set(wanted)
    for name, parameter in adapters(model).items():
        reference = wanted[f"base_model.model.{name}"]
        assert (parameter.grad - reference).abs().max() <= 1e-6 * reference.abs().max(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_only_adapters_train_and_a_fresh_one_changes_nothing(family: str) -> None:
    model = tiny_model(family)
    plain = copy.deepcopy(model)
    names = add_lora(model, rank=3, alpha=6.0, targets=TARGETS[family])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"{name}.lora_{side}.weight" for name in names for side in "AB"
    }
    assert {n for n, _ in plain.named_parameters()} == {
        n for n, p in model.named_parameters() if not p.requires_grad
    }
    tokens, positions = rows()
    assert torch.equal(model(tokens, positions), plain(tokens, positions))


def test_a_is_drawn_as_peft_draws_it() -> None:
    base = nn.Linear(300, 200, bias=False)
    torch.manual_seed(3)
    ours = LoRALinear(base, rank=8, alpha=8.0).lora_A.weight
    torch.manual_seed(3)
    config = peft.LoraConfig(r=8, target_modules=["0"])
    twin: Any = peft.get_peft_model(nn.Sequential(base), config)  # type: ignore[arg-type]
    theirs = twin.base_model.model[0].lora_A["default"].weight
    bound = 1 / 300**0.5  # sqrt(6 / ((1 + 5) × inputs))
    for drawn in (ours, theirs):
        assert 0.98 * bound < drawn.abs().max() <= bound
        assert abs(float(drawn.detach().std()) / (bound / 3**0.5) - 1) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_keeps_the_outputs_and_the_names(family: str) -> None:
    model = adapted(family).eval()
    twin = peft_twin(model, family).merge_and_unload()
    tokens, positions = rows()
    before = model(tokens, positions)
    merge(model)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    assert torch.allclose(model(tokens, positions), before, atol=1e-5)
    reference = dict(twin.named_parameters())
    for name, weight in model.named_parameters():
        assert torch.allclose(weight, reference[name], atol=1e-6), name


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_from_the_cache_sees_the_adapters(family: str) -> None:
    model = adapted(family).eval()
    tokens, positions = rows(batch=2, time=9)
    with torch.no_grad():
        full = model(tokens, positions)
        cache = ContiguousCache(model.cache_shapes(), batch=2, length=9)
        for t in range(9):
            now = slice(t, t + 1)
            step = model(tokens[:, now], positions[:, now], cache)
            assert torch.allclose(step, full[:, now], atol=1e-4)


def test_adapters_stay_float32_on_a_bf16_base() -> None:
    model = adapted("llama3", torch.bfloat16)
    assert {p.dtype for p in adapters(model).values()} == {torch.float32}
    tokens, positions = rows()
    model(tokens, positions).float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapters(model).values())
    merge(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_wrong_requests_are_one_line() -> None:
    model = tiny_model("llama3")
    with pytest.raises(UserError, match="'q_prj' is unknown; did you mean 'q_proj'"):
        add_lora(model, 4, 4.0, ["q_prj"])
    with pytest.raises(UserError, match=r"lora\.rank: 0 is not allowed"):
        add_lora(model, 0, 4.0, ["q_proj"])
    with pytest.raises(UserError, match="lm_head"):
        add_lora(model, 4, 4.0, ["lm_head"])
    assert all(p.requires_grad for p in model.parameters())
