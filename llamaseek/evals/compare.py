"""Answers held against the ones that were wanted: figures of a model before and after a run.

What is measured goes by what was wanted: labels (accuracy, macro F1), answers of a few words (exact
match and token F1, as SQuAD counts them, Rajpurkar et al. 2016), or longer texts (ROUGE-L by the
package rouge-score, Lin 2004).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from statistics import median
from typing import Any

SHORT = 8  # words of an answer up to which its wording can be expected to be met
JUDGED = "judged.jsonl"
"""In a run folder: for each held-out row `win`, from 0 to 1, of the answer after the run."""

OTHER = "(none of them)"
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Measure:
    """One figure before and after a run, and what it says in a sentence. `before` is None where it
    compares with the start of the run.
    """

    name: str
    before: float | None
    after: float
    meaning: str
    share: bool = True  # from 0 to 1, and more is better
    unit: str = ""


@dataclass(frozen=True)
class Confusion:
    """Of labels: `counts[i][j]` rows of label i were answered with label j, the last j none."""

    labels: list[str]
    counts: list[list[int]]


Answers = Sequence[Mapping[str, Any]]
"""Lines with `wanted` and `answer`."""


def measures(before: Answers, after: Answers, labels: Sequence[str] = ()) -> list[Measure]:
    """The figures that fit the wanted answers; none where there are no answers."""
    if not before or len(before) != len(after):
        return []
    if labels:
        return [
            Measure("accuracy", accuracy(before, labels), accuracy(after, labels),
                    "The share of held-out texts that are given their own label."),
            Measure("macro F1", macro_f1(before, labels), macro_f1(after, labels),
                    "The F1 score of each label, averaged so that rare labels count as much."),
        ]  # fmt: skip
    if median(len(str(one["wanted"]).split()) for one in after) <= SHORT:
        return [
            Measure("exact match", *_means(exact_match, before, after),
                    "The share of held-out answers that are right to the word."),
            Measure("token F1", *_means(token_f1, before, after),
                    "How many words an answer and the wanted one have in common, from 0 to 1."),
        ]  # fmt: skip
    if find_spec("rouge_score") is None:
        return []
    return [
        Measure("ROUGE-L", *_means(rouge_l, before, after),
                "The longest sequence of words that an answer and the wanted one share, from 0 "
                "to 1.")
    ]  # fmt: skip


def _means(score: Any, before: Answers, after: Answers) -> tuple[float, float]:
    first, last = (
        sum(score(str(one["answer"]), str(one["wanted"])) for one in lines) / len(lines)
        for lines in (before, after)
    )
    return first, last


def answered_label(answer: str, labels: Sequence[str]) -> str:
    """The label that an answer gives: the one it is, or the first one in it; else `OTHER`."""
    text = plain(answer)
    places = []
    for label in labels:
        if text == plain(label):
            return label
        found = re.search(rf"\b{re.escape(plain(label))}\b", text)
        if found is not None:
            places.append((found.start(), -len(label), label))
    return min(places)[2] if places else OTHER


def confusion(lines: Answers, labels: Sequence[str]) -> Confusion:
    """How often each label was answered with each."""
    pairs = Counter((str(one["wanted"]), answered_label(str(one["answer"]), labels))
                    for one in lines)  # fmt: skip
    return Confusion(list(labels), [[pairs[a, b] for b in (*labels, OTHER)] for a in labels])


def accuracy(lines: Answers, labels: Sequence[str]) -> float:
    """The share of lines whose answer is the wanted label."""
    right = [str(one["wanted"]) == answered_label(str(one["answer"]), labels) for one in lines]
    return sum(right) / len(right)


def macro_f1(lines: Answers, labels: Sequence[str]) -> float:
    """The mean of F1 over the labels that are wanted or answered, as scikit-learn takes it."""
    counts, scores = confusion(lines, labels).counts, []
    for i in range(len(labels)):
        wanted, given = sum(counts[i]), sum(row[i] for row in counts)
        if wanted + given:
            scores.append(2 * counts[i][i] / (wanted + given))
    return sum(scores) / len(scores) if scores else 0.0


def plain(text: str) -> str:
    """Lower case, without punctuation, articles and blanks, as SQuAD compares answers."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, wanted: str) -> float:
    """1 for the same text, but for case, punctuation and articles."""
    return float(plain(answer) == plain(wanted))


def token_f1(answer: str, wanted: str) -> float:
    """F1 of the words that both have."""
    given, right = plain(answer).split(), plain(wanted).split()
    if not given or not right:
        return float(given == right)
    common = (Counter(given) & Counter(right)).total()
    return 2 * common / (len(given) + len(right))


def rouge_l(answer: str, wanted: str) -> float:
    """ROUGE-L's F measure, words stemmed."""
    found: float = _rouge().score(wanted, answer)["rougeL"].fmeasure
    return found


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
