"""Rows of benchmarks from the user's files, in the shape that lm-eval's tasks read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from llamaseek.data.opened import PACKED_ENDINGS
from llamaseek.data.row_sources import read_rows
from llamaseek.data.tables import ROW_ENDINGS
from llamaseek.errors import UserError, shorten
from llamaseek.evals import tool_calls

Row = dict[str, Any]
PACKED = ("", *PACKED_ENDINGS)
SPLITS = {
    "train": "train",
    "dev": "dev",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
"""What the name of a file begins with, and the split that it is."""


@dataclass(frozen=True)
class BenchmarkSet:
    """A data set of the hub: names that its file or folder may have here, fields of its rows.

    `config_field` holds, in a file of all configurations, which one a row is of. `adapt` makes a
    row of another published form one of the hub's. `where` says where the files are kept.
    """

    names: tuple[str, ...]
    fields: tuple[str, ...]
    where: str
    config_field: str | None = None
    adapt: Callable[[Row], Row] = lambda row: row


def _hellaswag(row: Row) -> Row:
    """A row with the question written out (`query`), as the hub's, which lm-eval writes out."""
    if "query" not in row or "ctx_a" in row:
        return row
    activity, _, context = row["query"].partition(": ")
    return row | {"activity_label": activity, "ctx_a": context, "ctx_b": ""}


def _letters(row: Row) -> Row:
    """MMLU's answer as 0 to 3, which some files have as a letter."""
    answer = row.get("answer")
    return row | {"answer": "ABCD".index(str(answer))} if answer in [*"ABCD"] else row


def _hub(name: str) -> str:
    return f"huggingface.co/datasets/{name}"


_MMLU = BenchmarkSet(
    ("mmlu",),
    ("question", "choices", "answer"),
    _hub("cais/mmlu"),
    config_field="subject",
    adapt=_letters,
)
SETS = {
    "cais/mmlu": _MMLU,
    "hails/mmlu_no_train": _MMLU,
    "Idavidrein/gpqa": BenchmarkSet(
        ("gpqa",),
        ("Question", "Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3))),
        "github.com/idavidrein/gpqa (dataset.zip; its password is in the README)",
    ),
    "openai/openai_humaneval": BenchmarkSet(
        ("humaneval", "human_eval", "HumanEval"),
        ("task_id", "prompt", "test", "entry_point"),
        "github.com/openai/human-eval (data/HumanEval.jsonl.gz)",
    ),
    "google-research-datasets/mbpp": BenchmarkSet(
        ("mbpp",),
        ("text", "code", "test_list"),
        "github.com/google-research/google-research (mbpp/mbpp.jsonl)",
    ),
    "openai/gsm8k": BenchmarkSet(
        ("gsm8k",), ("question", "answer"), "github.com/openai/grade-school-math"
    ),
    "EleutherAI/hendrycks_math": BenchmarkSet(
        ("math", "hendrycks_math"),
        ("problem", "solution"),
        _hub("EleutherAI/hendrycks_math"),
        config_field="type",
    ),
    "HuggingFaceH4/MATH-500": BenchmarkSet(
        ("math500", "math_500"),
        ("problem", "solution", "answer"),
        "github.com/openai/prm800k (math_splits/test.jsonl)",
    ),
    "Rowan/hellaswag": BenchmarkSet(
        ("hellaswag",), ("endings", "label"), "github.com/rowanz/hellaswag", adapt=_hellaswag
    ),
    "baber/piqa": BenchmarkSet(
        ("piqa",), ("goal", "sol1", "sol2", "label"), "yonatanbisk.com/piqa (valid.jsonl)"
    ),
    "allenai/winogrande": BenchmarkSet(
        ("winogrande",), ("sentence", "option1", "option2", "answer"), _hub("allenai/winogrande")
    ),
    "allenai/ai2_arc": BenchmarkSet(
        ("arc", "ai2_arc"), ("question", "choices", "answerKey"), _hub("allenai/ai2_arc")
    ),
    "google/IFEval": BenchmarkSet(
        ("ifeval",),
        ("key", "prompt", "instruction_id_list", "kwargs"),
        "github.com/google-research/google-research (instruction_following_eval/data)",
    ),
    "SaylorTwift/bbh": BenchmarkSet(
        ("bbh",), ("input", "target"), "github.com/suzgunmirac/BIG-Bench-Hard (bbh)"
    ),
    "TIGER-Lab/MMLU-Pro": BenchmarkSet(
        ("mmlu_pro",), ("question", "options", "answer", "category"), _hub("TIGER-Lab/MMLU-Pro")
    ),
    "mandarjoshi/trivia_qa": BenchmarkSet(
        ("triviaqa", "trivia_qa"), ("question", "answer"), _hub("mandarjoshi/trivia_qa")
    ),
    "allenai/openbookqa": BenchmarkSet(
        ("openbookqa",), ("question_stem", "choices", "answerKey"), _hub("allenai/openbookqa")
    ),
    "tau/commonsense_qa": BenchmarkSet(
        ("commonsense_qa", "commonsenseqa"),
        ("question", "choices", "answerKey"),
        _hub("tau/commonsense_qa"),
    ),
    tool_calls.HUB: BenchmarkSet(
        ("tool_calls", "bfcl"),
        ("question", "function", "ground_truth"),
        "github.com/ShishirPatil/gorilla (BFCL_v3_*.json, each row with the `ground_truth` of its "
        "id in possible_answer)",
        adapt=tool_calls.adapted,
    ),
    "meta-llama/Llama-3.1-8B-Instruct-evals": BenchmarkSet(
        ("llama_evals",), ("input_question",), _hub("meta-llama/Llama-3.1-8B-Instruct-evals")
    ),
}


@dataclass(frozen=True)
class LocalData:
    """Folders with files of benchmarks: `DIR/<name>.jsonl`, `DIR/<name>/<split>.jsonl`, or
    `DIR/<hub id>/` as a download from the hub leaves it; DIR may be the folder of a set itself.
    """

    folders: tuple[Path, ...] = ()

    def load(self, task: str, path: str, config: str | None, evaluated: str, **options: Any) -> Any:
        """The `DatasetDict` of a task: of its files here, else downloaded.

        A file whose name tells no split is the `evaluated` one. UserError, which says what is
        missing or wrong, where the rows cannot be had.
        """
        known = SETS.get(path) or BenchmarkSet((path.split("/")[-1],), (), _hub(path))
        place = self._place(path, known)
        if place is None:
            return _download(task, path, config, options, self._missing(task, path, known))
        files = list(_files(place, config)) if place.is_dir() else [place]
        if not files:
            return _hub_folder(task, place, config)
        return _read(task, files, known, config, evaluated)

    def _place(self, path: str, known: BenchmarkSet) -> Path | None:
        """The file or folder that is the set."""
        names = [path, *known.names, path.split("/")[-1]]
        endings = ["", *(ending + packed for ending in ROW_ENDINGS for packed in PACKED)]
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"--data: {folder}: no such folder")
            if folder.name in names:
                return folder
            for name in names:
                for ending in endings:
                    if (found := folder / f"{name}{ending}").exists():
                        return found
        return None

    def _missing(self, task: str, path: str, known: BenchmarkSet) -> str:
        places = [
            str(folder / f"{known.names[0]}.jsonl") for folder in self.folders or [Path("DIR")]
        ]
        return (
            f"{task}: {path} is not among the files of --data and cannot be downloaded; get it "
            f"from {known.where} and put it at {' or '.join(places)}"
        )


def _files(folder: Path, config: str | None) -> Iterator[Path]:
    """The files of rows in a folder that are of one configuration, or of any."""
    named = [path for path in sorted(folder.iterdir()) if _stem(path) is not None]
    own = [path for path in named if config is not None and _stem(path) == config]
    yield from own or [path for path in named if _split(path) or len(named) == 1]
    if config is not None and (folder / config).is_dir():
        yield from _files(folder / config, None)


def _stem(path: Path) -> str | None:
    """A row file's name without its ending; None for another file."""
    for ending in ROW_ENDINGS:
        for packed in PACKED:
            if path.name.endswith(ending + packed):
                return path.name.removesuffix(ending + packed)
    return None


def _split(path: Path) -> str | None:
    stem = (_stem(path) or "").lower()
    return next((split for name, split in SPLITS.items() if stem.startswith(name)), None)


def _read(
    task: str, files: Sequence[Path], known: BenchmarkSet, config: str | None, evaluated: str
) -> Any:
    from datasets import Dataset, DatasetDict

    splits: dict[str, list[Row]] = {}
    for file in files:
        rows = [known.adapt(row) for row in _rows(str(file), file.stat().st_mtime_ns)]
        rows = _of_config(rows, known.config_field, config)
        for field in known.fields:
            if rows and field not in rows[0]:
                raise UserError(
                    f"{file}: its rows have no field {field!r}, which {task} reads; they have "
                    f"{', '.join(map(repr, rows[0]))}"
                )
        splits.setdefault(_split(file) or evaluated, []).extend(rows)
    if not splits.get(evaluated) and len(files) == 1 and len(splits) == 1:
        splits = {evaluated: next(iter(splits.values()))}
    if not splits.get(evaluated):
        of = f" of {config}" if config else ""
        raise UserError(f"{task}: {files[0].parent}: has no rows{of} of the split {evaluated!r}")
    return DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items() if rows})


@lru_cache(maxsize=8)
def _rows(file: str, changed: int) -> list[Row]:
    """The rows of a file, kept for the next of its configurations until the file is changed."""
    return [row for _, row in read_rows(file)]


def _of_config(rows: list[Row], field: str | None, config: str | None) -> list[Row]:
    """The rows of one configuration, in a file that has several."""
    if field is None or config is None or not rows or field not in rows[0]:
        return rows
    return [row for row in rows if _plain(str(row[field])) == _plain(config)]


def _plain(name: str) -> str:
    """A configuration's name as one compares it: `Counting & Probability` has underscores too."""
    return name.replace("_", " ").replace("&", "and").lower()


def _hub_folder(task: str, folder: Path, config: str | None) -> Any:
    """A folder as the hub's download leaves it, read anew: a kept copy may be of other files."""
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        try:
            return datasets.load_dataset(str(folder), config, cache_dir=cache, keep_in_memory=True)
        except Exception as error:
            raise UserError(f"{task}: {folder}: {shorten(str(error))}") from None


def _download(
    task: str, path: str, config: str | None, options: dict[str, Any], missing: str
) -> Any:
    import datasets

    given = {key: value for key, value in options.items() if key != "trust_remote_code"}
    try:
        return datasets.load_dataset(path, config, **given)
    except Exception as error:
        gated = " (it is gated: accept its terms and set HF_TOKEN)" if "gated" in str(error) else ""
        raise UserError(missing + gated) from error
