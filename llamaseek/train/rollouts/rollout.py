"""Rollouts: the loop's batches are answers that the model has just sampled, with rewards.

N answers, T time, G answers a prompt.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.data.pack import Example, pack_apart
from llamaseek.data.source import Source, SourceState
from llamaseek.models import CausalLM
from llamaseek.models.lora import LoRALinear
from llamaseek.parallel.collectives import split_over_ranks
from llamaseek.parallel.fully_sharded import whole_weights
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.device import autocast, pick_dtype
from llamaseek.train.objectives.policy import sampled_log_probs
from llamaseek.train.rewards import Episode, Reward
from llamaseek.train.rollouts import answers as answering
from llamaseek.train.rollouts.answers import (
    AnswerSampler,
    Judged,
    Prompt,
    asked,
    hash_of,
    judge,
)

Figures = dict[str, float]


class AdvantageEstimator(Protocol):
    """An algorithm's batch tensors from rewarded answers."""

    scored: LogProbScorer

    def __call__(self, batch: Batch, rewards: Tensor) -> tuple[Batch, Figures]:
        """The batch with what its objective needs, and figures to watch; rewards (N)."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        ...


class Rollouts(Source):
    """A source whose answers are sampled again every `minibatches` × `epochs` steps."""

    def __init__(
        self,
        recipe: Recipe,
        sampler: AnswerSampler,
        prompts: Sequence[Prompt],
        rewards: Sequence[Reward],
        assess: AdvantageEstimator,
    ) -> None:
        self.rollout, self.seed = recipe.rollout, recipe.seed
        self._length = recipe.data.length
        self.sampler, self.prompts, self.rewards = sampler, prompts, rewards
        self.assess = assess
        self.batch: Batch | None = None
        self.figures: dict[str, Any] = {}

    @property
    def length(self) -> int:
        """Tokens a row, at most."""
        return self._length

    @property
    def rows(self) -> int:
        """Answers trained on in one epoch, in which every prompt is answered once by its group."""
        return len(self.prompts) * self.rollout.samples * self.rollout.epochs

    def step(self, step: int, rows: int) -> Batch:
        """A share of the latest rollout's answers; at its first step the rollout is made."""
        each, parts = self.rollout.epochs * self.rollout.minibatches, self.rollout.minibatches
        number, place = divmod(step, each)
        self.figures = {}
        if place == 0 or self.batch is None:
            self.batch = self._roll_out(number, rows * parts)
        if each == 1:
            return self.batch
        epoch, part = divmod(place, parts)
        order = shuffled(rows * parts, f"{self.seed}/{number}/{epoch}")
        return self.batch.select(order[part * rows : (part + 1) * rows])

    def metrics(self) -> dict[str, Any]:
        """Figures of the rollout, at the step that made it."""
        return self.figures

    def state(self) -> SourceState:
        """The answers of the latest rollout, and the algorithm's own state."""
        kept = {f"assess.{name}": tensor for name, tensor in self.assess.state().items()}
        if self.batch is not None:
            own = {name: getattr(self.batch, name) for name in ("tokens", "positions", "targets")}
            kept |= {f"batch.{name}": tensor for name, tensor in own.items()}
            kept |= {f"extra.{name}": tensor for name, tensor in self.batch.extra.items()}
        return SourceState(tensors=kept)

    def restore(self, state: SourceState) -> None:
        """Continue in the middle of a rollout."""
        parts: dict[str, dict[str, Tensor]] = {"assess": {}, "batch": {}, "extra": {}}
        for full, tensor in state.tensors.items():
            part, name = full.split(".", 1)
            parts[part][name] = tensor
        self.assess.restore(parts["assess"])
        if parts["batch"]:
            self.batch = Batch(**parts["batch"], extra=parts["extra"])

    def _roll_out(self, number: int, answers: int) -> Batch:
        start = time.perf_counter()
        samples = self.rollout.samples
        asked = self._asked(number, answers // samples)
        drawn = self.sampler.draw(asked, samples, self.rollout.temperature, f"rollout {number}")
        judged = judge(self.rewards, drawn, self.rollout.missing_end)
        seconds = time.perf_counter() - start
        batch, figures = self.assess(episode_batch(drawn), torch.tensor(judged.total))
        self.figures = {
            **judged.figures(self.rewards, drawn), **figures, "rollout_seconds": seconds,
        }  # fmt: skip
        return batch

    def _asked(self, number: int, count: int) -> list[Prompt]:
        """The prompts of a rollout; every epoch is another shuffle."""
        size, found = len(self.prompts), []
        orders: dict[int, list[int]] = {}
        for at in range(number * count, (number + 1) * count):
            epoch, place = divmod(at, size)
            if epoch not in orders:
                orders[epoch] = prompt_order(size, self.seed, epoch)
            found.append(self.prompts[orders[epoch][place]])
        return found


def shuffled(count: int, seed: str) -> Tensor:
    """0 … count - 1 in an order that is a function of `seed`."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(hash_of(seed)))


def prompt_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of the prompts in one pass over all of them."""
    return shuffled(count, f"{seed}/prompts/{epoch}").tolist()


def episode_batch(episodes: Sequence[Episode]) -> Batch:
    """One answer a row; targets on the answer and its end alone."""
    rows = []
    for episode in episodes:
        given = len(episode.prompt)
        targets = [IGNORE] * (given - 1) + episode.answer + [IGNORE]
        rows.append([Example(episode.tokens, targets)])
    return pack_apart(rows)


class LogProbScorer:
    """Log-probabilities of answers without gradients, by the policy and by its reference.

    The reference is the model before this run: a copy, or with adapters the base without them.
    """

    def __init__(self, recipe: Recipe, model: CausalLM, reference: bool) -> None:
        self.recipe, self.model = recipe.train, model
        self.temperature = recipe.rollout.temperature
        adapted = any(isinstance(module, LoRALinear) for module in model.modules())
        self.frozen = None
        if reference and not adapted:
            self.frozen = copy.deepcopy(model).eval().requires_grad_(False)

    def bring(self) -> None:
        """The reference to where it computes; on a GPU in what products run in."""
        if self.frozen is None:
            return
        place = self.model.model.norm.weight.device
        self.frozen.to(place)
        if place.type in answering.COPIED:
            dtype = pick_dtype(self.recipe.precision, place)
            for parameter in self.frozen.parameters():
                parameter.data = parameter.data.to(dtype)

    def policy(self, batch: Batch) -> Tensor:
        """log p of every target under the model as it is: (N, T)."""
        return self.run(self.model, batch, self._log_probs)

    def reference(self, batch: Batch) -> Tensor:
        """log p of every target under the reference: (N, T)."""
        if self.frozen is not None:
            self.bring()
            return self.run(self.frozen, batch, self._log_probs)
        with without_adapters(self.model):
            return self.policy(batch)

    def _log_probs(self, model: CausalLM, batch: Batch) -> Tensor:
        return sampled_log_probs(model, batch, self.temperature)[0]

    @torch.no_grad()
    def run(
        self, model: CausalLM, batch: Batch, function: Callable[[CausalLM, Batch], Tensor]
    ) -> Tensor:
        """`function` of micro-batches, laid together on the CPU, the model in evaluation mode.
        The micro-batches are split over the ranks.
        """
        device = model.model.norm.weight.device
        trained = model.training
        model.eval()

        def scored(micro_batches: Sequence[Batch]) -> list[Tensor]:
            with autocast(self.recipe, device):
                return [function(model, micro.to(device)).cpu() for micro in micro_batches]

        with whole_weights(model):
            rows = self.recipe.micro_batch or self.recipe.batch
            found = split_over_ranks(list(batch.split(rows)), scored)
        model.train(trained)
        return torch.cat(found)


@contextmanager
def without_adapters(model: CausalLM) -> Iterator[None]:
    """The base alone: adapters count nothing meanwhile."""
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    scalings = [layer.scaling for layer in layers]
    for layer in layers:
        layer.scaling = 0.0
    try:
        yield
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling = scaling


@dataclass
class HeldOutRewards:
    """Figures of greedy answers to held-out prompts, for the loop's evaluations.

    Calling it answers anew; `examine` gives the first answers of the latest time.
    """

    sampler: AnswerSampler
    prompts: Sequence[Prompt]
    rewards: Sequence[Reward]
    seen: int = 0
    drawn: list[Episode] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)

    def __call__(self, model: CausalLM) -> Figures:
        """Answer every prompt with the model as it is."""
        self.seen += 1
        self.drawn = self.sampler.draw(self.prompts, 1, 0.0, f"evaluation {self.seen}")
        judged: Judged = judge(self.rewards, self.drawn)
        self.judged = judged.total
        return judged.figures(self.rewards, self.drawn)

    def examine(self, model: CausalLM, before: bool, most: int) -> list[dict[str, Any]]:
        """At most so many of the latest answers with their rewards."""
        return [
            {"prompt": asked(prompt), "answer": episode.text, "reward": reward}
            for prompt, episode, reward in zip(
                self.prompts[:most], self.drawn, self.judged, strict=False
            )
        ]
