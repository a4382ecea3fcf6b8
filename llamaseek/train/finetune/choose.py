"""From a model and a user's rows to a recipe: stage, method, learning rate, length, batch, steps.

Every choice is a field of the recipe, so that the recipe repeats it and `KEY=VALUE` changes it.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass, field, replace
from heapq import nlargest
from math import ceil
from pathlib import Path
from typing import Any

from llamaseek.data.bad_rows import HINT, BadRows, NoRows, Row
from llamaseek.data.detect import DetectedRows, Kind, detect
from llamaseek.data.documents import read_documents
from llamaseek.data.formats import RowReader
from llamaseek.data.ratings import NoPairs, pairs_of_ratings
from llamaseek.data.row_sources import file_rows
from llamaseek.errors import UserError, shorten
from llamaseek.files import GGUF_SUFFIX
from llamaseek.herd import ModelConfig
from llamaseek.herd.folder import read_config
from llamaseek.herd.tensors import count_parameters
from llamaseek.plan.learning_rate import usual_rate
from llamaseek.recipe.reading import apply_override, as_words, validated
from llamaseek.recipe.schema import DataRecipe, Recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.finetune.fit import Cost, fitted
from llamaseek.train.jobs.supervised import PACKERS, split_rows
from llamaseek.train.start import recipe_tokenizer

STAGES: dict[Kind, str] = {
    "conversations": "sft",
    "prompt_completion": "sft",
    "labels": "sft",
    "preferences": "dpo",
    "ratings": "dpo",  # of each prompt its better answers beside its worse, if there are two
    "text": "pretrain",
}
TOY = 30e6  # parameters below which all weights are trained: adapters are for real models
RANK = 16  # of adapters on all linear layers; QLoRA §4: which layers have them matters, not r
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
LOOKED_AT = 2000  # rows that are packed to count the packed rows of an epoch
LONGEST = 64  # rows of the most characters, whose tokens decide the length of packed rows
HELD_OUT = 200  # rows held out at the most, and a quarter of few
STEPS = 60  # least optimizer steps that epochs are added for
MOST_EPOCHS = 3  # more of them overfit few rows
LABEL_EPOCHS = 5  # a label has few tokens to learn
EVALUATIONS = 8  # of a run at the most
BEST = {"train.load_best_model_at_end": True, "train.early_stopping_patience": 3}
"""Where rows are held out: the weights that are best on them are kept."""
QUANTIZATION = re.compile(r"[.-](I?Q\d\w*|B?F\d+)$", re.IGNORECASE)  # at the end of a GGUF's name
CHARACTERS = 20_000_000  # of text that are tokenized to count its tokens


@dataclass(frozen=True)
class Wanted:
    """What a user asked for; `method` and `epochs` are chosen where they are None."""

    model: Path
    sources: list[str]
    method: str | None = None
    epochs: float | None = None
    out: str | None = None
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TuningPlan:
    """A recipe, and what it was chosen from."""

    recipe: Recipe
    rows: DetectedRows
    held_out: int  # rows, 0 for text
    packed: int  # rows of `data.length` tokens in an epoch
    epochs: float
    cost: Cost

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps of one epoch."""
        return ceil(self.packed / self.recipe.train.batch)


def choose(wanted: Wanted) -> TuningPlan:
    """The plan for a model and data. Raises UserError for data that cannot be trained on, a
    method that does not fit the machine, and overrides that are not allowed.
    """
    given: dict[str, Any] = {"data": {"sources": wanted.sources}}
    for override in wanted.overrides:
        apply_override(given, override)
    data = validated(DataRecipe, given["data"], "data")
    rows = detect(wanted.sources, data.columns, data.encoding, data.format)
    if len(rows.labels) == 1:
        only = shorten(repr(*rows.labels))
        raise UserError(f"{data.sources[0]}: all labels are {only}, so there is nothing to learn")
    if data.columns:  # with those that were found beside them
        columns = as_words({"data.columns": {**rows.columns, **data.columns}})
        wanted = replace(wanted, overrides=[*wanted.overrides, *columns])
    config = read_config(wanted.model)
    draft = _draft(wanted, rows, config, _stage(data, rows))
    recipe = draft.with_overrides(wanted.overrides)
    recipe, packed, whole = _packing(recipe, config, "length" not in data.model_fields_set)
    most = LABEL_EPOCHS if rows.kind == "labels" else MOST_EPOCHS
    recipe, epochs = _steps(recipe, wanted, packed, most, given.get("train", {}))
    if whole or (recipe.stage == "pretrain" and recipe.data.holdout):
        recipe = recipe.with_overrides(BEST)
    method = "full" if recipe.lora is None else "qlora" if recipe.lora.base == "nf4" else "lora"
    recipe, cost = fitted(recipe, config, method, asked=wanted.method is not None)
    recipe = recipe.with_overrides(wanted.overrides)
    return TuningPlan(recipe, rows, whole, packed, epochs, cost)


def _draft(wanted: Wanted, rows: DetectedRows, config: ModelConfig, stage: str) -> Recipe:
    """Everything that does not depend on how long the rows are."""
    parameters = count_parameters(config).total
    method = wanted.method or ("full" if parameters < TOY else "lora")
    adapters = {"rank": RANK, "alpha": 2.0 * RANK, "base": "nf4" if method == "qlora" else "float"}
    held_out = min(HELD_OUT, rows.rows // 4) / rows.rows if stage != "pretrain" else 0.1
    name = f"{_stem(wanted.model)}-{_rows_name(wanted.sources)}"
    return Recipe.model_validate({
        "name": name,
        "stage": stage,
        "out": wanted.out,
        "model": {"init_from": str(wanted.model)},
        "data": {
            "sources": wanted.sources,
            "format": rows.format,
            "columns": rows.columns,
            "holdout": held_out,
            "shuffle": stage != "pretrain",
            "length": LENGTHS[0],
        },
        "train": {
            "lr": _rounded(usual_rate(parameters, stage, method != "full")),
            "weight_decay": 0.1 if method == "full" else 0.0,
            "keep": 1,
            "samples": HELD_OUT if rows.kind in ("labels", "prompt_completion") else 10,
        },
        "lora": None if method == "full" else adapters,
    })  # fmt: skip


def _stage(data: DataRecipe, rows: DetectedRows) -> str:
    """The stage for a kind of rows; rated answers that make no pair train a reward model."""
    if rows.kind == "ratings":
        try:
            every = list(file_rows(data.sources, data.encoding))
            pairs_of_ratings(every, rows.columns, BadRows.of(data))
        except NoPairs:
            return "reward"
    return STAGES[rows.kind]


def _stem(model: Path) -> str:
    """A model's name: of its file or folder, the run's where the folder is called `model`."""
    path = model.resolve()
    name = (path.parent if path.name == "model" else path).name.removesuffix(GGUF_SUFFIX)
    return QUANTIZATION.sub("", name).lower()


def _rows_name(sources: list[str]) -> str:
    """The name of the first file or folder; of several files, or a glob, that of their folder."""
    first = Path(sources[0])
    several = len(sources) > 1 or glob.has_magic(first.name)
    name = (several and first.parent.name) or first.stem
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "rows"


def _rounded(rate: float) -> float:
    """To two digits, as people write rates."""
    return float(f"{rate:.1e}")


def _packing(recipe: Recipe, config: ModelConfig, free: bool) -> tuple[Recipe, int, int]:
    """The recipe with the length that its rows need, packed rows in an epoch, rows held out."""
    if recipe.stage == "pretrain":
        length = min(recipe.data.length, config.max_position_embeddings)
        recipe = recipe.with_overrides({"data.length": length})
        return recipe, max(_tokens(recipe) // length, 1), 0
    tokenizer = recipe_tokenizer(recipe)
    train, held_out = split_rows(recipe)
    few = train[:LOOKED_AT]
    longest = nlargest(LONGEST, [*train, *held_out], key=lambda row: len(str(row[1])))
    lengths = sorted({min(length, config.max_position_embeddings) for length in LENGTHS})
    for length in lengths if free else [recipe.data.length]:
        recipe = recipe.with_overrides({"data.length": length})
        bad = _packed(recipe, tokenizer, longest)[1]
        if not bad.reasons["too long"]:
            break
    rows, others = _packed(recipe, tokenizer, few)
    if not rows:
        raise UserError(next(iter(others.first.values())))
    if bad.reasons["too long"] and free:  # in the longest rows that the model has
        recipe = recipe.with_overrides({"data.bad_rows": "skip"})
    return recipe, max(round(rows * len(train) / len(few)), 1), len(held_out)


def _packed(recipe: Recipe, tokenizer: Tokenizer, rows: list[Row]) -> tuple[int, BadRows]:
    """How many packed rows the recipe makes of rows, and which do not fit its length; other bad
    ones are errors.
    """
    data, bad = recipe.data, BadRows(skip=True)
    further = {"form": recipe.train.dpo_form} if recipe.stage == "dpo" else {}
    reader = RowReader.of(data)
    pack = PACKERS[recipe.stage]
    try:
        packed = len(pack(rows, tokenizer, data.length, reader=reader, bad=bad, **further).tokens)
    except NoRows:
        packed = 0
    others = [reason for reason in bad.reasons if reason != "too long"]
    if others and data.bad_rows == "error":
        raise UserError(f"{bad.first[others[0]]}; {HINT}")
    return packed, bad


def _tokens(recipe: Recipe) -> int:
    """Tokens of the training text, counted in its beginning where there is much of it."""
    tokenizer = Tokenizer.load(recipe.model.init_from or "")
    data, total, read, tokens = recipe.data, 0, 0, 0
    column = data.columns.get("text", "text")
    for document in read_documents(data.sources, BadRows.of(data), column, data.encoding):
        total += len(document.text)
        if read < CHARACTERS:
            read += len(document.text)
            tokens += len(tokenizer.encode(document.text)) + len(tokenizer.prefix_ids)
    if not read:
        raise UserError(f"data.sources: {data.sources} hold no text")
    return round(tokens * total / read * (1 - data.holdout))


def _steps(
    recipe: Recipe, wanted: Wanted, packed: int, most: int, given: dict[str, Any]
) -> tuple[Recipe, float]:
    """The recipe with batch, steps, warm-up and evaluations, and its epochs."""
    batch = given.get("batch") or _batch(recipe, packed)
    each = ceil(packed / batch)
    epochs = wanted.epochs or min(max(ceil(STEPS / each), 1), most)
    if "steps" in given:
        epochs = given["steps"] * batch / packed
    steps = max(ceil(epochs * packed / batch), 1)
    fields = {
        "train.batch": batch,
        "train.steps": steps,
        "train.warmup": max(steps // 10, 1),
        "train.eval_every": ceil(steps / EVALUATIONS),
        "train.save_every": steps,
    }
    return recipe.with_overrides(fields), epochs


def _batch(recipe: Recipe, packed: int) -> int:
    """Packed rows a step: a fiftieth of an epoch, at least one and at most 16,384 tokens."""
    most = max(16384 // recipe.data.length, 1)
    return min(max(round(packed / 50), 1), most)
