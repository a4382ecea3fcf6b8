"""A longer context: the configs of the papers, and a tiny model taken from 32 to 128 tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from llamaseek.checkpoints.hf import load_model
from llamaseek.errors import UserError
from llamaseek.herd.configs import extended
from llamaseek.herd.folder import read_config
from llamaseek.herd.published import ENTRIES
from llamaseek.recipe.schema import Recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from tests.train.tiny import LLAMA_SIZES, recipe, stories

SHORT, LONG = 32, 128


def test_the_published_long_contexts_are_these() -> None:
    """Llama 3.1 from Llama 3, and both of DeepSeek-V3's stages."""
    known = ENTRIES["llama-3.1-8b"].config
    made = extended(ENTRIES["llama-3-8b"].config, 131072, "llama3", factor=8.0)
    assert made.rope_scaling == known.rope_scaling
    assert made.max_position_embeddings == known.max_position_embeddings
    released = ENTRIES["deepseek-v3"].config
    base = replace(released, rope_scaling=None, max_position_embeddings=4096)
    first = extended(base, 32768, "yarn", factor=40.0)
    second = extended(first, 163840, "yarn", factor=40.0)
    assert first.rope_scaling == second.rope_scaling == released.rope_scaling
    assert extended(base, 32768, "yarn").rope_scaling.factor == 8  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"model\.extend\.to: 4096"):
        extended(base, 4096, "yarn")


def stage(folder: Path, name: str, length: int, steps: int, **model: Any) -> Recipe:
    """A run at one length; every stage reads as many tokens a step."""
    return recipe(
        folder, out=str(folder / name), model=model, data__length=length, train__steps=steps,
        train__batch=16 * SHORT // length, train__lr=6e-3 if steps > 100 else 3e-3,
        train__eval_every=steps,
    )  # fmt: skip


def trained(made: Recipe) -> Path:
    train(build_job(made))
    return made.folder / "model"


def beyond(folder: Path) -> float:
    """Mean loss on stories at the places that only a long context has."""
    ids = [i for ids in Tokenizer.load(folder).encode_batch(stories()[-60:]) for i in ids]
    rows = torch.tensor(ids[: len(ids) // LONG * LONG]).view(-1, LONG)
    model = load_model(folder)
    with torch.no_grad():
        logits = model.logits(model(rows, torch.arange(LONG).expand_as(rows)))
    return float(cross_entropy(logits[:, SHORT:-1].transpose(1, 2), rows[:, SHORT + 1 :]))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 32 tokens' context."""
    sizes = {**LLAMA_SIZES, "max_position_embeddings": SHORT}
    folder = tmp_path_factory.mktemp("short")
    return trained(stage(folder, "first", SHORT, 200, family="llama3", config=sizes))


@pytest.fixture(scope="module")
def as_long(short: Path) -> float:
    """Its loss beyond that context after as much more training without an extension."""
    return beyond(trained(stage(short.parents[1], "control", SHORT, 40, init_from=str(short))))


@pytest.mark.parametrize("rope", ["yarn", "llama3"])
def test_an_extended_model_reads_beyond_its_old_context(
    rope: str, short: Path, as_long: float, tmp_path: Path
) -> None:
    extend = {"to": LONG, "rope": rope}
    grown = trained(stage(tmp_path, rope, LONG, 40, init_from=str(short), extend=extend))
    made = read_config(grown)
    assert made.max_position_embeddings == LONG
    assert made.rope_scaling is not None and made.rope_scaling.factor == LONG / SHORT
    assert beyond(grown) < as_long - 0.3


def test_a_row_longer_than_the_context_is_refused(short: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.length: 128"):
        build_job(stage(tmp_path, "no", LONG, 40, init_from=str(short)))
    with pytest.raises(UserError, match=r"model\.extend: needs model\.init_from"):
        sizes = {**LLAMA_SIZES, "max_position_embeddings": SHORT}
        build_job(stage(tmp_path, "no", SHORT, 4, config=sizes, extend={"to": LONG}))
