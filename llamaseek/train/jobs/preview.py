"""A preview of training rows, exactly as a run reads them; no model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from llamaseek.checkpoints.sources import with_sources_found
from llamaseek.data.bad_rows import BadRows
from llamaseek.data.batch import IGNORE, Batch
from llamaseek.data.formats import RowReader
from llamaseek.data.mix.corpus import build_corpus
from llamaseek.data.pack import Example
from llamaseek.data.rows import Span, stretches
from llamaseek.data.source import Rows
from llamaseek.recipe.schema import Recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.job import Source
from llamaseek.train.jobs.reinforce import rollout_prompts
from llamaseek.train.jobs.supervised import packer, read_data, training_part
from llamaseek.train.progress import tokenizing
from llamaseek.train.rollouts.answers import Prompt, read_prompts
from llamaseek.train.rollouts.rollout import prompt_order
from llamaseek.train.start import recipe_tokenizer


@dataclass(frozen=True)
class ShownRow:
    """A row's documents as spans of text, and counts of its tokens.

    `judged` is what the model's own answer to a prompt will be held against, by column.
    """

    documents: list[list[Span]]
    tokens: int
    in_loss: int
    padding: int
    judged: dict[str, str] | None = None


def training_rows(recipe: Recipe, count: int) -> Iterator[ShownRow]:
    """The first `count` rows of a recipe's first step. UserError as the run itself would raise."""
    recipe = with_sources_found(recipe, "tokenizer")
    if recipe.samples:
        return _prompt_rows(recipe, count)
    source, tokenizer = _source(recipe)
    batch = source.step(0, count)
    if recipe.stage == "reward":
        batch = _at_the_scores(batch)
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
        item = Example(tokens[start:stop], targets[start:stop])
        documents.append(stretches(item, tokenizer))
    in_loss = int((torch.tensor(targets[:used]) != IGNORE).sum())
    return ShownRow(documents, used, in_loss, len(tokens) - used)


def _at_the_scores(batch: Batch) -> Batch:
    """Ranked answers with a target where the last token of each is reached: there is the score."""
    targets = batch.targets.clone()
    for row, ends in enumerate(batch.extra["ends"].tolist()):
        for end in ends:
            if end > 0:
                targets[row, end - 1] = batch.tokens[row, end]
    return replace(batch, targets=targets)


def _prompt_rows(recipe: Recipe, count: int) -> Iterator[ShownRow]:
    tokenizer = recipe_tokenizer(recipe)
    rewards = recipe.sampling.rewards if recipe.sampling else recipe.rollout.rewards
    columns = [one.column for one in rewards]
    prompts = prompts_of(recipe, tokenizer, BadRows.of(recipe.data))
    for prompt in prompts[:count]:
        documents = [stretches(Example(prompt.ids, [IGNORE] * len(prompt.ids)), tokenizer)]
        judged = {name: str(prompt.row[name]) for name in columns if name in prompt.row}
        yield ShownRow(documents, len(prompt.ids), 0, 0, judged)


def prompts_of(recipe: Recipe, tokenizer: Tokenizer, bad: BadRows) -> list[Prompt]:
    """The prompts of a recipe whose rows a model answers, in the order in which it does."""
    if recipe.sampling is None:
        prompts = rollout_prompts(recipe, tokenizer, bad)[0]
        return [prompts[place] for place in prompt_order(len(prompts), recipe.seed, 0)]
    plan, data = recipe.sampling, recipe.data
    return read_prompts(
        training_part(recipe), tokenizer, data.length, plan.max_tokens, plan.rewards,
        RowReader.of(data), bad,
    )  # fmt: skip


def _source(recipe: Recipe) -> tuple[Source, Tokenizer]:
    if recipe.stage == "pretrain":
        with tokenizing(recipe.name) as watch:
            corpus = build_corpus(recipe, watch)
        return corpus.rows, corpus.tokenizer
    tokenizer = recipe_tokenizer(recipe)
    train = read_data(recipe, packer(recipe, tokenizer))[0]
    return Rows(train, recipe.seed), tokenizer
