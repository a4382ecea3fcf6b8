"""Figures of answers against scikit-learn, and SQuAD's own rules."""

from __future__ import annotations

from random import Random

import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from llamaseek.evals.compare import (
    OTHER,
    accuracy,
    answered_label,
    confusion,
    exact_match,
    macro_f1,
    measures,
    rouge_l,
    token_f1,
)

LABELS = ["billing", "login", "log", "shipping"]


def test_labels_are_counted_as_scikit_learn_does() -> None:
    rng = Random(4)
    wanted = [rng.choice(LABELS) for _ in range(200)]
    given = [w if rng.random() < 0.5 else rng.choice([*LABELS, OTHER]) for w in wanted]
    lines = [{"wanted": w, "answer": g} for w, g in zip(wanted, given, strict=True)]
    assert accuracy(lines, LABELS) == pytest.approx(accuracy_score(wanted, given))
    found = f1_score(wanted, given, labels=LABELS, average="macro")
    assert macro_f1(lines, LABELS) == pytest.approx(found)
    table = confusion_matrix(wanted, given, labels=[*LABELS, OTHER])
    assert confusion(lines, LABELS).counts == table[:-1].tolist()


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("billing", "billing"),
        (" Billing.\n", "billing"),
        ("The label is: login", "login"),
        ("login, not billing", "login"),
        ("catalog", OTHER),
        ("", OTHER),
    ],
)
def test_the_label_of_an_answer(answer: str, label: str) -> None:
    assert answered_label(answer, LABELS) == label


def test_short_answers_are_compared_as_squad_does() -> None:
    assert exact_match("The Eiffel Tower!", "eiffel tower") == 1
    assert exact_match("Eiffel", "eiffel tower") == 0
    assert token_f1("the big Eiffel", "Eiffel tower") == pytest.approx(0.5)
    assert token_f1("", "x") == 0


def test_longer_answers_are_compared_by_rouge_l() -> None:
    assert rouge_l("the cat sat on the mat", "the cat sat on the mat") == 1
    assert rouge_l("police kill the gunman", "police killed the gunman") == 1  # stemmed
    assert rouge_l("gunman the kill police", "police killed the gunman") == pytest.approx(0.25)


def test_what_is_measured_goes_by_what_was_wanted() -> None:
    def lines(wanted: str) -> list[dict[str, str]]:
        return [{"wanted": wanted, "answer": wanted}]

    def names(wanted: str, labels: list[str]) -> list[str]:
        return [one.name for one in measures(lines(wanted), lines(wanted), labels)]

    assert names("login", LABELS) == ["accuracy", "macro F1"]
    assert names("42", []) == ["exact match", "token F1"]
    assert names("word " * 30, []) == ["ROUGE-L"]
    assert measures([], [], []) == []
