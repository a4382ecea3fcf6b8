"""The recipes for real models: their headers are the planner's, and they run on one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.memory import StepTracker
from llamaseek.data.batch import Batch
from llamaseek.data.source import Rows, Source
from llamaseek.herd import ModelConfig
from llamaseek.herd.published import find
from llamaseek.models import CausalLM, build_model
from llamaseek.plan.catalog import PLAN, catalog, planned
from llamaseek.plan.gpus import this_cpu
from llamaseek.plan.learning_rate import unusual_rate
from llamaseek.plan.planner import USABLE, Planner
from llamaseek.plan.recipe import layout_of_recipe, question_of
from llamaseek.recipe.reading import bundled
from llamaseek.recipe.schema import ParallelRecipe, Recipe
from llamaseek.train.job import Job
from llamaseek.train.loop import Trainer
from llamaseek.train.objectives.choose import make_objective
from llamaseek.train.objectives.grpo import GRPO
from llamaseek.train.rewards import Episode, Reward
from llamaseek.train.rollouts.answers import AnswerSampler, Prompt
from llamaseek.train.rollouts.assess import GroupRelative
from llamaseek.train.rollouts.rollout import LogProbScorer, Rollouts
from llamaseek.train.start import adapt_model
from tests.cli.run import Cli
from tests.train.tiny import tiny_tokenizer

REAL = {path.stem: path for path in bundled().values() if PLAN.search(path.read_text())}
WANTED = {
    "smollm2-135m": ("lora", "full", "dpo", "grpo", "continued"),
    "llama-3.2-1b": ("lora", "qlora", "full", "dpo"),
    "llama-3.1-8b": ("lora", "qlora", "full", "dpo"),
    "llama-3.3-70b": ("qlora",),
    "deepseek-lite": ("lora",),
}
VOCABULARY, LARGE = 16384, 12e9  # what a vocabulary is cut to, and from how many bytes on
SHORT = ("smollm2-135m-lora", "smollm2-135m-dpo", "smollm2-135m-grpo", "llama-3.2-1b-qlora")


def header(name: str) -> dict[str, Any]:
    found = PLAN.search(REAL[name].read_text())
    assert found is not None
    return found.groupdict()


def test_every_recipe_that_was_asked_for_is_there() -> None:
    assert {f"{model}-{kind}" for model, kinds in WANTED.items() for kind in kinds} == set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_a_header_is_the_planners(name: str) -> None:
    said = header(name)
    recipe = Recipe.load(REAL[name])
    assert said["line"] == planned(recipe, said["model"], said["gpu"])
    assert unusual_rate(recipe, find(said["model"]).config) is None


def test_recipes_are_listed_with_what_they_need(cli: Cli) -> None:
    done = cli("recipes")
    assert done.code == 0
    for entry in catalog():
        assert entry.name in done.out
    assert "rtx4090-24gb" in done.out and "8 × h100-80gb" in " ".join(done.out.split())


def one_layer(name: str) -> tuple[Recipe, ModelConfig]:
    """The recipe on one layer of its model (of both kinds where it has two), on one rank, a row at
    a time in float32, and rows of 512 tokens, of 128 for wide layers. The vocabulary is cut where
    the plan is large.
    """
    recipe = Recipe.load(REAL[name])
    config = find(header(name)["model"]).config
    layers = 2 if config.num_experts else 1
    config = replace(config, num_hidden_layers=layers)
    if config.num_experts:
        config = replace(config, first_k_dense_replace=1)  # type: ignore[call-arg]
    recipe = recipe.with_overrides({
        "data.length": 512 if config.hidden_size < 2048 else 128,
        "train.batch": 2, "train.micro_batch": 1, "train.precision": "fp32", "rollout.samples": 2,
    }).model_copy(update={"parallel": ParallelRecipe()})  # fmt: skip
    if planned_bytes(recipe, config) > LARGE:
        config = replace(config, vocab_size=VOCABULARY)
    return recipe, config


def planned_bytes(recipe: Recipe, config: ModelConfig) -> float:
    """The planner's, on this machine."""
    question = question_of(recipe, config, this_cpu((1e11, 2e10)))
    return Planner(question).memory(layout_of_recipe(recipe)).total


def job_of(recipe: Recipe, model: CausalLM) -> Job:
    """Three steps' work: rows of random tokens, or answers that the model draws to such prompts."""
    tokenizer = tiny_tokenizer()
    if recipe.stage != "grpo":
        objective = make_objective(recipe, model, tokenizer)
        return Job(recipe, model, tokenizer, objective, Rows(batch_of(recipe), 0))
    most = recipe.rollout.max_tokens
    ids = torch.randint(0, tokenizer.vocab_size, (recipe.data.length - most,)).tolist()
    sampler = AnswerSampler(model, tokenizer, most, recipe.seed)
    scored = LogProbScorer(recipe, model, reference=recipe.grpo.beta > 0)
    rewards = [Reward("parity", 1.0, parities)]
    prompts, estimator = [Prompt("row 1", {}, ids, [])], GroupRelative(recipe, scored)
    source = Rollouts(recipe, sampler, prompts, rewards, estimator)
    return Job(recipe, model, tokenizer, GRPO(recipe.grpo, 1.0, most), source)


def parities(episodes: Sequence[Episode]) -> list[float]:
    """Rewards that differ among answers."""
    return [float(place + episode.answer[0] % 2) for place, episode in enumerate(episodes)]


def cache_of(source: Source) -> list[Tensor]:
    """What answers are drawn with, if the step's are."""
    if not isinstance(source, Rollouts):
        return []
    assert source.sampler.engine is not None
    return [kept for store in source.sampler.engine.runner.cache.stores for kept in store.kept]


def batch_of(recipe: Recipe) -> Batch:
    """Two rows, each the micro-batch of a step."""
    tokens = torch.randint(0, VOCABULARY, (2, recipe.data.length))
    positions = torch.arange(recipe.data.length).expand(2, -1)
    batch = Batch(tokens, positions, tokens.roll(-1, 1))
    if recipe.stage == "dpo":
        half = recipe.data.length // 2
        sequence = (positions >= half).long()
        extra = {
            "sequence": sequence,
            "counts_for_preference": torch.ones_like(sequence),
            "pairs": torch.ones(2, 1, dtype=torch.int64),
            "reference": torch.zeros(2, 2),
        }
        batch = Batch(tokens, positions % half, batch.targets, extra)
    return batch


def measured(recipe: Recipe, config: ModelConfig) -> int:
    """Peak bytes of the third of three steps of the trainer on the recipe's job."""
    torch.manual_seed(0)
    model = build_model(config)
    if recipe.lora is not None:
        adapt_model(model, recipe.lora, 0)
    job = job_of(recipe, model)
    trainer = Trainer(job)
    first, second = trainer.step(0), trainer.step(1)
    tracker = StepTracker()
    tracker.track_external(model, trainer.optimizer, *cache_of(job.source))
    with tracker:
        third = trainer.step(2)
    assert third["step"] == 3 and "skipped_steps" not in second
    assert recipe.stage == "grpo" or third["loss"] < first["loss"]
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SHORT else pytest.mark.parallel) for n in REAL]
)
def test_one_layer_of_the_model_needs_what_is_planned(name: str) -> None:
    recipe, config = one_layer(name)
    memory = planned_bytes(recipe, config)
    if memory > USABLE * this_cpu((1e11, 2e10)).memory:
        pytest.skip(f"{memory / 1e9:.0f} GB")
    found = measured(recipe, config)
    print(f"{name}: planned {memory / 1e6:.1f} MB, measured {found / 1e6:.1f} MB, "
          f"{memory / found:.3f}")  # fmt: skip
    assert memory == pytest.approx(found, rel=0.1)


def test_files_of_recipes_say_where_values_are_from() -> None:
    for path in map(Path, REAL.values()):
        rates = [line for line in path.read_text().splitlines() if line.strip().startswith("lr:")]
        assert len(rates) == 1 and "#" in rates[0], path
