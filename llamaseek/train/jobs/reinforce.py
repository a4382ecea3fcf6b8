"""From a GRPO or PPO recipe to a job: prompts, rewards, the sampler, and the algorithm's parts."""

from __future__ import annotations

from functools import partial

import torch

from llamaseek.data.bad_rows import BadRows, Row
from llamaseek.data.builtin.rows import generated_rows
from llamaseek.data.formats import RowReader
from llamaseek.errors import UserError, bad_value
from llamaseek.models import CausalLM
from llamaseek.models.score import add_value_head
from llamaseek.recipe.schema import Recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.job import Job
from llamaseek.train.jobs.supervised import split_rows
from llamaseek.train.objectives import Objective
from llamaseek.train.objectives.grpo import GRPO
from llamaseek.train.objectives.ppo import PPO
from llamaseek.train.rewards import make_rewards
from llamaseek.train.rollouts.answers import AnswerSampler, Prompt, read_prompts
from llamaseek.train.rollouts.assess import ActorCritic, GroupRelative
from llamaseek.train.rollouts.rollout import (
    AdvantageEstimator,
    HeldOutRewards,
    LogProbScorer,
    Rollouts,
)
from llamaseek.train.start import start_from


def grpo_job(recipe: Recipe) -> Job:
    """Group relative policy optimization; there is a reference only where there is a KL to it."""
    _check(recipe)
    if recipe.rollout.samples < 2:
        raise bad_value("rollout.samples", recipe.rollout.samples, "at least 2")
    tokenizer, model = start_from(recipe)
    rollout = recipe.rollout
    objective = GRPO(
        recipe.grpo, rollout.temperature, rollout.max_tokens, recipe.train.balance_weight
    )
    scored = LogProbScorer(recipe, model, reference=recipe.grpo.beta > 0)
    return _job(recipe, tokenizer, model, objective, GroupRelative(recipe, scored))


def ppo_job(recipe: Recipe) -> Job:
    """Proximal policy optimization with a value head on the policy's trunk."""
    _check(recipe)
    tokenizer, model = start_from(recipe)
    scored = LogProbScorer(recipe, model, reference=True)
    add_value_head(model)
    objective = PPO(recipe.ppo, recipe.rollout.temperature, recipe.train.balance_weight)
    return _job(recipe, tokenizer, model, objective, ActorCritic(recipe, scored))


def _check(recipe: Recipe) -> None:
    if not recipe.rollout.rewards:
        raise UserError("rollout.rewards: is empty; give at least one, as {kind: numeric}")
    answers, samples = recipe.train.batch * recipe.rollout.minibatches, recipe.rollout.samples
    if answers % samples:
        allowed = f"a number that divides train.batch × rollout.minibatches ({answers})"
        raise bad_value("rollout.samples", samples, allowed)


def _job(
    recipe: Recipe,
    tokenizer: Tokenizer,
    model: CausalLM,
    objective: Objective,
    assess: AdvantageEstimator,
) -> Job:
    bad = BadRows.of(recipe.data)
    train, held_out = rollout_prompts(recipe, tokenizer, bad)
    rewards = make_rewards(recipe.rollout.rewards, tokenizer)
    torch.manual_seed(recipe.seed)
    most, precision = recipe.rollout.max_tokens, recipe.train.precision
    bring = assess.scored.bring
    sampler = AnswerSampler(model, tokenizer, most, recipe.seed, precision, bring)
    source = Rollouts(recipe, sampler, train, rewards, assess)
    test = HeldOutRewards(sampler, held_out, rewards) if held_out else None
    job = Job(recipe, model, tokenizer, objective, source, eval_fn=test, bad_rows=bad)
    if test is not None and recipe.train.samples:
        job.examine = partial(test.examine, most=recipe.train.samples)
    return job


def rollout_prompts(
    recipe: Recipe, tokenizer: Tokenizer, bad: BadRows
) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to train on, and held-out ones, from files or the generators."""
    data, rollout = recipe.data, recipe.rollout
    reader = RowReader.of(data, [reward.column for reward in rollout.rewards])

    def read(rows: list[Row]) -> list[Prompt]:
        room = rollout.max_tokens
        return read_prompts(rows, tokenizer, data.length, room, rollout.rewards, reader, bad)

    if data.sources:
        rows, held_out = split_rows(recipe)
        held_out = held_out[: rollout.eval_prompts]
        train, tested = read(rows), read(held_out) if held_out else []
        bad.notes = reader.notes()
        return train, tested
    if not data.rows:
        raise UserError("data.sources: is empty; give files of rows, or generators in data.rows")
    few = dict.fromkeys(data.rows, max(rollout.eval_prompts // len(data.rows), 1))
    train = read(list(generated_rows(data.rows, recipe.seed, "train")))
    return train, read(list(generated_rows(few, "held out", "test")))
