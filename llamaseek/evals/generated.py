"""Held-out figures on the generated data; whether an answer is right is decided by programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import torch
from torch import Tensor

from llamaseek.data.batch import Batch
from llamaseek.data.builtin.instructions import KINDS, followed, instruction_item
from llamaseek.data.builtin.rows import generated_rows, turn
from llamaseek.data.builtin.stories import parses, prompt
from llamaseek.data.builtin.tasks import TASKS, exact_match, task_item
from llamaseek.data.builtin.words import Keyed
from llamaseek.data.rankings import preferences
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.models import CausalLM
from llamaseek.models.loss import sum_by_sequence, target_log_probs
from llamaseek.text.chat import encode_chat
from llamaseek.text.tokenizer import Tokenizer

K = TypeVar("K", bound=Keyed)
SEED = "held out"  # one fixed set of items, whatever a run's seed
MOST_TOKENS = 40  # of an answer
ROWS = 128  # answered or scored at once


@dataclass(frozen=True)
class Generator:
    """A model and its tokenizer, asked things greedily."""

    model: CausalLM
    tokenizer: Tokenizer

    def answers(self, inputs: Iterable[str]) -> list[str]:
        """The assistant's answer to each user message."""
        prompts = [
            encode_chat(self.tokenizer, [turn("user", text)], add_generation_prompt=True).ids
            for text in inputs
        ]
        return self._decoded(prompts)

    def _ids(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The greedy answer to each prompt. A new engine each time: the weights may change."""
        params = SamplingParams(max_tokens=MOST_TOKENS, detokenize=False)
        options = EngineOptions(
            max_num_seqs=ROWS,
            max_num_batched_tokens=ROWS * MOST_TOKENS,
            cuda_graphs=False,  # capturing takes longer than so few tokens
        )
        engine = Engine(self.model, self.tokenizer, options)
        outputs = engine.generate(Request(prompt=prompt, params=params) for prompt in prompts)
        return [output.answers[0].tokens for output in outputs]

    def continuations(self, texts: Iterable[str]) -> list[str]:
        """What follows each text in a document."""
        return self._decoded([self._document(text) for text in texts])

    def _document(self, text: str) -> list[int]:
        return [*self.tokenizer.prefix_ids, *self.tokenizer.encode(text)]

    def _decoded(self, prompts: list[list[int]]) -> list[str]:
        return [self.tokenizer.decode(ids) for ids in self._ids(prompts)]

    def documents(self, texts: Iterable[str]) -> list[list[int]]:
        """Each text with its greedy continuation, as ids."""
        prompts = [self._document(text) for text in texts]
        answers = self._ids(prompts)
        return [start + answer for start, answer in zip(prompts, answers, strict=True)]


def distinct(count: int, name: str, make: Callable[[Random], K]) -> list[K]:
    """`count` held-out items, no two alike."""
    rng = Random(f"{SEED}/{name}")
    items: dict[str, K] = {}
    while len(items) < count:
        item = make(rng)
        items.setdefault(item.key, item)
    return list(items.values())


def story_prompts(count: int) -> list[str]:
    """The first words of held-out stories; the stories differ, beginnings may not."""
    rng = Random(f"{SEED}/stories")
    return [prompt(rng, "test")[0] for _ in range(count)]


def story_parse_rate(speaker: Generator, count: int) -> float:
    """Share of story beginnings that the model completes to a story of the grammar."""
    starts = story_prompts(count)
    ends = speaker.continuations(starts)
    return sum(parses(a + b) for a, b in zip(starts, ends, strict=True)) / count


def task_exact_match(speaker: Generator, count: int) -> dict[str, float]:
    """Share of exactly right answers on each of the five tasks."""
    scores = {}
    for task in TASKS:
        items = distinct(count, task, lambda rng, task=task: task_item(task, rng, "test"))  # type: ignore[misc]
        answers = speaker.answers(item.input for item in items)
        scores[task] = sum(map(exact_match, items, answers)) / count
    return scores


def instruction_following(speaker: Generator, count: int) -> float:
    """Share of instructions followed, all kinds alike, each in a wording never trained on."""
    items = distinct(
        count, "instructions", lambda rng: instruction_item(rng.choice(KINDS), rng, "test")
    )
    answers = speaker.answers(item.input for item in items)
    return sum(map(followed, items, answers)) / count


@torch.no_grad()
def preference_log_probs(speaker: Generator, count: int, length: int, form: str) -> Tensor:
    """log p of the chosen and the rejected answer of each held-out pair: (pairs, 2) float32."""
    rows = generated_rows({"preferences": count}, SEED, "test")
    pairs = preferences(rows, speaker.tokenizer, length, form)
    device = next(speaker.model.parameters()).device
    speaker.model.eval()
    parts = [part.to(device) for part in pairs.split(ROWS)]
    return torch.cat([sum_by_sequence(target_log_probs(speaker.model, p), p) for p in parts]).cpu()


def preference_accuracy(scores: Tensor) -> float:
    """Share of pairs (N, 2) whose chosen answer scores higher; ties count half."""
    chosen, rejected = scores.unbind(1)
    return float(((chosen > rejected).float() + (chosen == rejected).float() / 2).mean())


@torch.no_grad()
def expert_load(model: CausalLM, batch: Batch) -> list[list[float]]:
    """Each expert's load over the mean load, a list a mixture-of-experts layer of the trunk."""
    device = next(model.parameters()).device
    model.expert_load = {}
    model.train()  # only then is load counted
    for part in batch.split(ROWS):
        model(part.tokens.to(device), part.positions.to(device))
    loads = [model.expert_load[index].float() for index in sorted(model.expert_load)]
    model.expert_load = {}
    return [(load / load.mean()).tolist() for load in loads]


@torch.no_grad()
def mtp_acceptance(speaker: Generator, count: int) -> float:
    """Share of the first module's drafts that greedy decoding accepts, over stories.

    The second-token acceptance rate of V3 report §5.4.3: the draft made at place i, for place
    i + 2, is right where it is the token that greedy decoding put there.
    """
    model = speaker.model
    model.eval()
    starts = story_prompts(count)
    right = drafts = 0
    device = next(model.parameters()).device
    for start, ids in zip(starts, speaker.documents(starts), strict=True):
        tokens = torch.tensor([ids], device=device)
        positions = torch.arange(len(ids), device=device)[None]
        hidden = model(tokens, positions)
        ahead = model.mtp(0, hidden, tokens.roll(-1, 1), positions)
        drafted = model.logits(ahead)[0, :-2].argmax(-1)
        first = len(speaker.tokenizer.encode(start))  # the last place of the prompt
        right += int((drafted == tokens[0, 2:])[first:].sum())
        drafts += len(drafted[first:])
    return right / max(drafts, 1)
