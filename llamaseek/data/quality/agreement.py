"""How well the classifier agrees with the judge, on graded documents it was not trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
    said = np.clip(np.rint(scored), 0, best).astype(int)
    confusion = np.zeros((best + 1, best + 1), dtype=int)
    np.add.at(confusion, (judged, said), 1)
    wanted, kept = judged >= at_least, scored >= at_least
    both = float((wanted & kept).sum())
    precision, recall = both / max(int(kept.sum()), 1), both / max(int(wanted.sum()), 1)
    varied = judged.std() > 0 and scored.std() > 0
    return Agreement(
        documents=len(grades),
        exact=float((said == judged).mean()),
        within_one=float((abs(said - judged) <= 1).mean()),
        majority=Counter(judged.tolist()).most_common(1)[0][1] / len(grades),
        correlation=float(np.corrcoef(judged, scored)[0, 1]) if varied else 0.0,
        f1=2 * precision * recall / max(precision + recall, 1e-12),
        precision=precision,
        recall=recall,
        confusion=confusion.tolist(),
    )
