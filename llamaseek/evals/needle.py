"""Retrieval from long contexts: codes hidden somewhere in a text of stories, asked for at its end.

Meta reports "needle in a haystack" with one needle and with several (llama-models, eval_details.md,
NIH/Multi-needle: 0-shot); here the lengths are powers of two tokens, as far as the model's context
goes, and the text is generated, so that no file is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from llamaseek.data.builtin.stories import story
from llamaseek.errors import UserError

LENGTHS = tuple(1 << power for power in range(10, 18))
"""Tokens of a prompt with its answer: 1,024 to 131,072."""
NEEDLES = {"needle": 1, "needles": 4}
"""How many codes each benchmark asks for."""
DEPTHS = 10
ANSWER_TOKENS = 64
ROOM = 256  # tokens of a length that are left to the template, the question and the answer
CITIES = (
    "Lisbon",
    "Oslo",
    "Quito",
    "Tokyo",
    "Cairo",
    "Dublin",
    "Havana",
    "Lima",
    "Perth",
    "Vienna",
)
Count = Callable[[str], int]


def lengths_within(context: int) -> list[int]:
    """The lengths that a model's context has room for. UserError where it has none."""
    found = [length for length in LENGTHS if length <= context]
    if not found:
        raise UserError(
            f"needle: needs a context of at least {LENGTHS[0]} tokens; the model's is {context}"
        )
    return found


def task_config(name: str, length: int, count: Count) -> dict[str, Any]:
    """lm-eval's config of a benchmark at one length; `count` gives a text's tokens."""
    mean = {"aggregation": "mean", "higher_is_better": True}
    return {
        "task": f"{name}_{length}",
        "dataset_path": name,
        "custom_dataset": lambda **options: _dataset(NEEDLES[name], length, count),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "num_fewshot": 0,
        "generation_kwargs": {"do_sample": False, "max_gen_toks": ANSWER_TOKENS, "until": []},
        "process_results": verdict,
        "metric_list": [{"metric": "exact_match", **mean}, {"metric": "recall", **mean}],
        "metadata": {"version": 1.0},
    }


def verdict(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether an answer is the codes as asked for, and the share of them that it has."""
    codes = doc["target"].split(", ")
    said = set(re.findall(r"\d+", results[0]))
    return {
        "exact_match": float(results[0].strip().rstrip(".") == doc["target"]),
        "recall": sum(code in said for code in codes) / len(codes),
    }


def _dataset(needles: int, length: int, count: Count) -> Any:
    from datasets import Dataset, DatasetDict

    rows = rows_of(needles, length, count)
    return DatasetDict({"test": Dataset.from_list(rows)})


def rows_of(needles: int, length: int, count: Count) -> list[dict[str, Any]]:
    """An item for each depth, 0 being the beginning; several needles are apart from one another."""
    rng = Random(f"needle/{needles}/{length}")
    rows = []
    for place in range(DEPTHS):
        cities = rng.sample(CITIES, needles)
        codes = [str(rng.randrange(10_000, 100_000)) for _ in cities]
        facts = [f"The code of {c} is {code}." for c, code in zip(cities, codes, strict=True)]
        stories = _haystack(rng, length - ROOM - count(" ".join(facts)), count)
        depths = [(place / (DEPTHS - 1) + n / needles) % (1 + 1e-9) for n in range(needles)]
        for depth, needle in sorted(zip(depths, facts, strict=True), reverse=True):
            stories.insert(round(depth * len(stories)), needle)
        rows.append(
            {
                "prompt": f"{' '.join(stories)}\n\n{_question(cities)}\nAnswer:",
                "target": ", ".join(codes),
                "depth": place / (DEPTHS - 1),
            }
        )
    return rows


def _haystack(rng: Random, tokens: int, count: Count) -> list[str]:
    """Stories of so many tokens together, and no more."""
    stories: list[str] = []
    left = tokens
    while left > 0:
        stories.append(story(rng, "test").text)
        left -= count(" " + stories[-1])
    while count(" ".join(stories)) > tokens:
        del stories[-max(1, len(stories) // 100) :]
    return stories


def _question(cities: Sequence[str]) -> str:
    if len(cities) == 1:
        return f"What is the code of {cities[0]}? Answer with the number alone."
    named = f"{', '.join(cities[:-1])} and {cities[-1]}"
    return (
        f"What are the codes of {named}? Answer with the numbers alone, in this order, with commas "
        "between them."
    )
