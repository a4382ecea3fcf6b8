"""Adapters of every kind that peft makes: loaded, served and merged, the same logits as peft's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from llamaseek.checkpoints.adapter_config import USED, VALUES, WITHOUT_EFFECT, read_adapter_config
from llamaseek.checkpoints.convert import Conversion
from llamaseek.checkpoints.hf import load_model
from llamaseek.checkpoints.peft import read_adapter
from llamaseek.engine.adapters import Adapters
from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from tests.models.shapes import reference_model, rows, tiny_config
from tests.models.test_parity import relative

TARGETS = {
    "llama3": ["q_proj", "v_proj", "down_proj"],
    "deepseek_v3": ["q_a_proj", "kv_a_proj_with_mqa", "o_proj"],
}
SERVED: dict[str, dict[str, Any]] = {
    "plain": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rank_pattern": {"rank_pattern": {"o_proj": 2, "layers.1.self_attn.v_proj": 3}},
    "alpha_pattern": {"alpha_pattern": {r"layers\.[01]\..*proj": 3, "q_proj": 1}},
    "all of these": {
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"^model.layers.1.self_attn.*": 2},
        "alpha_pattern": {"o_proj": 3, "down_proj": 20},
    },
}
MERGED: dict[str, dict[str, Any]] = {
    "embedding and head": {"target": ["embed_tokens", "lm_head"]},
    "embedding": {"target": ["embed_tokens"], "use_rslora": True},
    "head": {"target": ["lm_head"], "use_dora": True},
    "both saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding saved": {"modules_to_save": ["embed_tokens"]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "norms saved": {"modules_to_save": ["norm"], "use_dora": True},
    "tokens": {"trainable_token_indices": [3, 90, 7]},
    "tokens by module": {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [4]}},
}


def trained(family: str, folder: Path, tied: bool = False, **kind: Any) -> tuple[Any, Tensor]:
    """A base and an adapter in folders, the adapter's numbers moved, and peft's logits."""
    changes = {"q_lora_rank": 8} if family == "deepseek_v3" else {}
    base = reference_model(tiny_config(family, tie_word_embeddings=tied, **changes))
    base.save_pretrained(folder / "base")
    targets = TARGETS[family] + kind.pop("target", [])
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", **kind
    )
    adapted = peft.get_peft_model(base, config).eval()
    adapted.save_pretrained(folder / "initial")
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
        return adapted, adapted(rows()[0]).logits


def logits(model: CausalLM) -> Tensor:
    tokens, positions = rows()
    with torch.no_grad():
        return model.eval().logits(model(tokens, positions))


def check(folder: Path, theirs: Tensor, served: bool) -> None:
    """Base and adapter of a folder by each way of use."""
    base, adapter = folder / "base", folder / "adapter"
    plain = load_model(base)
    assert relative(logits(plain), theirs) > 1e-2
    assert relative(logits(load_model(base, adapter=adapter)), theirs) < 1e-5
    Conversion(base, folder / "merged", None, adapter).run()
    assert relative(logits(load_model(folder / "merged")), theirs) < 1e-5
    if not served:
        with pytest.raises(UserError, match="adapter a: adapts .*llamaseek convert --adapter"):
            Adapters(plain, {"a": read_adapter(adapter)})
        return
    both = Adapters(plain, {name: read_adapter(adapter) for name in ("a", "b")})
    both.rows = {"b": slice(None)}
    assert relative(logits(plain), theirs) < 1e-5


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("kind", SERVED)
def test_adapters_of_layers(family: str, kind: str, tmp_path: Path) -> None:
    adapted, theirs = trained(family, tmp_path, **SERVED[kind])
    adapted.save_pretrained(tmp_path / "adapter")
    check(tmp_path, theirs, served=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("kind", MERGED)
def test_adapters_beyond_layers(family: str, kind: str, tied: bool, tmp_path: Path) -> None:
    adapted, theirs = trained(family, tmp_path, tied, **MERGED[kind])
    adapted.save_pretrained(tmp_path / "adapter")
    check(tmp_path, theirs, served=False)


@pytest.mark.parametrize("initial", ["pissa", "pissa_niter_4", "olora"])
def test_a_changed_base_is_understood_once_converted(initial: str, tmp_path: Path) -> None:
    adapted, theirs = trained("llama3", tmp_path, init_lora_weights=initial)
    adapted.save_pretrained(tmp_path / "unconverted")
    with pytest.raises(UserError, match=f"init_lora_weights: '{initial}' changes the base"):
        read_adapter(tmp_path / "unconverted")
    adapted.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=tmp_path / "initial"
    )
    check(tmp_path, theirs, served=True)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    trained("llama3", folder)[0].save_pretrained(folder / "adapter")
    return folder / "adapter"


def config(adapter: Path, folder: Path, **changes: Any) -> Path:
    """The folder with an adapter's config, some of its keys changed."""
    data = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**data, **changes}))
    return folder


def test_every_key_of_peft_is_known(adapter: Path, tmp_path: Path) -> None:
    known = {*USED, *WITHOUT_EFFECT, *VALUES}
    data = peft.LoraConfig(target_modules=["q_proj"]).to_dict()
    for key in set(data) - known:
        assert not data[key], key  # may be empty, and nothing else
        with pytest.raises(UserError, match=f"{key}: "):
            read_adapter_config(config(adapter, tmp_path, **{key: [1]}))
    for key in VALUES:
        with pytest.raises(UserError, match=f"{key}: 'other' is not allowed"):
            read_adapter_config(config(adapter, tmp_path, **{key: "other"}))
    with pytest.raises(UserError, match="use_magic: True is not allowed"):
        read_adapter_config(config(adapter, tmp_path, use_magic=True))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *[({"init_lora_weights": kind}, f"init_lora_weights: '{kind}'")
          for kind in ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")],
        ({"init_lora_weights": None}, "init_lora_weights: None"),
        ({"r": 4.5}, "r: 4.5"),
        ({"r": True}, "r: True"),
        ({"lora_alpha": "6"}, "lora_alpha: '6'"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern: "),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj: 0"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern.q_proj: None"),
        ({"alpha_pattern": {"(a*)*b": 3}}, "alpha_pattern: "),
        ({"alpha_pattern": {".*.*.*x": 3}}, "alpha_pattern: "),
        ({"alpha_pattern": {"q_proj[": 3}}, "is no pattern"),
        ({"trainable_token_indices": [1.5]}, "trainable_token_indices: "),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(
    changes: dict[str, Any], named: str, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        read_adapter_config(config(adapter, tmp_path, **changes))
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_eva_leaves_the_base_as_it_is(adapter: Path, tmp_path: Path) -> None:
    changed = config(adapter, tmp_path, init_lora_weights="eva", eva_config={"rho": 2.0})
    assert read_adapter_config(changed).rank == 4
