"""A small model that grades as a judge does: a linear regression on hashed words and word pairs.

Llama 3 trains DistilRoBERTa on a judge's grades (§3.1.1), FineWeb-Edu a linear head on embeddings,
DCLM fastText. Hashed n-grams are fastText's features (Joulin et al. 2016); they need no download,
and score some megabytes a second on every core.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamaseek.data.clean.stage import CleaningStage, Reason, below
from llamaseek.data.documents import Document
from llamaseek.errors import UserError

BITS = 18
"""2^18 weights: 1 MB."""

LONGEST = 20_000
"""Characters of a document that are looked at."""

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Classifier:
    """`weights` (2^BITS) and an intercept; a score is a grade or between grades, or beyond them."""

    weights: Scores
    intercept: float
    best: int

    def scores(self, texts: Sequence[str]) -> Scores:
        """The score of each text."""
        found = features().transform([text[:LONGEST] for text in texts]) @ self.weights
        return (found + self.intercept).astype(np.float32)  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        """Write weights.safetensors and classifier.json."""
        from safetensors.numpy import save_file

        save_file({"weights": self.weights}, folder / "weights.safetensors")
        settings = {"intercept": self.intercept, "best": self.best, "bits": BITS}
        (folder / "classifier.json").write_text(json.dumps(settings) + "\n")


def train_classifier(
    texts: Sequence[str], grades: Sequence[float], best: int, alpha: float = 1.0
) -> Classifier:
    """Least squares with an L2 penalty `alpha`; the same grades always give the same weights."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=alpha, solver="lsqr", tol=1e-6)
    model.fit(features().transform([text[:LONGEST] for text in texts]), np.array(grades))
    return Classifier(model.coef_.astype(np.float32), float(model.intercept_), best)


@cache
def load_classifier(folder: str) -> Classifier:
    """The classifier of a folder, read once per process; UserError if there is none."""
    from safetensors.numpy import load_file

    try:
        settings = json.loads((Path(folder) / "classifier.json").read_text())
        weights = load_file(Path(folder) / "weights.safetensors")["weights"]
        return Classifier(weights, float(settings["intercept"]), int(settings["best"]))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: holds no quality classifier ({error})") from None


@cache
def features() -> Any:
    """Counts of words and word pairs, hashed and scaled to length one."""
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError:
        raise UserError("quality needs scikit-learn: pip install 'llamaseek[data]'") from None
    return HashingVectorizer(
        n_features=1 << BITS, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", dtype=np.float32
    )


@dataclass(frozen=True)
class Agreement:
    """Shares of the held-out documents; `f1` and what follows are about what would be kept.

    `exact` counts rounded scores that equal the grade, `majority` what always saying the most
    frequent grade would reach. `confusion[grade][said]` are counts.
    """

    documents: int
    exact: float
    within_one: float
    majority: float
    correlation: float
    f1: float
    precision: float
    recall: float
    confusion: list[list[int]]


def agreement(
    grades: Sequence[int], scores: Sequence[float], at_least: float, best: int
) -> Agreement:
    """The judge's grades beside the classifier's scores of the same documents."""
    judged, scored = np.array(grades), np.array(scores, dtype=np.float64)
    predicted = np.clip(np.rint(scored), 0, best).astype(int)
    confusion = np.zeros((best + 1, best + 1), dtype=int)
    np.add.at(confusion, (judged, predicted), 1)
    wanted, kept = judged >= at_least, scored >= at_least
    both = float((wanted & kept).sum())
    precision, recall = both / max(int(kept.sum()), 1), both / max(int(wanted.sum()), 1)
    varied = judged.std() > 0 and scored.std() > 0
    return Agreement(
        documents=len(grades),
        exact=float((predicted == judged).mean()),
        within_one=float((abs(predicted - judged) <= 1).mean()),
        majority=Counter(judged.tolist()).most_common(1)[0][1] / len(grades),
        correlation=float(np.corrcoef(judged, scored)[0, 1]) if varied else 0.0,
        f1=2 * precision * recall / max(precision + recall, 1e-12),
        precision=precision,
        recall=recall,
        confusion=confusion.tolist(),
    )


class Quality(CleaningStage):
    """Drops documents that score less than `at_least`; the others get `quality` as metadata."""

    classifier: str  # a folder that `data judge` made
    at_least: float

    def __call__(self, document: Document) -> Document | Reason:
        score = round(float(load_classifier(self.classifier).scores([document.text])[0]), 3)
        marked = replace(document, metadata=document.metadata | {"quality": score})
        return below("quality", score, self.at_least) or marked
