"""Oracles through the whole code: right answers get 1, empty ones 0, guesses what chance gives."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from tests.evals.benchmarks import right_choice, write
from tests.evals.oracles import Oracle, asked, empty, gold, guessing

CHOICES = {
    "lm-eval:mmlu_anatomy": "acc",
    "gpqa": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc",
    "hellaswag": "acc",
    "piqa": "acc",
    "winogrande": "acc",
    "openbookqa": "acc",
    "commonsense_qa": "acc",
}
TEXTS = {
    "humaneval": "pass@1",
    "humaneval_llama": "pass@1",
    "mbpp": "pass@1",
    "gsm8k": "exact_match",
    "gsm8k_llama": "exact_match",
    "math500": "exact_match",
    "math_llama": "math_verify",
    "gpqa_llama": "exact_match",
    "gpqa_deepseek": "exact_match",
    "arc_challenge_llama": "exact_match",
    "ifeval": "prompt_level_strict_acc",
    "triviaqa": "exact_match",
    "lm-eval:bbh_cot_fewshot_boolean_expressions": "exact_match",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("benchmarks"))


def values(found: object, metric: str) -> list[float]:
    """All figures of a metric, over filters and tasks."""
    results = found.results["results"]  # type: ignore[attr-defined]
    return [
        value
        for figures in results.values()
        for key, value in figures.items()
        if key.split(",")[0] == metric
    ]


@pytest.mark.parametrize("task", [*CHOICES, *TEXTS])
def test_right_answers_get_one_and_empty_ones_nothing(data: Path, task: str) -> None:
    metric = CHOICES.get(task) or TEXTS[task]
    assert set(values(asked(gold(), data, task), metric)) == {1.0}
    assert set(values(asked(empty(), data, task), metric)) == {0.0}


def test_mathematics_is_judged_three_ways(data: Path) -> None:
    (figures,) = asked(gold(), data, "math500").results["results"].values()
    assert {figures[f"{m},none"] for m in ("exact_match", "math_verify", "hendrycks")} == {1.0}


def test_guesses_get_chance(tmp_path: Path) -> None:
    data = write(tmp_path, ("arc",), count=400)
    (value,) = values(asked(guessing(1), data, "arc_easy"), "acc")
    assert abs(value - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


def test_always_the_first_option_gets_its_share(data: Path) -> None:
    first = Oracle(lambda task, doc: 0, lambda task, doc: "")
    (value,) = values(asked(first, data, "arc_easy"), "acc")
    assert value == 0.25


def test_a_right_answer_in_the_wrong_form_counts_in_the_flexible_filter_alone(data: Path) -> None:
    loose = Oracle(right_choice, lambda task, doc: doc["answer"].split("#### ")[1] + " it is")
    (figures,) = asked(loose, data, "gsm8k").results["results"].values()
    assert figures["exact_match,strict-match"] == 0.0
    assert figures["exact_match,flexible-extract"] == 1.0
