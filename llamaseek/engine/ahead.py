"""On a GPU the next step is launched before the tokens of the last are read, while answers only
decode.

Tokens go from the sampler to the next step on the device, and are copied to the host meanwhile.
Which answers end is known a step late: what the next step has computed of those is dropped. It
wrote into blocks that are free by then, before whoever gets them next, as a device works in order.

R answers of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llamaseek.engine.forward.runner import Runner
from llamaseek.engine.forward.step_layout import sent
from llamaseek.engine.request import SequenceState
from llamaseek.engine.sampling.sampler import next_tokens
from llamaseek.engine.sampling.state import SamplingState
from llamaseek.engine.scheduler import Chunk, Scheduler


class Flight(NamedTuple):
    """A step that is launched: its answers, their next tokens (R) on the device, and the host's
    copy, which is there when `done` is.
    """

    answers: list[SequenceState]
    tokens: Tensor
    copied: Tensor
    done: torch.cuda.Event | None

    def read(self) -> list[int]:
        """The tokens, the one time that the host waits in a step."""
        if self.done is not None:
            self.done.synchronize()
        found: list[int] = self.copied.tolist()
        return found


def launched(answers: list[SequenceState], tokens: Tensor) -> Flight:
    """A step whose tokens (R) are on their way to the host."""
    if not tokens.is_cuda:
        return Flight(answers, tokens, tokens, None)
    copied = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
    copied.copy_(tokens, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return Flight(answers, tokens, copied, done)


def decodes_alone(answer: SequenceState) -> bool:
    """Whether nothing but its next token is wanted of a step, so that the host is not needed."""
    params = answer.params
    reports = params.logprobs is not None or params.embed
    return not (reports or answer.drafts or answer.matcher is not None)


class RunAhead:
    """Launches steps whose tokens are not read yet, one at a time."""

    def __init__(self, runner: Runner, scheduler: Scheduler, state: SamplingState) -> None:
        self.runner, self.scheduler, self.state = runner, scheduler, state

    def takes(self, plan: Sequence[Chunk]) -> bool:
        """Whether every answer draws a token in this step, and no one that waits could join."""
        scheduler = self.scheduler
        every = len(plan) == len(scheduler.running) and not scheduler.admits
        return every and all(chunk.samples and decodes_alone(chunk.answer) for chunk in plan)

    def launch(self, answers: list[SequenceState], logits: Tensor, ahead: int = 0) -> Flight:
        """Draw from logits (R, V), of whose answers the host knows all tokens but `ahead`."""
        return launched(answers, next_tokens(logits, answers, self.state, ahead))

    def follow(self, flight: Flight) -> Flight | None:
        """The step after one whose tokens are not read; None where the host has to see them first:
        answers wait that could join, or blocks run out.
        """
        going = [
            (place, answer)
            for place, answer in enumerate(flight.answers)
            if answer.row >= 0 and len(answer.tokens) + 1 < answer.limit
        ]
        if not going or self.scheduler.admits:
            return None
        answers = [answer for _, answer in going]
        if not all(self.scheduler.extend(a, len(a.tokens) + 1) for a in answers):
            return None
        tokens = flight.tokens
        if len(going) < len(tokens):
            places = np.array([place for place, _ in going], np.int64)
            tokens = tokens[sent(places, tokens.device)]
        # An answer whose logits are no numbers has no token: it will end when that is read.
        tokens = tokens.clamp(0, self.state.vocabulary - 1)
        chunks = [Chunk(answer, len(answer.tokens), 1) for answer in answers]
        return self.launch(answers, self.runner.follow(chunks, tokens).logits, ahead=1)
