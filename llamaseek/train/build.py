"""From a recipe to a job: tokenizer, model, rows, objective."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from llamaseek.data.batch import Batch, Rows
from llamaseek.data.mix.corpus import build_corpus
from llamaseek.data.rows import conversations, file_rows, generated_rows, preferences
from llamaseek.errors import UserError, bad_value
from llamaseek.herd import DeepseekV3Config, ModelConfig, config_from_sizes
from llamaseek.herd.extend import extended
from llamaseek.herd.folder import read_config
from llamaseek.models import CausalLM, build_model
from llamaseek.models.checkpoint import load_model
from llamaseek.recipe import Recipe
from llamaseek.text.special import SPECIAL_TOKENS
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.loop import Job
from llamaseek.train.loss import softmax_and_gradient
from llamaseek.train.machine import autocast, pick_device
from llamaseek.train.objectives import Objective
from llamaseek.train.objectives.dpo import DPO, sum_by_sequence, target_log_probs
from llamaseek.train.objectives.masked import Masked
from llamaseek.train.objectives.multi_token import MultiToken
from llamaseek.train.objectives.next_token import NextToken
from llamaseek.train.progress import tokenizing


def build_job(recipe: Recipe) -> Job:
    """Everything a run needs; raises `UserError` before anything is written."""
    if recipe.stage == "pretrain":
        return _pretrain_job(recipe)
    tokenizer, model = _start_from(recipe)
    if recipe.stage == "sft":
        return _sft_job(recipe, tokenizer, model)
    return _dpo_job(recipe, tokenizer, model)


def _pretrain_job(recipe: Recipe) -> Job:
    if recipe.data.fim and recipe.train.objective == "masked":
        raise bad_value("data.fim", recipe.data.fim, "0 with train.objective masked")
    with tokenizing(recipe.name) as watch:
        corpus = build_corpus(recipe, watch)
    model = _new_model(recipe, corpus.tokenizer)
    objective = make_objective(recipe, model, corpus.tokenizer)
    tested = corpus.held_out, corpus.held_out_bytes
    return Job(recipe, model, corpus.tokenizer, objective, corpus.rows, *tested)


def _new_model(recipe: Recipe, tokenizer: Tokenizer) -> CausalLM:
    if recipe.model.init_from:
        folder = Path(recipe.model.init_from)
        config = starting_config(recipe)
        _check_length(recipe, config)
        model = load_model(folder, config=config)
        check_vocabulary(model, tokenizer)
        return model
    if recipe.model.extend is not None:
        raise UserError("model.extend: needs model.init_from, a model whose context it extends")
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
    _check_length(recipe, config)
    torch.manual_seed(recipe.seed)
    return build_model(config)


def starting_config(recipe: Recipe) -> ModelConfig:
    """The config of `model.init_from`, its context extended where `model.extend` says so."""
    config = read_config(recipe.model.init_from or "")
    extend = recipe.model.extend
    return config if extend is None else extended(config, extend.to, extend.rope, extend.factor)


def _check_length(recipe: Recipe, config: ModelConfig) -> None:
    if recipe.data.length > config.max_position_embeddings:
        allowed = f"at most model.config.max_position_embeddings ({config.max_position_embeddings})"
        raise bad_value("data.length", recipe.data.length, allowed)


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
