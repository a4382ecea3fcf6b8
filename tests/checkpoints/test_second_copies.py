"""Tensors that a folder holds twice: equal ones are read once, others are kept or named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamaseek.checkpoints.convert import Conversion, read_any
from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.checkpoints.quantize import Quantization
from llamaseek.errors import UserError
from llamaseek.herd.folder import read_config
from tests.models.shapes import rows, tiny_model
from tests.models.test_parity import relative

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def folder(path: Path, family: str, extra: Any, **changes: Any) -> Path:
    """A saved model, its tensors with `extra` of them added."""
    save_model(tiny_model(family, **changes), path)
    tensors = load_file(path / "model.safetensors")
    save_file({**tensors, **extra(tensors)}, path / "model.safetensors")
    return path


def logits(path: Path) -> Tensor:
    model = load_model(path).eval()
    tokens, positions = rows()
    with torch.no_grad():
        return model.logits(model(tokens, positions))


def trained(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {HEAD: tensors[EMBEDDING] + 0.1 * torch.randn_like(tensors[EMBEDDING])}


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A tied config whose head was trained apart."""
    return folder(tmp_path / "other", "llama3", trained, tie_word_embeddings=True)


def untied_logits(path: Path, target: Path) -> Tensor:
    """Logits of the same tensors where the config says what they are."""
    target.mkdir()
    data = json.loads((path / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**data, "tie_word_embeddings": False}))
    (target / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    return logits(target)


def test_an_equal_head_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    same = folder(
        tmp_path / "same",
        "llama3",
        lambda t: {HEAD: t[EMBEDDING].clone()},
        tie_word_embeddings=True,
    )
    assert read_config(same).tie_word_embeddings
    model = load_model(same)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert HEAD not in read_any(same)[1] and not caplog.records


def test_a_trained_head_is_kept(
    other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = logits(other)
        assert not read_config(other).tie_word_embeddings
    assert len(caplog.records) == 1 and "both are kept, untied" in caplog.text
    wanted = untied_logits(other, tmp_path / "untied")
    assert torch.equal(found, wanted)
    plain = folder(tmp_path / "plain", "llama3", lambda t: {}, tie_word_embeddings=True)
    assert relative(logits(plain), wanted) > 1e-2


def test_a_trained_head_is_converted(other: Path, tmp_path: Path) -> None:
    wanted = logits(other)
    Conversion(other, tmp_path / "new").run()
    data = json.loads((tmp_path / "new" / "config.json").read_text())
    assert data["tie_word_embeddings"] is False
    assert torch.equal(logits(tmp_path / "new"), wanted)
    Quantization(other, tmp_path / "int8", "8").run()
    assert not read_config(tmp_path / "int8").tie_word_embeddings
    assert relative(logits(tmp_path / "int8"), wanted) < 0.1


@pytest.mark.parametrize("name", ["embed_tokens", "shared_head.head"])
def test_shared_parts_of_a_multi_token_module(name: str, tmp_path: Path) -> None:
    shared = EMBEDDING if name == "embed_tokens" else HEAD
    copy = f"model.layers.3.{name}.weight"
    same = folder(
        tmp_path / "same", "deepseek_v3", lambda t: {copy: t[shared].clone()},
        num_nextn_predict_layers=1,
    )  # fmt: skip
    assert copy not in read_any(same)[1]
    changed = folder(
        tmp_path / "changed", "deepseek_v3", lambda t: {copy: t[shared] + 1},
        num_nextn_predict_layers=1,
    )  # fmt: skip
    with pytest.raises(UserError, match=f"{copy} differs from {shared}"):
        load_model(changed)
