"""Rows whose answers are sampled from a model before training.

Rejection sampling (Llama 3 §4.2.2): K answers a prompt, of which the reward's best is kept. Without
rewards every answer is kept: distillation from a teacher's samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llamaseek.checkpoints.hf import load_model
from llamaseek.data.bad_rows import BadRows, Row
from llamaseek.data.formats import RowReader
from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from llamaseek.recipe.post_training import SamplingRecipe
from llamaseek.recipe.schema import Recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.rewards import Episode, make_rewards
from llamaseek.train.rollouts.answers import AnswerSampler, Prompt, judge, mean, read_prompts
from llamaseek.train.rollouts.rollout import Figures
from llamaseek.train.start import check_speaks, check_vocabulary


@dataclass
class RowSampler:
    """Samples rows for one run, and keeps statistics of them."""

    recipe: Recipe
    plan: SamplingRecipe
    model: CausalLM
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        self.rewards = make_rewards(self.plan.rewards, self.tokenizer)
        speaker = self.model
        if self.plan.teacher is not None:
            check_speaks("sampling.teacher", self.plan.teacher)
            speaker = load_model(self.plan.teacher)
            if Tokenizer.load(self.plan.teacher).to_json() != self.tokenizer.to_json():
                raise UserError(f"sampling.teacher: {self.plan.teacher} has a different tokenizer")
            check_vocabulary(speaker, self.tokenizer)
        seed = self.recipe.seed
        self.sampler = AnswerSampler(speaker, self.tokenizer, self.plan.max_tokens, seed)
        self.kept: list[dict[str, Any]] = []
        self.all: list[float] = []
        self.best: list[float] = []
        self.dropped: Counter[str] = Counter()

    def prompts(self, rows: Iterable[Row], reader: RowReader, bad: BadRows) -> list[Prompt]:
        """The prompts of rows, whatever answers these have."""
        data, most = self.recipe.data, self.plan.max_tokens
        return read_prompts(rows, self.tokenizer, data.length, most, self.plan.rewards, reader, bad)

    def rows(self, prompts: list[Prompt], moment: str) -> Iterator[Row]:
        """Conversations with the sampled answers that were kept."""
        samples = self.plan.samples
        drawn = self.sampler.draw(prompts, samples, self.plan.temperature, moment)
        total = judge(self.rewards, drawn).total
        for number, prompt in enumerate(prompts):
            here = slice(number * samples, (number + 1) * samples)
            for episode, reward in self._choose(drawn[here], total[here]):
                self.best.append(reward)
                answer = {"role": "assistant", "content": episode.text}
                row = {"messages": [*prompt.messages, answer]}
                row |= {"tools": prompt.tools} if prompt.tools else {}
                self.kept.append({**row, "reward": reward, "place": prompt.place})
                yield f"{prompt.place} (sampled)", row

    def _choose(self, drawn: list[Episode], total: list[float]) -> list[tuple[Episode, float]]:
        """The best answer that has an end and is not empty; all answers without rewards."""
        whole = [(e, r) for e, r in zip(drawn, total, strict=True) if e.finished and e.text]
        self.all += [reward for _, reward in whole]
        if not whole:
            self.dropped["no whole answer"] += 1
            return []
        if not self.rewards:
            return whole
        best = max(whole, key=lambda pair: pair[1])
        if self.plan.least is not None and best[1] < self.plan.least:
            self.dropped["none good enough"] += 1
            return []
        return [best]

    def figures(self) -> Figures:
        """Means to watch: of whole answers, of those kept, and how many prompts have one."""
        lost = self.dropped.total()
        figures = {"sampled/kept": float(len(self.kept)), "sampled/prompts_lost": float(lost)}
        if self.rewards:
            figures |= {"sampled/reward": mean(self.all), "sampled/best_reward": mean(self.best)}
        return figures
