"""A judge's filter from end to end: does training on what it keeps beat training on everything?

`python bench/judge.py [--json PATH]` makes a corpus of stories of which half are spoilt, trains a
small chat model to grade them, lets it grade a sample through the engine, trains the classifier on
the grades, filters the corpus with it, and trains two small models a seed on equal tokens: one on
everything, one on what was kept. Both are tested on the same whole documents that neither saw. Four
minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Row, report  # noqa: E402
from llamaseek.checkpoints.hf import load_model  # noqa: E402
from llamaseek.data.builtin.stories import story  # noqa: E402
from llamaseek.data.clean.engine import CleaningWorkers  # noqa: E402
from llamaseek.data.documents import read_documents  # noqa: E402
from llamaseek.data.mix.encode import Encoder  # noqa: E402
from llamaseek.data.pack import pack_text  # noqa: E402
from llamaseek.data.quality.flow import filter_by_judge  # noqa: E402
from llamaseek.data.quality.recipe import QualityRecipe  # noqa: E402
from llamaseek.evals.judge import EngineJudge, judge_prompt  # noqa: E402
from llamaseek.recipe.load import make_recipe  # noqa: E402
from llamaseek.text.tokenizer import Tokenizer  # noqa: E402
from llamaseek.train.jobs.pretrain import build_job  # noqa: E402
from llamaseek.train.loop import train  # noqa: E402

RUBRIC = "How many sentences of the text are whole?"
BEST = 4  # sentences, or pairs of them, that can be whole
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,
}


def document(rng: Random) -> tuple[str, int]:
    """Four stories, and how many of them still have their words in order."""
    whole = BEST if rng.random() < 0.5 else rng.randrange(BEST)
    parts = []
    for number in range(BEST):
        words = story(rng, "train").text.split()
        if number >= whole:
            rng.shuffle(words)
        parts.append(" ".join(words))
    rng.shuffle(parts)
    return "\n".join(parts), whole


def corpus(path: Path, count: int, seed: str) -> dict[str, int]:
    """Documents as JSON lines; returns the true grade of each by its id."""
    rng = Random(seed)
    grades = {}
    with path.open("w") as file:
        for number in range(count):
            text, grades[f"{seed}-{number}"] = document(rng)
            file.write(json.dumps({"id": f"{seed}-{number}", "text": text}) + "\n")
    return grades


def recipe(folder: Path, name: str, stage: str, data: dict[str, Any], **more: Any) -> Any:
    """A small run."""
    train_fields = {"batch": 16, "lr": 3e-3, "warmup": 20, "eval_every": 100, "precision": "fp32"}
    made = {"name": name, "out": str(folder / name), "stage": stage}
    made |= {"data": data, "seed": more.pop("seed", 0), "model": more.pop("model", {})}
    made |= {"tokenizer": more.pop("tokenizer", {"vocab_size": 500})}
    return make_recipe(made | {"train": train_fields | more})


def trained(made: Any) -> Path:
    """Its model's folder."""
    return train(build_job(made)).path / "model"


def make_judge(folder: Path, steps: int) -> Path:
    """Pre-trained on the corpus's kind of text, then taught to count whole parts."""
    corpus(folder / "seen.jsonl", 4000, "seen")
    data = {"sources": [str(folder / "seen.jsonl")], "length": 256}
    base = trained(
        recipe(folder, "base", "pretrain", data, steps=steps // 2, model={"config": SIZES})
    )
    rng = Random("lessons")
    with (folder / "lessons.jsonl").open("w") as file:
        for _ in range(8000):
            text, grade = document(rng)
            row = {"prompt": judge_prompt(RUBRIC, text, BEST), "completion": str(grade)}
            file.write(json.dumps(row) + "\n")
    lessons = {"sources": [str(folder / "lessons.jsonl")], "length": 256}
    return trained(
        recipe(folder, "judge", "sft", lessons, steps=steps, model={"init_from": str(base)})
    )


def losses(folder: Path, sources: list[str], name: str, seed: int, steps: int) -> float:
    """Bits per byte on whole documents that no run saw, after `steps` of 16 × 256 tokens."""
    data = {"corpora": {"train": sources}, "length": 256, "holdout": 0.0}
    made = recipe(
        folder, f"{name}-{seed}", "pretrain", data, steps=steps, seed=seed,
        model={"config": SIZES}, tokenizer={"path": str(folder / "base" / "model")},
    )  # fmt: skip
    job = build_job(made)
    rng = Random("tested")
    texts = ["\n".join(story(rng, "test").text for _ in range(BEST)) for _ in range(200)]
    job.held_out = pack_text(Encoder(job.tokenizer)(iter(texts)), 256)
    job.held_out_bytes = sum(map(len, texts))
    folder_of_run = train(job).path
    lines = [
        json.loads(line) for line in (folder_of_run / "metrics.jsonl").read_text().splitlines()
    ]
    return float([line for line in lines if "val_bits_per_byte" in line][-1]["val_bits_per_byte"])


def main() -> None:
    """Judge, filter, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=6000)
    parser.add_argument("--judge-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=130)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        truth = corpus(folder / "corpus.jsonl", asked.documents, "corpus")
        judge = make_judge(folder, asked.judge_steps)
        model, tokenizer = load_model(judge), Tokenizer.load(judge)
        wanted = QualityRecipe.model_validate(
            {
                "name": "filtered",
                "out": str(folder / "filtered"),
                "sources": [str(folder / "corpus.jsonl")],
                "judge": {"model": str(judge), "rubric": RUBRIC, "best": BEST, "sample": 1500},
                "keep": {"at_least": BEST - 1},
            }
        )
        found = filter_by_judge(
            wanted, EngineJudge(model, tokenizer, RUBRIC, BEST), CleaningWorkers(2)
        )
        grades = (folder / "filtered" / "classifier" / "grades.jsonl").read_text().splitlines()
        given = [json.loads(line) for line in grades]
        right = sum(row["grade"] == truth[row["id"]] for row in given) / len(given)
        kept = [d.id for d in read_documents([folder / "filtered" / "documents"])]
        whole = sum(truth[name] == BEST for name in kept) / len(kept)
        before = sum(grade == BEST for grade in truth.values()) / len(truth)
        print(f"judge against the truth: {right:.1%} of {len(given)} grades exact")
        print(
            f"classifier against the judge, {found.documents} held out: {found.exact:.1%} the same "
            f"(most frequent grade {found.majority:.1%}), correlation {found.correlation:.3f}, "
            f"F1 of keep or not {found.f1:.3f}"
        )
        print(f"whole documents: {before:.1%} of all, {whole:.1%} of the {len(kept)} kept")
        rows = []
        for seed in (0, 1):
            everything = losses(folder, [str(folder / "corpus.jsonl")], "all", seed, asked.steps)
            filtered = losses(
                folder, [str(folder / "filtered/documents")], "kept", seed, asked.steps
            )
            print(f"seed {seed}: all {everything:.4f}, filtered {filtered:.4f} bits per byte")
            case = f"filtered, seed {seed}"
            ratio = round(everything / filtered, 3)
            rows.append(
                Row(
                    case,
                    "mbit per byte",
                    1000 * filtered,
                    "unfiltered",
                    1000 * everything,
                    ratio,
                    None,
                )
            )
    report(rows, [], asked.json)


if __name__ == "__main__":
    main()
