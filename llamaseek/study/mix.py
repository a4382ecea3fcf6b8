"""Does a better mix help at equal tokens? Web text and code alone beside the lecture's six ways."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

from matplotlib.figure import Figure

from llamaseek.checkpoints.hf import load_model
from llamaseek.data.batch import Batch
from llamaseek.data.builtin.documents import builtin_documents
from llamaseek.data.builtin.tasks import TASKS
from llamaseek.evals.generated import Generator, task_exact_match
from llamaseek.study.runs import (
    SMOKE_CORPUS,
    Finding,
    Settings,
    grouped_bars,
    held_out_loss,
    mean,
    packed,
    trained,
    write_documents,
)
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.text.train_bpe import train_bpe

MIXES = {
    "web and code": {"web": 0.6, "code": 0.4},
    "six ways": {
        "web": 0.15,
        "code": 0.1,
        "math": 0.1,
        "reasoning": 0.1,
        "stories": 0.25,
        "knowledge": 0.22,
        "languages": 0.08,
    },
}
SOURCES = tuple(MIXES["six ways"])
EVERY = 10  # of a source's documents one is held out
HELD_OUT = 60  # documents of a source that are scored
FINE_TUNING = ("data.rows={tasks: 3000}", "train.steps=80", "train.batch=32", "train.warmup=8")


def mix(settings: Settings) -> Finding:
    """Held-out loss by source after either mix, and the five tasks after equal fine-tuning."""
    recipe = settings.recipe("study", "corpus", *(SMOKE_CORPUS if settings.smoke else ()))
    kept, held_out = split_sources(recipe.data.mix_bytes)
    tokenizer = train_bpe((text for name in SOURCES for text in kept[name]), 2048)
    tokenizer.save(recipe.folder)
    scored = {name: packed(recipe, tokenizer, texts[:HELD_OUT]) for name, texts in held_out.items()}
    rows = []
    for name, weights in MIXES.items():
        path = recipe.folder / f"{name.replace(' ', '-')}.jsonl"
        write_documents(path, blend(kept, weights, recipe.data.mix_bytes))
        for seed in settings.seeds:
            place = f"seed-{seed}/{path.stem}"
            rows.append({"mix": name, "seed": seed, **run(settings, path, place, seed, scored)})
    return Finding(sentence(rows), rows, lambda figure: draw(figure, rows))


def split_sources(size: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Each source's documents, no two alike: those to train on, those held out."""
    kept, held_out = {}, {}
    for name in SOURCES:
        texts = list(dict.fromkeys(builtin_documents(name, size // 2, seed=0)))
        held_out[name] = texts[::EVERY]
        kept[name] = [text for place, text in enumerate(texts) if place % EVERY]
    return kept, held_out


def blend(kept: dict[str, list[str]], weights: dict[str, float], size: int) -> list[str]:
    """Documents of about `size` bytes, each source at its share, shuffled."""
    out = []
    for name, weight in weights.items():
        used = 0
        for text in cycle(kept[name]):
            if used >= size * weight:
                break
            out.append(text)
            used += len(text.encode())
    Random(0).shuffle(out)
    return out


def run(
    settings: Settings, path: Path, place: str, seed: int, scored: dict[str, Batch]
) -> dict[str, Any]:
    """One pre-training and its fine-tuning: loss by source, accuracy by task."""
    source = (f"data.sources=[{path}]", "data.corpora={}", "data.mix={}", "data.holdout=0")
    tokenizer = f"tokenizer.path={path.parent}"
    base = settings.recipe("study", f"{place}/pretrain", *source, tokenizer, f"seed={seed}")
    model = trained(base)
    losses = {name: held_out_loss(model, rows, base) for name, rows in scored.items()}
    start = (f"model.init_from={model}", f"seed={seed}")
    tuned = trained(settings.recipe("quickstart-sft", f"{place}/sft", *start, *FINE_TUNING))
    speaker = Generator(load_model(tuned), Tokenizer.load(tuned))
    return {"loss": losses, "accuracy": task_exact_match(speaker, settings.items)}


def averages(rows: list[dict[str, Any]], name: str, kind: str) -> dict[str, float]:
    """Figures of a mix over its seeds."""
    chosen = [row[kind] for row in rows if row["mix"] == name]
    return {key: mean(row[key] for row in chosen) for key in chosen[0]}


def sentence(rows: list[dict[str, Any]]) -> str:
    """Which mix is better at what."""
    names = list(MIXES)
    losses = [averages(rows, name, "loss") for name in names]
    better = [source for source in SOURCES if losses[1][source] < losses[0][source]]
    tasks = [mean(averages(rows, name, "accuracy").values()) for name in names]
    return (
        f"at equal tokens the six-way mix has the lower held-out loss on {len(better)} of "
        f"{len(SOURCES)} sources ({', '.join(better)}); after equal fine-tuning it solves "
        f"{tasks[1]:.0%} of the tasks, web and code alone {tasks[0]:.0%}"
    )


def draw(figure: Figure, rows: list[dict[str, Any]]) -> None:
    """Loss by source above, tasks below."""
    top, bottom = figure.subplots(2, 1)
    groups = {"loss": (top, list(SOURCES)), "accuracy": (bottom, list(TASKS))}
    for kind, (axis, names) in groups.items():
        series = {}
        for name in MIXES:
            found = averages(rows, name, kind)
            series[name] = [found[key] for key in names]
        grouped_bars(axis, names, series, "{:.2f}" if kind == "loss" else "{:.0%}")
    top.set_ylabel("held-out loss (nats)")
    bottom.set_ylabel("tasks solved")
    bottom.get_legend().remove()
