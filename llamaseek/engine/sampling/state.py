"""What tokens are drawn with, where a model answers on a GPU: it stays there from step to step, and
a step sends its random numbers alone.

A running answer has the row that it has in the scheduler's tables. How often it has each token is
counted only where a penalty asks for it.

R rows of logits, S rows of the state, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llamaseek.engine.forward.step_layout import sent
from llamaseek.engine.request import SamplingParams, SequenceState

HOTTEST = 1e30  # float32 holds it
DRAWS = 4  # the numbers that distributions are made of; the others are penalties


def numbers_of(params: Sequence[SamplingParams], device: torch.device) -> Tensor:
    """Temperature, top_k, top_p and min_p (R, 4), then the penalties for repetition, presence and
    frequency (R, 7 in all), float32.
    """
    rows = [
        (
            min(p.temperature, HOTTEST), p.top_k or math.inf, p.top_p, p.min_p,
            p.repetition_penalty, p.presence_penalty, p.frequency_penalty,
        )
        for p in params
    ]  # fmt: skip
    return _float_sent(np.array(rows, np.float32), device)


def _float_sent(numbers: NDArray[np.float32], device: torch.device) -> Tensor:
    return torch.from_numpy(numbers).to(device, non_blocking=True)


def penalized(params: SamplingParams) -> bool:
    """Whether the tokens that an answer has change its logits."""
    penalties = params.presence_penalty or params.frequency_penalty
    return bool(params.repetition_penalty != 1 or penalties)


class SamplingState:
    """Numbers of all running answers on `device`, and how often each has each token."""

    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        self.vocabulary, self.device = vocabulary, device
        self.answers: list[SequenceState | None] = [None] * rows
        self.counted = [0] * rows  # of an answer's tokens, those that are in the counts
        self.biases: dict[int, tuple[Tensor, Tensor]] = {}
        self.numbers = numbers_of([SamplingParams()] * rows, device)
        self.given: Tensor | None = None  # (S, V) uint8: 1 where the prompt has a token
        self.said: Tensor | None = None  # (S, V) int32: how often the answer has it
        self.latest: tuple[list[int], Tensor] = [], torch.empty(0)

    def rows_of(self, answers: Sequence[SequenceState]) -> Tensor:
        """Where the state has these answers (R), new ones put there; sent where they change."""
        new = [answer for answer in answers if self.answers[answer.row] is not answer]
        if new:
            self._begin(new)
        rows = [answer.row for answer in answers]
        if rows != self.latest[0]:
            self.latest = rows, sent(np.array(rows, np.int64), self.device)
        return self.latest[1]

    def numbers_for(self, answers: Sequence[SequenceState]) -> Tensor:
        """As `numbers_of` their params."""
        return self.numbers[self.rows_of(answers)]

    def _begin(self, new: Sequence[SequenceState]) -> None:
        rows = sent(np.array([answer.row for answer in new], np.int64), self.device)
        self.numbers.index_copy_(0, rows, numbers_of([a.params for a in new], self.device))
        for counts in (self.given, self.said):
            if counts is not None:
                counts.index_fill_(0, rows, 0)
        for answer in new:
            self.answers[answer.row], self.counted[answer.row] = answer, 0
            self.biases.pop(answer.row, None)
            if bias := answer.params.logit_bias:
                ids, values = np.array(list(bias)), np.array(list(bias.values()), np.float32)
                values_there = _float_sent(values, self.device)
                self.biases[answer.row] = sent(ids, self.device), values_there

    def shape(self, logits: Tensor, answers: Sequence[SequenceState], first: list[int]) -> None:
        """Penalties and biases on logits (R, V), of which answers have rows from `first` on. In
        place.
        """
        self.rows_of(answers)
        changed = [place for place, answer in enumerate(answers) if penalized(answer.params)]
        if changed:
            some = [answers[place] for place in changed]
            at = sent(np.array([first[place] for place in changed], np.int64), self.device)
            logits.index_copy_(0, at, self._penalize(logits[at], some))
        for answer, start in zip(answers, first, strict=True):
            if answer.row in self.biases:
                logits[start].index_add_(0, *self.biases[answer.row])

    def _penalize(self, scores: Tensor, answers: Sequence[SequenceState]) -> Tensor:
        """See `sampler.penalize`: scores (R, V) of so many answers."""
        given, said = self._count(answers)
        rows = self.rows_of(answers)
        repetition, presence, frequency = self.numbers[rows, DRAWS:].split(1, dim=-1)
        times = said[rows]
        seen = given[rows] + times > 0
        repeated = torch.where(scores < 0, scores * repetition, scores / repetition)
        scores = torch.where(seen, repeated, scores)
        return scores - (times * frequency + (times > 0) * presence)

    def add(self, answers: Sequence[SequenceState], tokens: Tensor) -> None:
        """Count tokens (R) that are drawn, and may not be read yet."""
        counted = [place for place, answer in enumerate(answers) if penalized(answer.params)]
        if counted and self.said is not None:
            some = [answers[place] for place in counted]
            at = sent(np.array(counted, np.int64), self.device)
            places = self.rows_of(some), tokens[at].clamp(0, self.vocabulary - 1)
            self.said.index_put_(places, torch.ones_like(places[0], dtype=torch.int32), True)
            for answer in some:
                self.counted[answer.row] += 1

    def _count(self, answers: Sequence[SequenceState]) -> tuple[Tensor, Tensor]:
        """The counts, with what answers have got since the last step."""
        if self.given is None or self.said is None:
            size = len(self.answers), self.vocabulary
            self.given = torch.zeros(size, dtype=torch.uint8, device=self.device)
            self.said = torch.zeros(size, dtype=torch.int32, device=self.device)
        prompts: list[tuple[int, int]] = []
        said: list[tuple[int, int]] = []
        for answer in answers:
            row, have, given = answer.row, self.counted[answer.row], answer.prompt_length
            prompts += [(row, token) for token in answer.tokens[have:given]]
            said += [(row, token) for token in answer.tokens[max(have, given) :]]
            self.counted[row] = max(have, len(answer.tokens))
        for counts, pairs in ((self.given, prompts), (self.said, said)):
            if pairs:
                places = sent(np.array(pairs, np.int64).T, self.device).unbind()
                one = torch.ones(len(pairs), dtype=counts.dtype, device=self.device)
                counts.index_put_(places, one, accumulate=counts.dtype == torch.int32)
        return self.given, self.said
