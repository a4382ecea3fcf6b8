"""What `--dry-run` does: open every input of a recipe as the run would, and say what it found.

No weights are loaded and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.documents import list_files, read_documents
from llamaseek.data.hub import SCHEME, read_hub
from llamaseek.data.mix.sources import check_sources
from llamaseek.errors import UserError
from llamaseek.herd.folder import read_config, stored_tensors
from llamaseek.recipe.schema import Recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.jobs.pretrain import check_model
from llamaseek.train.jobs.preview import prompts_of
from llamaseek.train.jobs.supervised import packer, read_data, training_part
from llamaseek.train.start import check_start, recipe_tokenizer
from llamaseek.units import counted


def inputs_found(recipe: Recipe) -> Iterator[str]:
    """A line for each input that was opened: models, tokenizer, data.

    Raises the UserError that the run would: for what is missing, broken, or of another kind, and
    for rows that its stage cannot use.
    """
    if recipe.stage == "pretrain":
        check_model(recipe)
    else:
        check_start(recipe)
    yield from (_model(field, folder) for field, folder in _models(recipe))
    if recipe.stage == "pretrain":
        folder = recipe.tokenizer.path or recipe.model.init_from
        yield from [_tokenizer(folder, Tokenizer.load(folder))] if folder else []
        check_sources(recipe.data)
        yield from _texts(recipe)
        return
    tokenizer = recipe_tokenizer(recipe)
    yield _tokenizer(recipe.tokenizer.path or recipe.model.init_from, tokenizer)
    yield from _rows(recipe, tokenizer)


def _models(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The fields that name models, and the folders."""
    if recipe.model.init_from:
        yield "model.init_from", recipe.model.init_from
    if recipe.distill is not None:
        yield "distill.teacher", recipe.distill.teacher
    if recipe.sampling is not None and recipe.sampling.teacher:
        yield "sampling.teacher", recipe.sampling.teacher
    rewards = [*recipe.rollout.rewards, *(recipe.sampling.rewards if recipe.sampling else [])]
    yield from (("rewards.model", reward.model) for reward in rewards if reward.model)


def _model(field: str, folder: str) -> str:
    config, tensors = read_config(folder), stored_tensors(Path(folder))
    if not tensors:
        raise UserError(f"{field}: {folder} holds no weights")
    numbers = sum(prod(tensor.shape) for tensor in tensors.values())
    return (
        f"{field}: {folder}, {config.num_hidden_layers} layers, {numbers:,} stored numbers, "
        f"context {config.max_position_embeddings:,}"
    )


def _tokenizer(folder: str | None, tokenizer: Tokenizer) -> str:
    return f"tokenizer: {folder}, {tokenizer.vocab_size:,} ids"


def _texts(recipe: Recipe) -> Iterator[str]:
    """Of every corpus its files, of which the first document is read."""
    data = recipe.data
    corpora = {"data.sources": data.sources} if data.sources else {
        f"data.corpora.{name}": paths for name, paths in data.corpora.items()
    }  # fmt: skip
    for name, paths in corpora.items():
        files, column = 0, data.columns.get("text", "text")
        for path in paths:
            bad = BadRows.of(data)
            if path.startswith(SCHEME):
                texts, found = read_hub(path, 0, 1, bad), 1
            else:
                texts, found = (
                    read_documents([path], bad, column, data.encoding),
                    len(list_files(path)),
                )
            next(texts, None)
            files += found
        yield f"{name}: {counted(files, 'file')} of text"


def _rows(recipe: Recipe, tokenizer: Tokenizer) -> Iterator[str]:
    """All rows of the recipe's files, packed or read as prompts; generators are only named."""
    data = recipe.data
    if not data.sources:
        given = training_part(recipe) if not data.rows else ()  # the error of a recipe without any
        next(iter(given), None)
        counts = ", ".join(f"{name} {count:,}" for name, count in data.rows.items())
        yield f"data.rows: {counts}, generated"
        return
    if recipe.samples:
        bad = BadRows.of(data)
        prompts = prompts_of(recipe, tokenizer, bad)
        yield f"data.sources: {counted(len(prompts), 'prompt')} to be answered"
    else:
        packed, tested, bad, _ = read_data(recipe, packer(recipe, tokenizer))
        held = f", {tested.tokens.shape[0]:,} held out" if tested is not None else ""
        count, width = packed.tokens.shape
        packs = counted(count, "packed row")
        yield f"data.sources: {counted(bad.used, 'row')}, {packs} of {width:,} tokens{held}"
    yield from bad.summary()
