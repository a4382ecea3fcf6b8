"""Which evaluation of a run had the lowest held-out loss, and how long ago that was.

A model overfits few rows within a few epochs: held-out loss falls, then rises. A run that keeps
the weights of its lowest held-out loss (`train.load_best_model_at_end`) is not hurt by that, and
one with `train.early_stopping_patience` does not wait for it (Prechelt 1998, "Early Stopping, But
When?").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llamaseek.errors import UserError
from llamaseek.recipe.schema import TrainRecipe

RESTORED = "restored_step"
"""In a line of metrics: the step whose weights the run ended with."""


@dataclass
class BestEvaluation:
    """The lowest `val_loss` after training began, its step, and the evaluations since."""

    step: int | None = None
    loss: float = math.inf
    since: int = 0

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> BestEvaluation:
        """The same from the lines of metrics that a resumed run finds."""
        best = cls()
        for line in lines:
            if line["step"] and "val_loss" in line and RESTORED not in line:
                best.saw(line["step"], line["val_loss"])
        return best

    def saw(self, step: int, loss: float) -> bool:
        """Whether an evaluation is the best one so far."""
        better = loss < self.loss
        self.since = 0 if better else self.since + 1
        if better:
            self.step, self.loss = step, loss
        return better

    def should_stop(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row were not better."""
        return patience is not None and self.since >= patience


def check_can_choose(recipe: TrainRecipe, has_held_out: bool) -> None:
    """Raise UserError where evaluations have no held-out loss to choose by."""
    asked = {
        "load_best_model_at_end": recipe.load_best_model_at_end,
        "early_stopping_patience": recipe.early_stopping_patience,
    }
    for name, value in asked.items():
        if value and not has_held_out:
            raise UserError(f"train.{name}: the run has no held-out loss; give data.holdout")
