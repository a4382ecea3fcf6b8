"""Meta's published items: each prompt as it was sent asked again, and verdicts compared one by one.

The rows of the hub's `meta-llama/*-evals` data sets: `input_final_prompts`, `is_correct` and, of
generated answers, `output_prediction_text`, `input_correct_responses` and `eval_config`. A prompt
holds the chat's control tokens; begin-of-text is put before it once. Of a choice item each prompt
is one option written out, and the likeliest is the answer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamaseek.data.row_sources import read_rows
from llamaseek.errors import UserError, shorten
from llamaseek.evals.lm import DEFAULT_TOKENS, EngineLM, LMQuery
from llamaseek.files import write_text

FIELDS = ("input_final_prompts", "is_correct", "input_correct_responses")
LETTER = re.compile(r"best answer is[\s*]*\(?([A-J])\b")
FIRST_LETTER = re.compile(r"\W*([A-J])\b")
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")
BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
Reader = Callable[[str], str | None]


@dataclass(frozen=True)
class ItemVerdict:
    """One item: its answer here, and whether it is right by Meta's figures and here."""

    task: str
    question: str
    wanted: list[str]
    answer: str
    parsed: str | None
    published: bool
    here: bool


@dataclass(frozen=True)
class Comparison:
    """The items of one task, and how its answers are read.

    `readable` of `published` verdicts on Meta's own answers come out the same by that reader.
    """

    task: str
    reader: str
    readable: int
    published: int
    verdicts: list[ItemVerdict]

    @property
    def counts(self) -> dict[tuple[bool, bool], int]:
        """How many items are right by Meta's figures and here, or one of them, or neither."""
        return Counter((each.published, each.here) for each in self.verdicts)


def replay(lm: EngineLM, path: Path, limit: int | None = None) -> list[Comparison]:
    """Ask the items of a file again. UserError for a file that is not of this form."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for number, (_, row) in enumerate(read_rows(str(path))):
        for field in FIELDS:
            if row.get(field) is None:
                raise UserError(f"{path}: row {number + 1}: has no {field!r}; these are no items "
                                "of a meta-llama/*-evals data set")  # fmt: skip
        if not row["input_final_prompts"]:
            raise UserError(f"{path}: row {number + 1}: 'input_final_prompts' is empty")
        rows = tasks.setdefault(str(row.get("task_name") or path.stem), [])
        if limit is None or len(rows) < limit:
            rows.append(row)
    if not tasks:
        raise UserError(f"{path}: has no items")
    return [_compared(lm, task, rows) for task, rows in tasks.items()]


def write_items(comparisons: Sequence[Comparison], out: Path) -> Path:
    """`items.jsonl`, a line for each item."""
    lines = [json.dumps(asdict(each), ensure_ascii=False)
             for comparison in comparisons for each in comparison.verdicts]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "items.jsonl", "\n".join(lines) + "\n")
    return out / "items.jsonl"


def _compared(lm: EngineLM, task: str, rows: Sequence[Mapping[str, Any]]) -> Comparison:
    if len(rows[0]["input_final_prompts"]) > 1:
        verdicts = _choices(lm, task, rows)
        return Comparison(task, "likeliest option", len(rows), len(rows), verdicts)
    name, readable = _best_reader(rows)
    texts = _answers(lm, task, rows)
    verdicts = [
        _verdict(task, row, text, READERS[name](text))
        for row, text in zip(rows, texts, strict=True)
    ]
    answered = sum(bool(row.get("output_prediction_text")) for row in rows)
    return Comparison(task, name, readable, answered, verdicts)


def _verdict(task: str, row: Mapping[str, Any], text: str, parsed: str | None) -> ItemVerdict:
    wanted = [str(each) for each in row["input_correct_responses"]]
    question = shorten(str(row.get("input_question") or row["input_final_prompts"][0]), 200)
    right = is_right(parsed, wanted)
    return ItemVerdict(task, question, wanted, text, parsed, bool(row["is_correct"]), right)


def _prompt(lm: EngineLM, text: str) -> list[int]:
    """The ids of a prompt that holds control tokens, begin-of-text once before it."""
    ids = lm.tokenizer.encode_special(text)
    begin = list(lm.tokenizer.prefix_ids)
    return ids if ids[: len(begin)] == begin else [*begin, *ids]


def _answers(lm: EngineLM, task: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    jobs = []
    for row in rows:
        config = row.get("eval_config") or {}
        config = json.loads(config) if isinstance(config, str) else config
        params = {"max_tokens": int(config.get("max_gen_len") or DEFAULT_TOKENS)}
        jobs.append(LMQuery(task, tuple(_prompt(lm, row["input_final_prompts"][0])), params))
    return [answer["text"] for answer in lm.generate(jobs)]


def _choices(lm: EngineLM, task: str, rows: Sequence[Mapping[str, Any]]) -> list[ItemVerdict]:
    """The option whose tokens after the options' common beginning are the likeliest."""
    pairs, owners = [], []
    for number, row in enumerate(rows):
        prompts = [_prompt(lm, text) for text in row["input_final_prompts"]]
        same = _common(prompts)
        pairs += [(ids[:same], ids[same:]) for ids in prompts]
        owners += [number] * len(prompts)
    found: list[list[float]] = [[] for _ in rows]
    for owner, result in zip(owners, lm.score([task] * len(pairs), pairs), strict=True):
        found[owner].append(result[0])
    verdicts = []
    for row, scores in zip(rows, found, strict=True):
        chosen = row["input_final_prompts"][scores.index(max(scores))]
        last = chosen.rstrip().rpartition("\n")[2]
        right = any(chosen.rstrip().endswith(str(each)) for each in row["input_correct_responses"])
        verdict = _verdict(task, row, last, last)
        verdicts.append(ItemVerdict(**{**asdict(verdict), "here": right}))
    return verdicts


def _common(sides: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with, and each has one more."""
    shortest = min(map(len, sides)) - 1
    return next((n for n in range(shortest) if len({s[n] for s in sides}) > 1), shortest)


# How answers are read.


def _letter(text: str) -> str | None:
    """The last letter that is called the best answer, else the first of a text that begins so."""
    named = LETTER.findall(text)
    first = FIRST_LETTER.match(text)
    return named[-1] if named else first[1] if first else None


def _last_number(text: str) -> str | None:
    found = NUMBER.findall(text)
    return found[-1].rstrip(".").replace(",", "") if found else None


def _boxed(text: str) -> str | None:
    found = BOXED.findall(text)
    return found[-1] if found else None


READERS: dict[str, Reader] = {
    "letter": _letter,
    "last number": _last_number,
    "boxed": _boxed,
    "first line": lambda text: text.strip().partition("\n")[0],
}


def _best_reader(rows: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
    """The reader that gives most of the published verdicts on the published answers."""
    known = [
        (str(row["output_prediction_text"][0]), list(map(str, row["input_correct_responses"])), row)
        for row in rows
        if row.get("output_prediction_text")
    ]

    def agreement(name: str) -> int:
        read = READERS[name]
        return sum(is_right(read(text), wanted) == row["is_correct"] for text, wanted, row in known)

    best = max(READERS, key=agreement)
    return best, agreement(best)


def is_right(parsed: str | None, wanted: Sequence[str]) -> bool:
    """Whether what was read is one of the wanted answers, as a number, a formula or a text."""
    if parsed is None:
        return False
    plain = _plain(parsed)
    return any(plain == _plain(each) or _same_number(plain, _plain(each)) for each in wanted)


def _plain(text: str) -> str:
    kept = text.strip().rstrip(".").replace(",", "").replace("$", "").replace(" ", "")
    return kept.lower().removeprefix("answer:")


def _same_number(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False
