"""CORE (DataComp-LM, Li et al. 2024), as nanochat computes it from its folder `eval_bundle`.

Of several options the one with the smallest mean loss per token is chosen, over the tokens in which
the options differ; a text is right if greedy decoding writes it. Shots are drawn for each item. A
score is centred, (accuracy - chance) / (1 - chance), and CORE is the mean over the tasks.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from llamaseek.errors import UserError

ORDER_SEED, SHOTS_SEED = 1337, 1234
KINDS = ("multiple_choice", "schema", "language_modeling")
Item = Mapping[str, Any]


@dataclass(frozen=True)
class CoreTask:
    """A task of the bundle: its file, shots, kind and what stands before an answer."""

    label: str
    file: Path
    kind: str
    shots: int
    delimiter: str
    chance: float


def find_bundle(folders: Sequence[Path]) -> Path:
    """The folder with `core.yaml`. UserError where none is."""
    for folder in folders:
        for place in (folder / "eval_bundle", folder / "core", folder):
            if (place / "core.yaml").is_file():
                return place
    where = " or ".join(map(str, folders)) or "DIR"
    raise UserError(
        "core: needs nanochat's eval_bundle (core.yaml, eval_meta_data.csv, eval_data/) in --data; "
        f"unpack karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip as {where}/eval_bundle"
    )


def read_bundle(bundle: Path) -> tuple[list[CoreTask], list[str]]:
    """The tasks whose files are there, and the labels of the others. UserError for a bad bundle."""
    try:
        listed = yaml.safe_load((bundle / "core.yaml").read_text())["icl_tasks"]
        with (bundle / "eval_meta_data.csv").open(newline="", encoding="utf-8") as file:
            chance = {row["Eval Task"]: float(row["Random baseline"]) / 100
                      for row in csv.DictReader(file)}  # fmt: skip
        tasks = [
            CoreTask(
                each["label"],
                bundle / "eval_data" / each["dataset_uri"],
                each["icl_task_type"],
                each["num_fewshot"][0],
                each.get("continuation_delimiter", " "),
                chance[each["label"]],
            )
            for each in listed
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError, yaml.YAMLError) as error:
        raise UserError(f"{bundle}: is no eval_bundle: {type(error).__name__}: {error}") from None
    for task in tasks:
        if task.kind not in KINDS:
            raise UserError(f"{bundle}/core.yaml: {task.label}: unknown task type {task.kind!r}")
    there = [task for task in tasks if task.file.is_file()]
    if not there:
        raise UserError(f"{bundle}/eval_data: has none of the files that core.yaml names")
    return there, [task.label for task in tasks if task not in there]


def group_config(tasks: Sequence[CoreTask]) -> dict[str, Any]:
    """lm-eval's group: its `centered` figure is CORE."""
    mean = {"aggregation": "mean", "weight_by_size": False}
    metrics = [{"metric": "centered", **mean}, {"metric": "acc", **mean}]
    names = [f"core_{task.label}" for task in tasks]
    return {"group": "core", "task": names, "aggregate_metric_list": metrics}


def task_config(task: CoreTask) -> dict[str, Any]:
    """lm-eval's config of a task."""
    mean = {"aggregation": "mean", "higher_is_better": True}
    config = {
        "task": f"core_{task.label}",
        "dataset_path": "core",
        "custom_dataset": lambda **options: _dataset(task),
        "test_split": "test",
        "num_fewshot": 0,
        "target_delimiter": "",
        "process_results": lambda doc, results: verdict(task, doc, results),
        "metric_list": [{"metric": "centered", **mean}, {"metric": "acc", **mean}],
        "metadata": {"version": 1.0, "num_fewshot": task.shots},
    }
    if task.kind == "language_modeling":
        return config | {
            "output_type": "loglikelihood",
            "doc_to_text": lambda doc: doc["contexts"][0],
            "doc_to_target": lambda doc: doc["answers"][0],
        }
    if task.kind == "schema":
        return config | {
            "output_type": "multiple_choice",
            "doc_to_text": lambda doc: doc["gold"],
            "doc_to_choice": lambda doc: doc["contexts"],
            "doc_to_target": lambda doc: doc["answers"][0],
        }
    return config | {
        "output_type": "multiple_choice",
        "doc_to_text": lambda doc: doc["contexts"][0],
        "doc_to_choice": lambda doc: doc["answers"],
        "doc_to_target": lambda doc: doc["gold"],
    }


def _dataset(task: CoreTask) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(rows_of(task))})


def rows_of(task: CoreTask) -> list[dict[str, Any]]:
    """The items in nanochat's order, each with its contexts, answers and the right one's number."""
    try:
        lines = task.file.read_text(encoding="utf-8").splitlines()
        items = [json.loads(line) for line in lines if line.strip()]
        Random(ORDER_SEED).shuffle(items)
        return [_row(task, items, place) for place in range(len(items))]
    except (ValueError, KeyError) as error:
        raise UserError(f"{task.file}: {type(error).__name__}: {error}") from None


def _row(task: CoreTask, items: Sequence[Item], place: int) -> dict[str, Any]:
    others = [other for other in range(len(items)) if other != place]
    drawn = Random(SHOTS_SEED + place).sample(others, task.shots) if task.shots else []
    shots = "".join(_shot(task, items[other]) for other in drawn)
    item, delimiter = items[place], task.delimiter
    if task.kind == "multiple_choice":
        contexts = [shots + item["query"] + delimiter]
        return {"contexts": contexts, "answers": item["choices"], "gold": item["gold"]}
    answers = [item["continuation"]]
    if task.kind == "schema":
        contexts = [shots + context + delimiter for context in item["context_options"]]
        return {"contexts": contexts, "answers": answers, "gold": item["gold"]}
    return {
        "contexts": [shots + item["context"].strip() + delimiter],
        "answers": answers,
        "gold": 0,
    }


def _shot(task: CoreTask, item: Item) -> str:
    if task.kind == "multiple_choice":
        return f"{item['query']}{task.delimiter}{item['choices'][item['gold']]}\n\n"
    if task.kind == "schema":
        context = item["context_options"][item["gold"]]
    else:
        context = item["context"].strip()
    return f"{context}{task.delimiter}{item['continuation']}\n\n"


def verdict(task: CoreTask, doc: Item, results: Sequence[Any]) -> dict[str, float]:
    """Whether an item is answered rightly, and its centred score."""
    if task.kind == "language_modeling":
        right = bool(results[0][1])
    else:
        losses = mean_losses(results)
        right = losses.index(min(losses)) == doc["gold"]
    return {"acc": float(right), "centered": (right - task.chance) / (1 - task.chance)}


def mean_losses(results: Sequence[Any]) -> list[float]:
    """The mean loss of each option, over the tokens after those that all options begin with."""
    if not all(hasattr(result, "logprobs") for result in results):
        raise UserError(
            "core: needs the log-probability of each token, which a server does not give"
        )
    tokens = [result.tokens for result in results]
    same = 0
    if len(set(map(tuple, tokens))) > 1:
        shortest = min(map(len, tokens))
        while same < shortest - 1 and len({each[same] for each in tokens}) == 1:
            same += 1
    return [-sum(r.logprobs[same:]) / len(r.logprobs[same:]) for r in results]
