"""The scheduler: which sequences run in the next step, on how many tokens, in which blocks.

There are no phases. Every answer has computed tokens that chase its tokens; a step moves each
running answer on by a chunk, all chunks within one budget of tokens. A prompt read in pieces, a
prefix found in the cache, an answer computed again after preemption, and a token with drafts
after it are the same thing: tokens that are not computed yet. The last token of an answer whose
mask is not ready is left out, because what follows it cannot be drawn yet.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llamaseek.engine.blocks import BlockPool, chain
from llamaseek.engine.request import Request, SequenceState
from llamaseek.errors import UserError


class QueueFull(Exception):
    """The queue is full; retry later."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence's part of a step: `count` tokens and drafts from place `start` on."""

    answer: SequenceState
    start: int
    count: int

    @property
    def tokens(self) -> list[int]:
        """What stands there: tokens, then drafts."""
        tokens, end = self.answer.tokens, self.start + self.count
        if end <= len(tokens):
            return tokens[self.start : end]
        known = len(tokens)
        return tokens[self.start :] + self.answer.drafts[max(self.start - known, 0) : end - known]

    @property
    def samples(self) -> bool:
        """Whether the step reaches the last token, so that a new one is drawn."""
        return self.start + self.count >= len(self.answer.tokens)


def root(request: Request) -> bytes:
    """What the key of a request's first block is chained to: its adapter and salt, apart."""
    adapter, salt = request.adapter.encode(), request.salt.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(len(adapter).to_bytes(4, "big") + adapter + salt).digest()


class Scheduler:
    """First come, first served; a bounded queue; the newest is preempted when blocks run out.

    `budget` is the number of tokens a step may compute. `tables` holds, a row an answer, the
    blocks of those that run: (most_running, blocks of the longest answer) int64.
    """

    def __init__(
        self,
        pool: BlockPool,
        longest: int,
        max_num_seqs: int,
        most_waiting: int,
        budget: int,
        enable_prefix_caching: bool = True,
    ) -> None:
        self.pool, self.budget = pool, budget
        self.max_num_seqs, self.most_waiting = max_num_seqs, most_waiting
        self.enable_prefix_caching = enable_prefix_caching
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.tables = np.zeros((max_num_seqs, -(-longest // pool.size)), np.int64)
        self._rows = list(range(max_num_seqs))[::-1]
        self.preemptions = 0

    @property
    def room(self) -> bool:
        """Whether the queue takes one more."""
        return len(self.waiting) < self.most_waiting

    @property
    def admits(self) -> bool:
        """Whether an answer waits that may find a place."""
        return bool(self.waiting and self._rows)

    def check(self, tokens: int) -> None:
        """UserError if an answer of so many tokens could never run."""
        if -(-tokens // self.pool.size) > self.pool.count:
            raise UserError(
                f"prompt: needs {tokens} tokens of cache, with max_tokens; "
                f"the engine's cache holds {self.pool.count * self.pool.size}"
            )

    def add(self, answer: SequenceState) -> None:
        """Queue an answer; `QueueFull` if too many wait."""
        if not self.room:
            raise QueueFull(f"{len(self.waiting)} requests are waiting; the queue is full")
        self.waiting.append(answer)

    def add_next(self, answers: Iterable[SequenceState]) -> None:
        """Put siblings of a running answer first in the queue; its prompt is shared by then."""
        self.waiting.extendleft(reversed(list(answers)))

    def schedule(self) -> list[Chunk]:
        """The next step: tokens that follow an answer first, prompts in what the budget leaves."""
        prompts_left = self.budget
        for answer in self.running:
            if answer.computed == len(answer.tokens) - 1:
                prompts_left -= 1 + len(answer.drafts)
        plan: list[Chunk] = []
        preempted = self.preemptions
        for answer in self.running.copy():
            if answer.row < 0:
                break  # it and all after it were preempted
            count = len(answer.tokens) + len(answer.drafts) - answer.computed - answer.waits
            if answer.computed < len(answer.tokens) - 1:
                count = min(count, prompts_left)
                prompts_left -= count
            if count > 0 and self._reserve(answer, answer.computed + count):
                plan.append(Chunk(answer, answer.computed, count))
        if self.preemptions == preempted:
            self._admit(plan, prompts_left)
        return plan

    def _reserve(self, answer: SequenceState, tokens: int) -> bool:
        """Blocks for so many tokens, taken from the newest if need be; False if it is itself."""
        need = -(-tokens // self.pool.size) - len(answer.blocks)
        if need <= 0:
            return True
        while (blocks := self.pool.take(need)) is None:
            newest = self.running[-1]
            self._preempt(newest)
            if newest is answer:
                return False
        self._give(answer, blocks)
        return True

    def extend(self, answer: SequenceState, tokens: int) -> bool:
        """Blocks for so many tokens if there are any to spare; whether there were."""
        need = -(-tokens // self.pool.size) - len(answer.blocks)
        if need > 0:
            blocks = self.pool.take(need)
            if blocks is None:
                return False
            self._give(answer, blocks)
        return True

    def _give(self, answer: SequenceState, blocks: list[int]) -> None:
        have = len(answer.blocks)
        self.tables[answer.row, have : have + len(blocks)] = blocks
        answer.blocks += blocks

    def _preempt(self, answer: SequenceState) -> None:
        """Give up its blocks; it is computed again, from what is still shared, when it can."""
        self.remove(answer)
        self.waiting.appendleft(answer)
        self.preemptions += 1

    def _admit(self, plan: list[Chunk], budget: int) -> None:
        """Start those that wait, in order, as far as rows, budget and blocks go.

        One whose blocks are being computed lets others by: it could use nothing of this step.
        """
        passed = 0
        while passed < min(len(self.waiting), self.max_num_seqs) and self._rows and budget > 0:
            answer = self.waiting[passed]
            keys = self._shareable(answer)
            shared = self.pool.share(keys)
            if self._computed_soon(keys[len(shared) :]):
                self.pool.release(shared)
                passed += 1
                continue
            if -(-len(answer.tokens) // self.pool.size) - len(shared) > self.pool.free:
                self.pool.release(shared)
                return
            del self.waiting[passed]
            self.running.append(answer)
            answer.row = self._rows.pop()
            self._give(answer, shared)
            answer.published = len(shared)
            answer.computed = answer.draft_computed = len(shared) * self.pool.size
            if answer.cached is None:
                answer.cached = answer.computed
            count = min(len(answer.tokens) - answer.computed - answer.waits, budget)
            budget -= count
            self._reserve(answer, answer.computed + count)
            if count > 0:
                plan.append(Chunk(answer, answer.computed, count))

    def _computed_soon(self, missing: list[bytes]) -> bool:
        """Whether a running answer computes the first of the missing blocks.

        Who needs the same one waits for it rather than compute it too.
        """
        return bool(missing) and any(
            missing[0] in answer.keys[answer.published :] for answer in self.running
        )

    def _shareable(self, answer: SequenceState) -> list[bytes]:
        """The keys of its full blocks but the last token's, which has to be computed.

        Log-probabilities of a prompt need what is scored computed.
        """
        if not self.enable_prefix_caching:
            return []
        full = (len(answer.tokens) - 1) // self.pool.size
        self._name_blocks(answer, full)
        unscored = answer.scored_from // self.pool.size
        return answer.keys[: min(full, unscored) if answer.unscored else full]

    def _name_blocks(self, answer: SequenceState, full: int) -> None:
        """The keys of its first `full` blocks."""
        size, keys = self.pool.size, answer.keys
        for block in range(len(keys), full):
            before = keys[-1] if keys else root(answer.request)
            keys.append(chain(before, answer.tokens[block * size : (block + 1) * size]))

    def publish(self, answer: SequenceState) -> None:
        """Let others share the blocks whose tokens are all computed and settled."""
        full = answer.computed // self.pool.size
        if not self.enable_prefix_caching or full <= answer.published:
            return
        self._name_blocks(answer, full)
        for block in range(answer.published, full):
            self.pool.publish(answer.blocks[block], answer.keys[block])
        answer.published = full

    def remove(self, answer: SequenceState) -> None:
        """Take an answer out, running or waiting; its blocks are free at once."""
        if answer.row < 0:
            if answer in self.waiting:
                self.waiting.remove(answer)
            return
        self.running.remove(answer)
        self._rows.append(answer.row)
        self.pool.release(answer.blocks)
        answer.row, answer.computed, answer.published = -1, 0, 0
        answer.blocks, answer.drafts, answer.draft_probs = [], [], []
