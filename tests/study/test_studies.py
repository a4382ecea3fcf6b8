"""The studies end to end at smoke size, and the arithmetic behind their sentences."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
import torch

from llamaseek.data.builtin.reviews import EMOTIONS, review_item
from llamaseek.study import size as size_study
from llamaseek.study import start as start_study
from llamaseek.study.answer import STUDIES, answer
from llamaseek.study.corpus import make_corpus
from llamaseek.study.data_scaling import log_line
from llamaseek.study.mix import MIXES, blend, split_sources
from llamaseek.study.runs import Settings, held_out_loss, steps_for, trained


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all of them, so that two share the models of the stages."""
    return tmp_path_factory.mktemp("studies")


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_leaves_figures_and_a_plot(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_study, "REVIEWS", (8, 16))
    monkeypatch.setattr(size_study, "SHARES", (Fraction(1, 16), Fraction(1, 4)))
    settings = Settings(home / f"study-{name}", (0,), smoke=True, items=4)
    figures = answer(name, settings)
    assert json.loads((settings.folder / "figures.json").read_text()) == figures
    assert (settings.folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert figures["rows"] and figures["says"]
    if name == "parallelism":
        assert all(abs(row["ratio"] - 1) < 0.1 for row in figures["rows"])


def test_a_line_is_found_and_its_fit_told() -> None:
    tokens = [1000, 2000, 4000, 8000]
    exact = [9 - 0.5 * math.log(count) for count in tokens]
    slope, start, fit = log_line(tokens, exact)
    assert slope == pytest.approx(-0.5) and start == pytest.approx(9) and fit == pytest.approx(1)
    _, _, worse = log_line(tokens, [4.0, 6.0, 4.0, 6.0])
    assert worse < 0.5


def test_shares_are_nested_and_hold_the_tokens_asked_for(tmp_path: Path) -> None:
    corpus = make_corpus(Settings(tmp_path, (0,), smoke=True))
    total, before = sum(corpus.tokens), ""
    for share in (Fraction(1, 8), Fraction(1, 2), Fraction(1)):
        path, tokens = corpus.share(share)
        assert abs(tokens - share * total) <= max(corpus.tokens)
        assert path.read_text().startswith(before)
        before = path.read_text()


def test_held_out_documents_of_a_mix_are_never_trained_on() -> None:
    kept, held_out = split_sources(100_000)
    for name, texts in held_out.items():
        assert texts and not set(texts) & set(kept[name])
    for weights in MIXES.values():
        assert math.isclose(sum(weights.values()), 1)
        size = sum(len(text.encode()) for text in blend(kept, weights, 100_000))
        assert 100_000 <= size < 120_000


def test_a_run_is_not_trained_twice(tmp_path: Path) -> None:
    settings = Settings(tmp_path, (0,), smoke=True)
    corpus = make_corpus(settings)
    overrides, _ = corpus.overrides(Fraction(1, 4))
    recipe = settings.recipe("study", "run", *overrides)
    model = trained(recipe)
    stamp = (model / "model.safetensors").stat().st_mtime_ns
    assert trained(recipe) == model
    assert (model / "model.safetensors").stat().st_mtime_ns == stamp
    loss = held_out_loss(model, corpus.held_out, recipe)
    assert torch.isfinite(torch.tensor(loss))
    assert steps_for(10 * recipe.train.batch * recipe.data.length + 5, recipe) == 10


def test_reviews_are_apart_and_every_emotion_occurs() -> None:
    rng = Random(0)
    train = {review_item(rng, "train").input for _ in range(400)}
    test = [review_item(rng, "test") for _ in range(200)]
    assert not train & {item.input for item in test}
    assert {item.output for item in test} == set(EMOTIONS)
