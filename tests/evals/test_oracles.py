"""Oracles through the whole code: right answers get 1, empty ones 0, guesses what chance gives."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from llamaseek.evals.run import EvalOptions, make_plan
from tests.evals.benchmarks import (
    LANGUAGES,
    right_choice,
    right_text,
    write,
    write_core,
    write_groups,
)
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
    "tool_calls": "exact_match",
    "needle": "exact_match",
    "needles": "recall",
    "triviaqa": "exact_match",
    "lm-eval:bbh_cot_fewshot_boolean_expressions": "exact_match",
}


GROUPS = {
    "mmlu": "acc",
    "mmlu_cloze": "acc",
    "mmlu_llama": "exact_match",
    "mmlu_cot_llama": "exact_match",
    "mmlu_pro": "exact_match",
    "mmlu_pro_llama": "exact_match",
    "math": "exact_match",
    **{f"mmlu_{language}_llama": "exact_match" for language in LANGUAGES},
}
"""Benchmarks of many parts."""
ALIKE = [f"mmlu_{language}_llama" for language in LANGUAGES[1:]]
"""Those whose files differ from the first language's in their words alone."""


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("groups"))


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


@pytest.mark.parametrize("task", GROUPS)
def test_benchmarks_of_many_parts_get_one_and_nothing(groups: Path, task: str) -> None:
    right = asked(gold(), groups, task)
    assert set(values(right, GROUPS[task])) == {1.0}
    if task not in ALIKE:
        assert set(values(asked(empty(), groups, task), GROUPS[task])) == {0.0}
    parts = sum(len(rows) for rows in right.samples.values())
    assert parts == {"math": 7}.get(task, 14 if task.startswith("mmlu_pro") else 57)


def test_core_centres_its_tasks_and_names_the_missing_ones(tmp_path: Path) -> None:
    write_core(tmp_path)
    lines: list[str] = []
    make_plan(EvalOptions(tasks=["core"], data=[tmp_path]), False, lines.append)
    assert lines[1:] == [
        "core: options (3-shot), contexts (0-shot), texts (2-shot); without gone, whose files are "
        "not there"
    ]
    right = asked(gold(), tmp_path, "core").results["results"]
    assert right["core"]["centered,none"] == right["core"]["acc,none"] == 1.0
    found = asked(empty(), tmp_path, "core").results["results"]
    centred = {name: figures["centered,none"] for name, figures in found.items()}
    assert centred["core_options"] == pytest.approx(-0.25 / 0.75)
    assert centred["core_contexts"] == -1.0
    assert centred["core"] == pytest.approx((-0.25 / 0.75 - 1 + centred["core_texts"]) / 3)


def test_several_needles_are_counted_one_by_one(data: Path) -> None:
    half = Oracle(right_choice, lambda task, doc: "It is " + " and ".join(
        doc["target"].split(", ")[:2]))  # fmt: skip
    figures = asked(half, data, "needles", limit=3).results["results"]
    assert {figures[name]["recall,none"] for name in figures} == {0.5}
    assert {figures[name]["exact_match,none"] for name in figures} == {0.0}


WRONG_FORMS = {
    "needle": (lambda right: f"The code is {right}!", "exact_match", "recall"),
    "tool_calls": (lambda right: f"Sure:\n```json\n{right}\n```", "exact_match", "call_in_text"),
}


@pytest.mark.parametrize("task", WRONG_FORMS)
def test_a_right_answer_among_other_words_counts_in_the_flexible_figure_alone(
    data: Path, task: str
) -> None:
    form, strict, flexible = WRONG_FORMS[task]
    loose = Oracle(right_choice, lambda name, doc: form(right_text(name, doc)))
    found = asked(loose, data, task, limit=2)
    assert set(values(found, strict)) == {0.0} and set(values(found, flexible)) == {1.0}


def test_mathematics_is_judged_three_ways(data: Path) -> None:
    (figures,) = asked(gold(), data, "math500").results["results"].values()
    assert {figures[f"{m},none"] for m in ("exact_match", "math_verify", "hendrycks")} == {1.0}


def test_guesses_get_chance(tmp_path: Path) -> None:
    data = write(tmp_path, ("arc",), count=400)
    (value,) = values(asked(guessing(1), data, "arc_easy"), "acc")
    assert abs(value - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


def test_guessed_letters_get_chance_of_generated_answers(groups: Path) -> None:
    """Of two languages: 114 items with four options."""
    rng = Random(3)
    guess = Oracle(right_choice, lambda task, doc: f" {rng.choice('ABCD')}.")
    names = [f"mmlu_{language}_llama" for language in ("de", "th")]
    found = asked(guess, groups, *names).samples.values()
    right = [row["exact_match"] for rows in found for row in rows]
    assert abs(sum(right) / len(right) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 114)


def test_always_the_first_option_gets_its_share(data: Path) -> None:
    first = Oracle(lambda task, doc: 0, lambda task, doc: "")
    (value,) = values(asked(first, data, "arc_easy"), "acc")
    assert value == 0.25


def test_a_right_answer_in_the_wrong_form_counts_in_the_flexible_filter_alone(data: Path) -> None:
    loose = Oracle(right_choice, lambda task, doc: doc["answer"].split("#### ")[1] + " it is")
    (figures,) = asked(loose, data, "gsm8k").results["results"].values()
    assert figures["exact_match,strict-match"] == 0.0
    assert figures["exact_match,flexible-extract"] == 1.0
