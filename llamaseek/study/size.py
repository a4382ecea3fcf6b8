"""A larger model or more data? Both, with the gap between training and held-out loss."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from matplotlib.figure import Figure

from llamaseek.herd.tensors import count_parameters
from llamaseek.study.corpus import make_corpus
from llamaseek.study.runs import COLORS, Finding, Settings, held_out_loss, mean, panel, trained
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.units import count

SIZES = {
    "small": ("hidden_size=64", "intermediate_size=192", "num_hidden_layers=3"),
    "large": ("hidden_size=192", "intermediate_size=576", "num_hidden_layers=6"),
}
SHARES = (Fraction(1, 64), Fraction(1, 16), Fraction(1, 4))
ROWS = 64  # of the training text, scored as the held-out text is
LR = {"small": 4e-3, "large": 3e-3}


def size(settings: Settings) -> Finding:
    """Every size on every share of the corpus, all for the recipe's number of steps."""
    corpus = make_corpus(settings)
    rows = []
    for seed in settings.seeds:
        for name, config in SIZES.items():
            for share in SHARES:
                overrides, tokens = corpus.overrides(share)
                sizes = [f"model.config.{field}" for field in config]
                sizes.append(f"train.lr={LR[name]}")
                place = f"seed-{seed}/{name}-{share.numerator}-of-{share.denominator}"
                recipe = settings.recipe("study", place, *overrides, *sizes, f"seed={seed}")
                folder = trained(recipe)
                job = build_job(recipe)
                seen = job.source.step(0, ROWS)
                losses = {
                    "training": held_out_loss(folder, seen, recipe),
                    "held_out": held_out_loss(folder, corpus.held_out, recipe),
                }
                losses["gap"] = losses["held_out"] - losses["training"]
                parameters = count_parameters(job.model.config).total
                about = {"seed": seed, "size": name, "parameters": parameters, "tokens": tokens}
                rows.append({**about, **losses})
    return Finding(sentence(rows), rows, lambda figure: draw(figure, rows))


def over_seeds(rows: list[dict[str, Any]], name: str, tokens: int, key: str) -> float:
    """One figure of a size and an amount of data, averaged over seeds."""
    return mean(r[key] for r in rows if r["size"] == name and r["tokens"] == tokens)


def sentence(rows: list[dict[str, Any]]) -> str:
    """What growing the one and the other did."""
    amounts = sorted({row["tokens"] for row in rows})
    least, most = amounts[0], amounts[-1]
    start = over_seeds(rows, "small", least, "held_out")
    larger = over_seeds(rows, "large", least, "held_out")
    more = over_seeds(rows, "small", most, "held_out")
    both = over_seeds(rows, "large", most, "held_out")
    gaps = [over_seeds(rows, "large", tokens, "gap") for tokens in (least, most)]
    return (
        f"held-out loss {start:.2f} with the small model on little data; {larger:.2f} with the "
        f"large one, {more:.2f} with {most / least:.0f} times the data, {both:.2f} with both; "
        f"the large model's gap goes from {gaps[0]:.2f} to {gaps[1]:.2f} with more data"
    )


def draw(figure: Figure, rows: list[dict[str, Any]]) -> None:
    """Loss on both texts against the amount of data, a color a size."""
    axis = panel(figure, "distinct tokens (all runs take the same steps)", "loss (nats a token)")
    amounts = sorted({row["tokens"] for row in rows})
    for color, name in zip(COLORS, SIZES, strict=False):
        parameters = next(row["parameters"] for row in rows if row["size"] == name)
        for key, style in (("held_out", "-o"), ("training", "--o")):
            values = [over_seeds(rows, name, tokens, key) for tokens in amounts]
            label = f"{name} ({count(parameters)}), {key.replace('_', ' ')}"
            axis.plot(amounts, values, style, color=color, label=label, markersize=4)
    axis.set_xscale("log", base=2)
    axis.set_xticks(amounts, [f"{tokens / 1e3:.0f}k" for tokens in amounts])
    axis.legend()
