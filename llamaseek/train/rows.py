"""Training rows to look at, exactly as a run would read them; no model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from llamaseek.data.bad_rows import BadRows, Row
from llamaseek.data.batch import IGNORE, Batch, Rows
from llamaseek.data.formats import RowReader
from llamaseek.data.mix.corpus import build_corpus
from llamaseek.data.pack import Packable
from llamaseek.data.rankings import preferences
from llamaseek.data.rows import Stretch, conversations, stretches
from llamaseek.errors import UserError
from llamaseek.recipe import Recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.post import read_data
from llamaseek.train.progress import tokenizing
from llamaseek.train.source import Source


@dataclass(frozen=True)
class ShownRow:
    """A row's documents as stretches of text, and counts of its tokens."""

    documents: list[list[Stretch]]
    tokens: int
    learnt: int
    padding: int


def training_rows(recipe: Recipe, count: int) -> Iterator[ShownRow]:
    """The first `count` rows of a recipe's first step. UserError as the run itself would raise."""
    source, tokenizer = _source(recipe)
    batch = source.step(0, count)
    return (shown_row(batch, row, tokenizer) for row in range(count))


def shown_row(batch: Batch, row: int, tokenizer: Tokenizer) -> ShownRow:
    """One row of a batch, cut where positions restart."""
    tokens, targets = batch.tokens[row].tolist(), batch.targets[row].tolist()
    places = batch.positions[row].tolist()
    used = len(tokens)
    while used > 1 and places[used - 1] == 0 and targets[used - 1] == IGNORE:
        used -= 1  # a single token that predicts nothing: filled up
    starts = [i for i in range(used) if places[i] == 0]
    documents = []
    for start, stop in zip(starts, [*starts[1:], used], strict=True):
        item = Packable(tokens[start:stop], targets[start:stop])
        documents.append(stretches(item, tokenizer))
    learnt = int((torch.tensor(targets[:used]) != IGNORE).sum())
    return ShownRow(documents, used, learnt, len(tokens) - used)


def _source(recipe: Recipe) -> tuple[Source, Tokenizer]:
    if recipe.stage == "pretrain":
        with tokenizing(recipe.name) as watch:
            corpus = build_corpus(recipe, watch)
        return corpus.rows, corpus.tokenizer
    if recipe.stage not in ("sft", "dpo"):
        raise UserError(
            f"stage: {recipe.stage} has no rows to inspect; allowed: pretrain, sft, dpo"
        )
    tokenizer = _tokenizer(recipe)

    def pack(rows: Iterable[Row], reader: RowReader, bad: BadRows) -> Batch:
        if recipe.stage == "sft":
            return conversations(rows, tokenizer, recipe.data.length, reader, bad)
        form = recipe.train.dpo_form
        return preferences(rows, tokenizer, recipe.data.length, form, reader, bad)

    train = read_data(recipe, pack)[0]
    return Rows(train, recipe.seed), tokenizer


def _tokenizer(recipe: Recipe) -> Tokenizer:
    folder = recipe.tokenizer.path or recipe.model.init_from
    if not folder:
        raise UserError("model.init_from: is empty; its folder's tokenizer makes the rows")
    return Tokenizer.load(Path(folder))
