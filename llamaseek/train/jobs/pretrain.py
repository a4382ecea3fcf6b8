"""From a recipe to a job: tokenizer, model, rows, objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from llamaseek.checkpoints.sources import with_sources_found
from llamaseek.data.mix.corpus import build_corpus
from llamaseek.errors import UserError, bad_value
from llamaseek.herd import ModelConfig, config_from_sizes
from llamaseek.herd.configs import extended
from llamaseek.herd.folder import read_config
from llamaseek.models import CausalLM, build_model
from llamaseek.models.drawn import undrawn_model
from llamaseek.parallel.collectives import on_first_rank
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.check import by_layer, model_config
from llamaseek.runtime.device import pick_device
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.examine import held_out_text
from llamaseek.train.job import Job
from llamaseek.train.jobs.reinforce import grpo_job, ppo_job
from llamaseek.train.jobs.supervised import dpo_job, reward_job, sft_job
from llamaseek.train.objectives.choose import make_objective
from llamaseek.train.progress import tokenizing
from llamaseek.train.saving.lock import hold, released_on_error
from llamaseek.train.saving.reads import check_reads
from llamaseek.train.saving.run_folder import RunFolder
from llamaseek.train.start import (
    adapt_model,
    check_length,
    check_speaks,
    check_vocabulary,
    trainable,
)
from llamaseek.units import counted


def build_job(recipe: Recipe, resume: bool = False) -> Job:
    """Everything a run needs; raises `UserError` before anything is written.

    Its folder is this process's from here to the end of `train`. A run that is to `resume` keeps
    the tokenizer that it has trained, whatever its text is now.
    """
    recipe = with_sources_found(recipe)
    check_reads(recipe)
    on_first_rank(lambda: hold(recipe.folder))
    with released_on_error(recipe.folder):
        if recipe.stage == "pretrain":
            job = pretrain_job(recipe, trained_tokenizer(recipe) if resume else None)
        else:
            job = JOBS[recipe.stage](recipe)
        return job if recipe.train.epochs is None else with_steps(job, recipe.train.epochs)


def with_steps(job: Job, epochs: float) -> Job:
    """The job with as many steps as `epochs` of its data take, and a line that says so."""
    rows, train = job.source.rows, job.recipe.train
    if rows is None:
        raise UserError("train.epochs: a mix of sources has no epochs; allowed: train.steps")
    each = math.ceil(rows / train.batch)
    steps = max(math.ceil(epochs * rows / train.batch), 1)
    known = {**train.model_dump(exclude={"epochs"}), "steps": steps}
    job.recipe = job.recipe.model_copy(update={"train": type(train)(**known)})
    job.bad_rows.notes.append(
        f"data: an epoch has {counted(rows, 'row')} of {job.source.length:,} tokens, "
        f"{counted(each, 'step')} of {train.batch:,}; train.epochs {epochs:g} is "
        f"{counted(steps, 'step')}"
    )
    return job


def trained_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer of a run's newest checkpoint that has one."""
    folder = RunFolder(recipe.folder)
    for step in reversed(folder.saved_steps()):
        with suppress(UserError):
            return Tokenizer.load(folder.checkpoint(step))
    return None


def pretrain_job(recipe: Recipe, tokenizer: Tokenizer | None = None) -> Job:
    """A new model, or one from a folder, on text; with `tokenizer` none is trained."""
    if recipe.data.fim and recipe.train.objective == "masked":
        raise bad_value("data.fim", recipe.data.fim, "0 with train.objective masked")
    check_model(recipe)
    with tokenizing(recipe.name) as watch:
        corpus = build_corpus(recipe, watch, tokenizer)
    model = _new_model(recipe, corpus.tokenizer)
    objective = make_objective(recipe, model, corpus.tokenizer)
    # Masked prediction covers few tokens, so its loss is not a measure per byte of text.
    size = 0 if recipe.train.objective == "masked" else corpus.held_out_bytes
    job = Job(recipe, model, corpus.tokenizer, objective, corpus.rows, corpus.held_out, size)
    job.bad_rows, job.data_fingerprint = corpus.bad_rows, corpus.fingerprint
    if recipe.data.sources and corpus.held_out is not None:
        job.examine = held_out_text(recipe, model, corpus.tokenizer, corpus.held_out)
    return job


JOBS: dict[str, Callable[[Recipe], Job]] = {
    "pretrain": pretrain_job,
    "sft": sft_job,
    "dpo": dpo_job,
    "reward": reward_job,
    "grpo": grpo_job,
    "ppo": ppo_job,
}
"""How the job of each of `recipe.stages.STAGES` is built."""


def check_model(recipe: Recipe) -> None:
    """Check what can be wrong with the model before its text is tokenized."""
    if recipe.model.init_from:
        masked = recipe.train.objective == "masked"
        check_speaks("model.init_from", recipe.model.init_from, masked)
        config = starting_config(recipe)
    elif recipe.model.extend is not None:
        raise UserError("model.extend: needs model.init_from, the model whose context is extended")
    else:
        config = model_config(recipe)
    check_length(recipe, config)


def _new_model(recipe: Recipe, tokenizer: Tokenizer) -> CausalLM:
    if recipe.model.init_from:
        folder = Path(recipe.model.init_from)
        model = trainable(folder, starting_config(recipe), by_layer(recipe))
        check_vocabulary(model, tokenizer)
        if recipe.lora is not None:
            adapt_model(model, recipe.lora, recipe.seed)
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
    if by_layer(recipe) and recipe.train.float8 == "none":
        device = pick_device(recipe.train.device)
        return undrawn_model(lambda: build_model(config), device, recipe.seed)
    torch.manual_seed(recipe.seed)
    return build_model(config)


def starting_config(recipe: Recipe) -> ModelConfig:
    """The config of `model.init_from`, its context extended where `model.extend` says so."""
    config = read_config(recipe.model.init_from or "")
    extend = recipe.model.extend
    return config if extend is None else extended(config, extend.to, extend.rope, extend.factor)
