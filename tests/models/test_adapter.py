"""LoRA folders: trained by peft and read here, and back; merged while converting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from llamaseek.checkpoints.convert import Conversion
from llamaseek.checkpoints.hf import load_model
from llamaseek.checkpoints.peft import read_adapter, save_adapter
from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from llamaseek.models.lora import LoRALinear, add_lora
from llamaseek.models.score import reward_model
from tests.models.shapes import reference_model, rows, tiny_config

TARGETS = {
    "llama3": ["q_proj", "v_proj", "down_proj"],
    "deepseek_v3": ["q_a_proj", "kv_b_proj", "o_proj"],
}


def reference(family: str, folder: Path) -> Any:
    changes = {"q_lora_rank": 8} if family == "deepseek_v3" else {}
    model = reference_model(tiny_config(family, **changes))
    model.save_pretrained(folder)
    return model


def logits(model: CausalLM) -> Tensor:
    tokens, positions = rows()
    with torch.no_grad():
        return model.eval().logits(model(tokens, positions))


def trained(model: Any, family: str, rslora: bool = False) -> Any:
    """A peft model after two real steps."""
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=TARGETS[family], use_rslora=rslora, task_type="CAUSAL_LM"
    )
    torch.manual_seed(5)
    adapted = peft.get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=0.05)
    tokens, _ = rows()
    for _ in range(2):
        adapted(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted.eval()


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("rslora", [False, True])
def test_a_peft_adapter_gives_the_same_logits(family: str, rslora: bool, tmp_path: Path) -> None:
    adapted = trained(reference(family, tmp_path / "base"), family, rslora)
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        theirs = adapted(rows()[0]).logits
    plain = load_model(tmp_path / "base")
    before = logits(plain)
    merged = load_model(tmp_path / "base", adapter=tmp_path / "adapter")
    assert float((logits(merged) - theirs).abs().max() / theirs.abs().max()) < 1e-5
    assert float((before - theirs).abs().max() / theirs.abs().max()) > 1e-2
    Conversion(tmp_path / "base", tmp_path / "merged", None, tmp_path / "adapter").run()
    folded = logits(load_model(tmp_path / "merged"))
    assert float((folded - theirs).abs().max() / theirs.abs().max()) < 1e-5


@pytest.mark.parametrize("kind", [{}, {"use_dora": True, "use_rslora": True}])
@pytest.mark.parametrize("family", TARGETS)
def test_our_adapter_gives_peft_the_same_logits(
    family: str, kind: dict[str, bool], tmp_path: Path
) -> None:
    base = reference(family, tmp_path / "base")
    model = load_model(tmp_path / "base")
    add_lora(model, 4, 8.0, TARGETS[family], **kind)
    torch.manual_seed(7)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.lora_B.weight, std=0.1)
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = adapted(rows()[0]).logits
    assert float((logits(model) - theirs).abs().max() / theirs.abs().max()) < 1e-5
    for layer, (a, b) in read_adapter(tmp_path / "adapter").pairs.items():
        adapted_layer = model.get_submodule(layer)
        assert torch.equal(a, adapted_layer.lora_A.weight)
        assert torch.equal(b, adapted_layer.lora_B.weight)


def test_the_adapter_of_a_reward_model_brings_its_score(tmp_path: Path) -> None:
    reference("llama3", tmp_path / "base")
    model = load_model(tmp_path / "base")
    add_lora(model, 4, 8.0, TARGETS["llama3"])
    torch.manual_seed(7)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.lora_B.weight, std=0.1)
    scorer = reward_model(model).eval()
    save_adapter(scorer, tmp_path / "adapter", base=str(tmp_path / "base"))
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=1, pad_token_id=0
    )
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens, positions = rows()
    tokens = tokens.clamp(min=1)  # 0 pads, and transformers reads a score before it
    with torch.no_grad():
        theirs = adapted(tokens).logits[:, 0]
        ours = scorer.score(scorer(tokens, positions))[:, -1]
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


def test_what_is_not_plain_lora_is_refused(tmp_path: Path) -> None:
    adapted = trained(reference("llama3", tmp_path / "base"), "llama3")
    adapted.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    good = path.read_text()
    for wrong, message in (
        (good.replace('"LORA"', '"IA3"'), "peft_type: 'IA3'"),
        (good.replace('"use_dora": false', '"use_dora": true'), "lora_magnitude_vector"),
        (good.replace('"r": 4', '"r": 0'), "r: 0 is not allowed"),
        (good.replace('"r": 4', '"r": 2'), "rank other than the 2"),
        ("{", "is not JSON"),
    ):
        path.write_text(wrong)
        with pytest.raises(UserError, match=message):
            read_adapter(tmp_path / "adapter")


def test_an_adapter_for_another_model(tmp_path: Path) -> None:
    trained(reference("deepseek_v3", tmp_path / "d"), "deepseek_v3").save_pretrained(tmp_path / "a")
    reference("llama3", tmp_path / "l")
    with pytest.raises(UserError, match="which the model does not have"):
        load_model(tmp_path / "l", adapter=tmp_path / "a")
    with pytest.raises(UserError, match="which the model does not have"):
        Conversion(tmp_path / "l", tmp_path / "out", None, tmp_path / "a")
    assert not (tmp_path / "out").exists()
