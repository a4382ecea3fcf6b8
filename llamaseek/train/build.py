"""From a recipe to a job: tokenizer, model, rows, objective."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llamaseek.data.batch import Batch, Rows
from llamaseek.data.documents import read_documents
from llamaseek.data.mixture import mixed_documents
from llamaseek.data.pack import pack_text
from llamaseek.data.rows import conversations, file_rows, generated_rows, preferences
from llamaseek.errors import UserError, bad_value
from llamaseek.herd import DeepseekV3Config, config_from_sizes
from llamaseek.herd.folder import read_config
from llamaseek.models import CausalLM, build_model
from llamaseek.models.checkpoint import load_model
from llamaseek.recipe import Recipe
from llamaseek.text.special import SPECIAL_TOKENS
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.text.train_bpe import train_bpe
from llamaseek.train.loop import Job
from llamaseek.train.loss import softmax_and_gradient
from llamaseek.train.machine import autocast, pick_device
from llamaseek.train.objectives import Objective
from llamaseek.train.objectives.dpo import DPO, sum_by_sequence, target_log_probs
from llamaseek.train.objectives.masked import Masked
from llamaseek.train.objectives.multi_token import MultiToken
from llamaseek.train.objectives.next_token import NextToken


@dataclass(frozen=True)
class Text:
    """A corpus split by position: training documents first, the held-out rest last."""

    train: list[str]
    held_out: list[str]


def build_job(recipe: Recipe) -> Job:
    """Everything a run needs; raises `UserError` before anything is written."""
    if recipe.stage == "pretrain":
        return _pretrain_job(recipe)
    tokenizer, model = _start_from(recipe)
    if recipe.stage == "sft":
        return _sft_job(recipe, tokenizer, model)
    return _dpo_job(recipe, tokenizer, model)


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
    held_out = pack_documents(recipe, tokenizer, text.held_out) if text.held_out else None
    return Job(
        recipe,
        model,
        tokenizer,
        make_objective(recipe, model, tokenizer),
        Rows(pack_documents(recipe, tokenizer, text.train), recipe.seed),
        held_out,
        sum(len(document.encode()) for document in text.held_out),
    )


def pack_documents(recipe: Recipe, tokenizer: Tokenizer, documents: list[str]) -> Batch:
    """Rows of whole text, each document between its begin and its end token."""
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


def check_vocabulary(model: CausalLM, tokenizer: Tokenizer) -> None:
    """A tokenizer with more ids than the model has rows cannot be used with it."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"tokenizer: has {tokenizer.vocab_size} ids, but the model's vocabulary is "
            f"{model.config.vocab_size}"
        )


def _start_from(recipe: Recipe) -> tuple[Tokenizer, CausalLM]:
    if not recipe.model.init_from:
        raise UserError("model.init_from: is empty; give the folder of a pre-trained model")
    folder = Path(recipe.model.init_from)
    read_config(folder)
    tokenizer = Tokenizer.load(Path(recipe.tokenizer.path or folder))
    model = load_model(folder)
    check_vocabulary(model, tokenizer)
    return tokenizer, model


def _sft_job(recipe: Recipe, tokenizer: Tokenizer, model: CausalLM) -> Job:
    data = recipe.data
    skip = data.bad_rows == "skip"
    objective = make_objective(recipe, model, tokenizer)
    if data.sources:
        whole = conversations(file_rows(data.sources), tokenizer, data.length, skip)
        train, held_out = _split_rows(whole, data.holdout)
    else:
        train = conversations(
            generated_rows(data.rows, recipe.seed, "train"), tokenizer, data.length
        )
        few = dict.fromkeys(data.rows, 200)
        held_out = conversations(generated_rows(few, recipe.seed, "test"), tokenizer, data.length)
    return Job(recipe, model, tokenizer, objective, Rows(train, recipe.seed), held_out)


def _dpo_job(recipe: Recipe, tokenizer: Tokenizer, model: CausalLM) -> Job:
    data, form = recipe.data, recipe.train.dpo_form
    skip = data.bad_rows == "skip"
    if data.sources:
        whole = preferences(file_rows(data.sources), tokenizer, data.length, form, skip)
        train, held_out = _split_rows(whole, data.holdout)
    else:
        rows = generated_rows(data.rows, recipe.seed, "train")
        train = preferences(rows, tokenizer, data.length, form)
        few = dict.fromkeys(data.rows, 200)
        rows = generated_rows(few, recipe.seed, "test")
        held_out = preferences(rows, tokenizer, data.length, form)
    objective = make_objective(recipe, model, tokenizer)
    train = with_reference(recipe, model, train)
    held_out = with_reference(recipe, model, held_out) if held_out is not None else None
    return Job(recipe, model, tokenizer, objective, Rows(train, recipe.seed), held_out)


def _split_rows(whole: Batch, holdout: float) -> tuple[Batch, Batch | None]:
    rows = whole.tokens.shape[0]
    kept = max(rows - int(rows * holdout), 1)
    held_out = whole.select(slice(kept, rows)) if kept < rows else None
    return whole.select(slice(0, kept)), held_out


@torch.no_grad()
def with_reference(recipe: Recipe, model: CausalLM, batch: Batch) -> Batch:
    """The batch with the answers' log-probabilities under the model as it is now."""
    device = pick_device(recipe.train.device)
    model.to(device).eval()
    sums = []
    for part in batch.split(recipe.train.batch):
        part = part.to(device)
        with autocast(recipe.train, device):
            sums.append(sum_by_sequence(target_log_probs(model, part), part).cpu())
    return replace(batch, extra={**batch.extra, "reference": torch.cat(sums)})


def make_objective(recipe: Recipe, model: CausalLM, tokenizer: Tokenizer) -> Objective:
    """The objective a recipe names; refuses one the model cannot be trained with."""
    train = recipe.train
    balance = train.balance_weight
    kernel = torch.compile(softmax_and_gradient) if train.compile else softmax_and_gradient
    if train.objective == "multi_token":
        config = model.config
        depth = config.num_nextn_predict_layers if isinstance(config, DeepseekV3Config) else 0
        if depth == 0:
            allowed = "a deepseek_v3 model with num_nextn_predict_layers of at least 1"
            raise UserError(f"train.objective: multi_token needs {allowed}")
        return MultiToken(depth, train.mtp_weight, balance, kernel)
    if train.objective == "masked":
        ordinary = tokenizer.vocab_size - len(SPECIAL_TOKENS)
        return Masked(recipe.seed, tokenizer.mask_id, ordinary, balance, kernel)
    if train.objective == "dpo" or recipe.stage == "dpo":
        nll = train.dpo_nll if train.dpo_form == "llama3" else 0.0
        return DPO(train.dpo_beta, nll, balance)
    return NextToken(balance, kernel)
