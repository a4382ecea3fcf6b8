"""What to make an emotion detector from: the pre-trained, the fine-tuned or the instruct model?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from llamaseek.checkpoints.hf import load_model
from llamaseek.data.builtin.reviews import EMOTIONS, review_item
from llamaseek.data.builtin.tasks import exact_match
from llamaseek.evals.generated import Generator, distinct
from llamaseek.study.runs import COLORS, Finding, Settings, mean, panel, trained
from llamaseek.study.stages import staged
from llamaseek.text.tokenizer import Tokenizer

STARTS = ("pre-trained", "SFT", "instruct")
REVIEWS = (16, 64, 256)
EPOCHS = 4
CHATS_A_ROW = 4  # that fit into one row of a batch, about


def start(settings: Settings) -> Finding:
    """Accuracy on emotions in held-out reviews, by start and number of training reviews."""
    rows = []
    for seed in settings.seeds:
        for name, model in zip(STARTS, staged(settings.chain, seed), strict=True):
            for reviews in REVIEWS:
                tuned = detector(settings, model, name, reviews, seed)
                accuracy = emotion_accuracy(tuned, settings.items)
                rows.append({"seed": seed, "start": name, "reviews": reviews, "accuracy": accuracy})
    return Finding(sentence(rows), rows, lambda figure: draw(figure, rows))


def detector(settings: Settings, model: Path, name: str, reviews: int, seed: int) -> Path:
    """The same short fine-tuning from a start, on so many reviews."""
    steps = max(EPOCHS * reviews // CHATS_A_ROW // 8, 8)
    what = (f"model.init_from={model}", f"data.rows={{reviews: {reviews}}}", f"seed={seed}")
    place = f"seed-{seed}/{name}-{reviews}"
    return trained(settings.recipe("study-emotions", place, *what, f"train.steps={steps}"))


def emotion_accuracy(folder: Path, items: int) -> float:
    """Share of held-out reviews whose emotion the model names."""
    speaker = Generator(load_model(folder), Tokenizer.load(folder))
    reviews = distinct(items, "reviews", lambda rng: review_item(rng, "test"))
    answers = speaker.answers(item.input for item in reviews)
    return sum(map(exact_match, reviews, answers)) / items


def average(rows: list[dict[str, Any]], name: str, reviews: int) -> float:
    """Accuracy over seeds."""
    return mean(
        row["accuracy"] for row in rows if row["start"] == name and row["reviews"] == reviews
    )


def sentence(rows: list[dict[str, Any]]) -> str:
    """The best start for the fewest and for the most reviews."""
    parts = []
    for reviews in (REVIEWS[0], REVIEWS[-1]):
        scores = {name: average(rows, name, reviews) for name in STARTS}
        summary = ", ".join(f"{name} {score:.0%}" for name, score in scores.items())
        parts.append(f"after {reviews} reviews {summary}")
    return "; ".join(parts)


def draw(figure: Figure, rows: list[dict[str, Any]]) -> None:
    """Accuracy against the number of reviews, a line a start; each seed a dot."""
    axis = panel(figure, "training reviews", "emotions recognized")
    for color, name in zip(COLORS, STARTS, strict=False):
        values = [average(rows, name, reviews) for reviews in REVIEWS]
        axis.plot(REVIEWS, values, color=color, label=name)
        dots = [(row["reviews"], row["accuracy"]) for row in rows if row["start"] == name]
        axis.scatter([dot[0] for dot in dots], [dot[1] for dot in dots], 14, color=color)
    axis.axhline(1 / len(EMOTIONS), color="black", linewidth=0.8, linestyle=":", label="guessing")
    axis.set_xscale("log", base=2)
    axis.set_xticks(REVIEWS, [str(reviews) for reviews in REVIEWS])
    axis.set_ylim(0, 1.03)
    axis.legend()
