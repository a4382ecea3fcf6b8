"""Learning-rate schedules: linear warm-up, then cosine, or stable and decay (WSD)."""

from __future__ import annotations

import math

from llamaseek.recipe import TrainRecipe


def learning_rate(recipe: TrainRecipe, step: int) -> float:
    """The rate of step `step` (from 0); the last step is at lr × min_lr."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.schedule == "cosine":
        start, share = recipe.warmup, cosine
    else:
        start, share = round(recipe.steps * (1 - recipe.decay)), linear
    done = (step - start) / max(recipe.steps - 1 - start, 1)
    low = recipe.min_lr
    return recipe.lr * (low + (1 - low) * share(min(max(done, 0.0), 1.0)))


def cosine(done: float) -> float:
    """1 at the start, 0 at the end, along half a cosine."""
    return (1 + math.cos(math.pi * done)) / 2


def linear(done: float) -> float:
    """1 at the start, 0 at the end."""
    return 1 - done
