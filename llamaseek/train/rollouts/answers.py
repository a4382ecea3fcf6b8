"""Answers sampled from the model in training, by the package's own engine, in the same process.

The engine computes with the very parameters that the optimizer updates. On a GPU rollouts have a
copy in what products run in, brought up to date before each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import torch

from llamaseek.data.bad_rows import BadRows, Row, RowError
from llamaseek.data.formats import RowReader
from llamaseek.data.rows import encode
from llamaseek.engine.engine import Engine
from llamaseek.engine.forward.paged import bytes_per_token
from llamaseek.engine.forward.runner import home
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.models import CausalLM
from llamaseek.parallel.collectives import split_over_ranks
from llamaseek.parallel.fully_sharded import whole_weights
from llamaseek.plan.serving import DEFAULT_CACHE, ROWS, wanted_tokens
from llamaseek.recipe.post_training import RewardRecipe
from llamaseek.runtime.device import pick_dtype
from llamaseek.text.messages import Message
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.rewards import Episode, Reward, check_columns
from llamaseek.train.rollouts.narrow import narrow_copy, refresh

COPIED = ("cuda",)  # devices on which rollouts have a copy of the model


@dataclass(frozen=True)
class Prompt:
    """A conversation to be answered, as ids, and the user's row it came from."""

    place: str
    row: dict[str, Any]
    ids: list[int]
    messages: list[Message]
    tools: Any = None


def asked(prompt: Prompt) -> str:
    """The text of a prompt's last message, to show."""
    return text_of(prompt.messages[-1].get("content")) if prompt.messages else ""


def text_of(content: Any) -> str:
    """A message's content as text, of parts the texts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def read_prompts(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    length: int,
    answer: int,
    rewards: Sequence[RewardRecipe],
    reader: RowReader,
    bad: BadRows,
) -> list[Prompt]:
    """Prompts that leave `answer` tokens of `length`, and that the rewards can judge."""

    def prompt(place: str, row: dict[str, Any]) -> Prompt:
        found = reader.prompt(place, row)
        chat = encode(place, found.messages, tokenizer, found.tools, add_generation_prompt=True)
        if len(chat.ids) + answer > length:
            room = f"data.length {length} leaves {length - answer} beside the answer"
            raise RowError(place, "too long", f"the prompt has {len(chat.ids)} tokens; {room}")
        check_columns(rewards, place, row)
        return Prompt(place, row, chat.ids, found.messages, found.tools)

    return list(bad.keep(rows, prompt))


@dataclass
class AnswerSampler:
    """Samples answers. `draw` gives, prompt after prompt, `samples` answers to each.

    With `precision`, that of the recipe, answers on a GPU come from a copy in what products run in.
    `bring` puts what else stays on the device there before the cache takes what is free.
    """

    model: CausalLM
    tokenizer: Tokenizer
    max_tokens: int
    seed: int
    precision: str | None = None
    bring: Callable[[], None] | None = None
    engine: Engine | None = None
    copied: CausalLM | None = None

    def draw(
        self, prompts: Sequence[Prompt], samples: int, temperature: float, moment: str
    ) -> list[Episode]:
        """Answers of the model as it is now. `moment` names the weights and seeds the draw. Ranks
        split the prompts among them, and all get all answers.

        What the engine kept of other weights' prompts is not used: `moment` salts its prefixes.
        """
        trained = self.model.training
        requests = [
            self._request(prompt, samples, temperature, moment, number)
            for number, prompt in enumerate(prompts)
        ]
        with whole_weights(self.model) as sharded:
            speaker = self.model if sharded else self._speaker()
            answers = split_over_ranks(requests, partial(self._answers, speaker))
            if sharded:  # what an engine made of the weights goes with them
                self.engine = None
        self.model.train(trained)
        return [
            self._episode(prompt, generated, stop)
            for prompt, group in zip(prompts, answers, strict=True)
            for generated, stop in group
        ]

    def _speaker(self) -> CausalLM:
        """The model that answers, with the weights of now."""
        device = home(self.model)[1]
        if self.precision is None or device.type not in COPIED:
            return self.model
        if self.copied is None:
            self.copied = narrow_copy(self.model, pick_dtype(self.precision, device))
        else:
            refresh(self.copied, self.model)
        return self.copied

    def _answers(
        self, speaker: CausalLM, requests: Sequence[Request]
    ) -> list[list[tuple[list[int], int | None]]]:
        """To each request, tokens and the stop id of each of its answers."""
        if self.engine is None:  # only now is the model on its device
            if self.bring is not None:
                self.bring()
            longest = max(len(request.prompt) for request in requests) + self.max_tokens
            options = EngineOptions(
                cache_bytes=rollout_cache(speaker, longest),
                max_num_seqs=ROWS,
                max_num_batched_tokens=8 * ROWS,
            )
            self.engine = Engine(speaker, self.tokenizer, options)
        outputs = self.engine.generate(requests)
        return [[(a.tokens, a.stop_id) for a in output.answers] for output in outputs]

    def _request(
        self, prompt: Prompt, samples: int, temperature: float, moment: str, number: int
    ) -> Request:
        generator = torch.Generator().manual_seed(hash_of(f"{self.seed}/{moment}/{number}"))
        params = SamplingParams(
            n=samples,
            temperature=temperature,
            max_tokens=self.max_tokens,
            detokenize=False,
            seed=int(torch.randint(2**62, (), generator=generator)),
        )
        return Request(prompt=prompt.ids, params=params, salt=moment)

    def _episode(self, prompt: Prompt, generated: list[int], stop: int | None) -> Episode:
        end = [] if stop is None else [stop]
        text = self.tokenizer.decode(generated)
        return Episode(
            prompt.place, prompt.row, prompt.ids, generated + end, text, stop is not None
        )


def rollout_cache(model: CausalLM, longest: int) -> int:
    """Bytes of cache for answers that end at `longest`: what `ROWS` of them take, on a GPU up to
    half of what is free, as gradients and moments need the rest.
    """
    dtype, device = home(model)
    wanted = wanted_tokens(longest) * bytes_per_token(model.cache_shapes(), dtype, "auto")
    return min(wanted, cache_room(device))


def cache_room(device: torch.device) -> int:
    """The most that a rollout's cache takes."""
    cuda = device.type == "cuda"
    return torch.cuda.mem_get_info(device)[0] // 2 if cuda else DEFAULT_CACHE


def hash_of(text: str) -> int:
    """A number below 2^62 for a text, the same in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 2


@dataclass(frozen=True)
class Judged:
    """Each episode's total reward, the value of each reward, and how many could not be computed."""

    total: list[float]
    parts: dict[str, list[float]]
    failed: dict[str, int]

    def figures(self, rewards: Sequence[Reward], episodes: Sequence[Episode]) -> dict[str, float]:
        """Means to watch: reward, accuracy where a program checks, length, share that ended."""
        figures = {"reward": mean(self.total)}
        for reward in rewards:
            if reward.verifiable and "accuracy" not in figures:
                figures["accuracy"] = mean(self.parts[reward.name])
        if len(rewards) > 1:
            figures |= {f"reward/{name}": mean(values) for name, values in self.parts.items()}
        figures |= {f"reward/{name}/failed": float(n) for name, n in self.failed.items() if n}
        figures["length"] = mean([len(episode.answer) for episode in episodes])
        figures["finished"] = mean([float(episode.finished) for episode in episodes])
        return figures


def judge(
    rewards: Sequence[Reward], episodes: Sequence[Episode], missing_end: float = 0.0
) -> Judged:
    """The weighted sum of the rewards, and `missing_end` for answers that were cut off.

    The answers are split over the ranks, and all train on the same reward, also after a timeout.
    What a reward could not find out (NaN) counts as 0.
    """
    given = {reward.name: split_over_ranks(episodes, reward.score) for reward in rewards}
    failed = {name: sum(map(math.isnan, scores)) for name, scores in given.items()}
    parts = {
        name: [0.0 if math.isnan(score) else score for score in scores]
        for name, scores in given.items()
    }
    total = [0.0 if episode.finished else missing_end for episode in episodes]
    for reward in rewards:
        scored = parts[reward.name]
        total = [sum_ + reward.weight * one for sum_, one in zip(total, scored, strict=True)]
    return Judged(total, parts, failed)


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / max(len(values), 1)
