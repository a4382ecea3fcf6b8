"""Does more data lower the loss log-linearly? One model, shares of one corpus, each read once."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from llamaseek.study.corpus import make_corpus
from llamaseek.study.runs import (
    MAIN,
    SECOND,
    Finding,
    Settings,
    held_out_loss,
    panel,
    steps_for,
    trained,
)
from llamaseek.units import count

SHARES = tuple(Fraction(1, 2**power) for power in (4, 3, 2, 1, 0))


def data_scaling(settings: Settings) -> Finding:
    """Held-out loss after each share, and the line through loss against log tokens."""
    corpus = make_corpus(settings)
    rows: list[dict[str, Any]] = []
    for seed in settings.seeds:
        for share in SHARES:
            overrides, tokens = corpus.overrides(share)
            base = settings.recipe("study", "unused", *overrides)
            steps = steps_for(tokens, base)
            name = f"seed-{seed}/{share.numerator}-of-{share.denominator}"
            schedule = (f"train.steps={steps}", f"train.warmup={max(steps // 10, 1)}")
            recipe = settings.recipe("study", name, *overrides, f"seed={seed}", *schedule)
            loss = held_out_loss(trained(recipe), corpus.held_out, recipe)
            read = recipe.train.steps * recipe.train.batch * recipe.data.length
            rows.append({"seed": seed, "share": str(share), "tokens": read, "loss": loss})
    slope, start, fit = log_line([r["tokens"] for r in rows], [r["loss"] for r in rows])
    says = (
        f"each doubling of the data changes the held-out loss by {slope * np.log(2):+.3f} nats; "
        f"the line explains {fit:.1%} of the differences"
    )

    def draw(figure: Figure) -> None:
        axis = panel(figure, "tokens trained on, each once", "held-out loss (nats a token)")
        tokens = np.array([row["tokens"] for row in rows], dtype=float)
        axis.scatter(tokens, [row["loss"] for row in rows], color=MAIN, zorder=3, label="runs")
        ends = np.array([tokens.min(), tokens.max()])
        label = f"{start:.2f} {slope:+.3f} ln(tokens), R² {fit:.3f}"
        axis.plot(ends, start + slope * np.log(ends), color=SECOND, label=label)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(set(tokens)), [count(t) for t in sorted(set(tokens))])
        axis.legend()

    return Finding(says, rows, draw)


def log_line(tokens: list[int], losses: list[float]) -> tuple[float, float, float]:
    """Slope and start of loss against ln(tokens) by least squares, and R²."""
    x, y = np.log(np.array(tokens, dtype=float)), np.array(losses)
    if len(set(tokens)) == 1:
        return 0.0, float(y.mean()), 0.0
    slope, start = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    rest = float(((y - start - slope * x) ** 2).sum())
    return float(slope), float(start), 1 - rest / spread if spread else 0.0
