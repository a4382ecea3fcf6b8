"""A small model that grades as a judge does: a linear regression on hashed words and word pairs.

Llama 3 trains DistilRoBERTa on a judge's grades (§3.1.1), FineWeb-Edu a linear head on embeddings,
DCLM fastText. Hashed n-grams are fastText's features (Joulin et al. 2016); they need no download,
and score some megabytes a second on every core.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """The classifier of a folder, read once a process; UserError where there is none."""
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
