"""From a recipe to a job: tokenizer, model, rows, objective."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from llamaseek.data.batch import Batch, Rows
from llamaseek.data.documents import read_documents
from llamaseek.data.mixture import mixed_documents
from llamaseek.data.pack import pack_text
from llamaseek.errors import UserError, bad_value
from llamaseek.herd import config_from_sizes
from llamaseek.models import CausalLM, build_model
from llamaseek.models.checkpoint import load_model
from llamaseek.recipe import Recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.text.train_bpe import train_bpe
from llamaseek.train.loop import Job
from llamaseek.train.objectives.choose import make_objective
from llamaseek.train.post import post_job
from llamaseek.train.start import check_vocabulary


@dataclass(frozen=True)
class Text:
    """A corpus split by position: training documents first, the held-out rest last."""

    train: list[str]
    held_out: list[str]


def build_job(recipe: Recipe) -> Job:
    """Everything a run needs; raises `UserError` before anything is written."""
    if recipe.stage == "pretrain":
        return _pretrain_job(recipe)
    return post_job(recipe)


def read_text(recipe: Recipe) -> Text:
    """The documents of a recipe: its files, or the built-in mix."""
    data = recipe.data
    if not data.sources and not data.mix:
        raise UserError("data.sources: is empty; give files or folders, or weights in data.mix")
    if data.sources:
        documents = [document.text for document in read_documents(data.sources)]
    else:
        documents = mixed_documents(data.mix, data.mix_bytes, recipe.seed)
    return split_by_position(documents, data.holdout)


def split_by_position(documents: list[str], holdout: float) -> Text:
    """The last `holdout` of the text's characters apart; the document at the border is cut."""
    border = round(sum(map(len, documents)) * (1 - holdout))
    train, held_out = [], []
    for document in documents:
        here = max(min(border, len(document)), 0)
        train.append(document[:here])
        held_out.append(document[here:])
        border -= len(document)
    return Text([text for text in train if text], [text for text in held_out if text])


def _pretrain_job(recipe: Recipe) -> Job:
    text = read_text(recipe)
    if recipe.tokenizer.path:
        tokenizer = Tokenizer.load(Path(recipe.tokenizer.path))
    else:
        tokenizer = train_bpe(text.train, recipe.tokenizer.vocab_size)
    model = _new_model(recipe, tokenizer)
    held_out = _text_rows(recipe, tokenizer, text.held_out) if text.held_out else None
    return Job(
        recipe,
        model,
        tokenizer,
        make_objective(recipe, model, tokenizer),
        Rows(_text_rows(recipe, tokenizer, text.train), recipe.seed),
        held_out,
        sum(len(document.encode()) for document in text.held_out),
    )


def _text_rows(recipe: Recipe, tokenizer: Tokenizer, documents: list[str]) -> Batch:
    encoded = tokenizer.encode_batch(documents)
    begin, end = [tokenizer.bos_id], [tokenizer.eos_id]
    return pack_text(
        (begin + ids + end for ids in encoded), recipe.data.length, recipe.data.isolate
    )


def _new_model(recipe: Recipe, tokenizer: Tokenizer) -> CausalLM:
    if recipe.model.init_from:
        model = load_model(recipe.model.init_from)
        check_vocabulary(model, tokenizer)
        return model
    sizes = dict(recipe.model.config)
    asked = sizes.setdefault("vocab_size", tokenizer.vocab_size)
    if asked != tokenizer.vocab_size:
        raise UserError(
            f"model.config.vocab_size: {asked} does not match the tokenizer's "
            f"{tokenizer.vocab_size} ids"
        )
    sizes["is_causal"] = recipe.train.objective != "masked"
    sizes |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    sizes["pad_token_id"] = tokenizer.pad_id
    config = config_from_sizes(recipe.model.family, sizes)
    if recipe.data.length > config.max_position_embeddings:
        allowed = f"at most model.config.max_position_embeddings ({config.max_position_embeddings})"
        raise bad_value("data.length", recipe.data.length, allowed)
    torch.manual_seed(recipe.seed)
    return build_model(config)
