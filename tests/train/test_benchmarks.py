"""`train.evaluate`: scores of benchmarks in the lines of metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

import llamaseek
from llamaseek.errors import UserError
from tests.evals.benchmarks import write
from tests.train.tiny import recipe as tiny_recipe


def test_scores_are_logged_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    data = write(tmp_path / "data", ("piqa",))
    asked = {"tasks": ["piqa"], "data": [str(data)], "every": 2, "limit": 4}
    recipe = tiny_recipe(tmp_path, train__steps=5, train__evaluate=asked)
    run = llamaseek.train(recipe)
    lines = [line for line in run.metrics if "eval/piqa/acc" in line]
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert all(0 <= line["eval/piqa/acc_norm"] <= 1 for line in lines)
    scores = llamaseek.evaluate(run.model(), "piqa", data=data, limit=4).results["results"]
    assert scores["piqa"]["acc,none"] == lines[-1]["eval/piqa/acc"]
    plain = llamaseek.train(tiny_recipe(tmp_path, out=str(tmp_path / "plain"), train__steps=5))
    losses = [[line["loss"] for line in each.metrics if "loss" in line] for each in (run, plain)]
    assert losses[0] == losses[1]  # the random states of training are its own


def test_tasks_that_cannot_be_had_are_refused_before_training(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, train__evaluate={"tasks": ["winogrand"]})
    with pytest.raises(UserError, match="winogrand"):
        llamaseek.train(recipe)
