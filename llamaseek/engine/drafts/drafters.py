"""Speculative decoding: drafts of the next tokens, which the model verifies in one forward pass.

What is kept is decided in `sampler.decide`; wherever drafts come from, greedy answers are the
same tokens and drawn ones have the same distribution as without.

N tokens of a step, A answers, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, repeat
from typing import Protocol

from torch import Tensor

from llamaseek.engine.drafts.acceptance import Acceptance
from llamaseek.engine.drafts.lookup import LONGEST, Lookup, following
from llamaseek.engine.forward.runner import Runner
from llamaseek.engine.forward.step_layout import some_rows
from llamaseek.engine.options import Speculation
from llamaseek.engine.request import SequenceState
from llamaseek.engine.sampling.sampler import DRAFTED, distributions, draw, likeliest, uniforms
from llamaseek.engine.scheduler import Chunk, Scheduler
from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from llamaseek.models.moe import MoE
from llamaseek.models.quant.blocks import BlockLinear
from llamaseek.models.quant.packed import PackedLinear

# What a draft costs, as a share of a step without drafts. To verify it, by the model's weights:
# plain ones are read for many tokens in the time of one, others have to be widened; more where each
# token has experts of its own. And to make it, by a smaller model.
PLAIN, PACKED, BLOCKS, BY_EXPERTS, BY_MODEL = 0.1, 0.25, 0.45, 0.2, 0.1
STANDS = 0.8  # the expected share of drafts that a module or a model makes
# By how many tokens are alike: the expected share of looked up drafts that stand.
ALIKE = {2: 0.3, 3: 0.5, 5: 0.7, 8: 0.85}


class Drafter(Protocol):
    """A source of drafts."""

    def propose(self, plan: Sequence[Chunk], hidden: Tensor, ends: list[int]) -> None:
        """After a step over `plan` with outcome hidden (N, D), where its chunks end at rows `ends`:
        set its answers' drafts.
        """
        ...


class NoDrafter:
    """Decoding without drafts."""

    def propose(self, plan: Sequence[Chunk], hidden: Tensor, ends: list[int]) -> None:
        """See `Drafter.propose`."""


def make_drafter(
    wanted: Speculation,
    runner: Runner,
    scheduler: Scheduler,
    make_runner: Callable[[CausalLM], Runner],
) -> Drafter:
    """The requested drafter. Raises UserError if the models do not allow it."""
    model = runner.model
    if wanted.kind == "mtp":
        if not model.config.multi_token_depth:
            raise UserError("speculate: mtp needs a model with a multi-token module")
        return MultiTokenDrafter(runner, scheduler, wanted.depth)
    if wanted.kind == "lookup":
        return LookupDrafter(wanted.depth, verification(model))
    if wanted.draft_model is not None:
        theirs, ours = wanted.draft_model.config, model.config
        if theirs.vocab_size != ours.vocab_size:
            raise UserError(
                f"speculate: the draft model has {theirs.vocab_size} tokens, "
                f"the model {ours.vocab_size}"
            )
        draft = make_runner(wanted.draft_model.eval())
        return ModelDrafter(draft, scheduler, wanted.depth, verification(model) + BY_MODEL)
    return NoDrafter()


def verification(model: CausalLM) -> float:
    """What it costs to verify a draft, as a share of a step without drafts."""
    kinds = {type(module) for module in model.modules()}
    cost = BLOCKS if BlockLinear in kinds else PACKED if PackedLinear in kinds else PLAIN
    return cost + BY_EXPERTS * (MoE in kinds)


def room(answer: SequenceState, depth: int) -> int:
    """How many drafts an answer may have: none if finished, not drawing yet, or shaped.

    Penalties and grammars change with every token, so such answers go on one by one. One token
    always comes on top of the drafts.
    """
    if answer.finish is not None or answer.params.shaped:
        return 0
    if answer.computed != len(answer.tokens) - 1 or len(answer.tokens) == answer.prompt_length:
        return 0
    return max(min(depth, answer.limit - len(answer.tokens) - 1), 0)


def guess(logits: Tensor, answers: Sequence[SequenceState]) -> None:
    """Add one draft to each answer from logits (A, V): the likeliest, or drawn as it draws."""
    best = likeliest(logits)[0]
    for answer, token in zip(answers, best, strict=True):
        if answer.params.greedy:
            answer.drafts.append(token)
    drawn = [row for row, answer in enumerate(answers) if not answer.params.greedy]
    if not drawn:
        return
    some = [answers[row] for row in drawn]
    chances = distributions(logits[drawn], [answer.params for answer in some])
    places = [len(answer.tokens) + len(answer.drafts) for answer in some]
    tokens = draw(chances, uniforms([answer.seed for answer in some], places, DRAFTED)).tolist()
    for answer, token, row in zip(some, tokens, chances, strict=True):
        answer.draft_probs.append(row)
        answer.drafts.append(token)


def worth(answer: SequenceState, depth: int, cost: float) -> int:
    """How many drafts of a module or a model, `depth` at most, are worth making for an answer."""
    most = room(answer, depth)
    if not most:
        return 0
    if answer.acceptance is None:
        answer.acceptance = Acceptance([STANDS] * depth, cost)
    return answer.acceptance.depth(range(most))


def draft_on(
    drafting: list[tuple[SequenceState, int]],
    hidden: Tensor,
    runner: Runner,
    scheduler: Scheduler,
    run: Callable[[list[SequenceState], Tensor], Tensor],
) -> None:
    """Draft so many tokens for each answer, the first ones read from hidden (A, D).

    `run` computes the place that an answer's newest draft leads to: (answers, hidden) → hidden.
    """
    while drafting:
        guess(runner.logits(hidden), [answer for answer, _ in drafting])
        more = [
            row
            for row, (answer, most) in enumerate(drafting)
            if len(answer.drafts) < most
            and scheduler.extend(answer, len(answer.tokens) + len(answer.drafts))
        ]
        hidden = some_rows(hidden, more)
        drafting = [drafting[row] for row in more]
        if drafting:
            hidden = run([answer for answer, _ in drafting], hidden)


def _last_rows(hidden: Tensor, chunks: Sequence[Chunk], some: Sequence[int]) -> Tensor:
    """Of hidden states (N, D) the last one of each of some chunks."""
    ends = list(accumulate(chunk.count for chunk in chunks))
    return some_rows(hidden, [ends[n] - 1 for n in some])


class MultiTokenDrafter:
    """DeepSeek-V3's own module (report §2.2): from a place's hidden state and the next token, the
    one after it. For more drafts it runs again on what it made, as if the model had made it.

    The module's slots at the end of a shared block were made with another request's next token;
    that may cost a draft, never a token.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler, depth: int) -> None:
        self.runner, self.scheduler, self.depth = runner, scheduler, depth
        layers = runner.model.config.num_hidden_layers
        self.cost = verification(runner.model) + 1 / layers  # it has one layer

    def propose(self, plan: Sequence[Chunk], hidden: Tensor, ends: list[int]) -> None:
        """See `Drafter.propose`."""
        chunks: list[Chunk] = []
        rows: list[int] = []
        following: list[int] = []
        for chunk, end in zip(plan, ends, strict=True):
            answer, start = chunk.answer, chunk.start
            if answer.finish is None:
                settled, first = answer.computed - start, end - chunk.count
                chunks.append(Chunk(answer, start, settled))
                rows += range(first, first + settled)
                following += answer.tokens[start + 1 : start + settled + 1]
        if not chunks:
            return
        hidden = some_rows(hidden, rows)
        most = [worth(chunk.answer, self.depth, self.cost) for chunk in chunks]
        if self._in_one_call(chunks, hidden, following, most[0]):
            return
        ahead = self.runner.ahead(chunks, hidden, following)
        drafting = [(chunk.answer, n) for chunk, n in zip(chunks, most, strict=True) if n]
        last = _last_rows(ahead, chunks, [place for place, n in enumerate(most) if n])
        draft_on(drafting, last, self.runner, self.scheduler, self._on)

    def _in_one_call(
        self, chunks: list[Chunk], hidden: Tensor, following: list[int], most: int
    ) -> bool:
        """Draft for a greedy answer that runs alone; whether that was possible."""
        answer = chunks[0].answer
        if not answer.params.greedy or not self.scheduler.extend(
            answer, len(answer.tokens) + most - 1
        ):
            return False
        drafts = self.runner.draft(chunks, hidden, following, most)
        answer.drafts = drafts or []
        return drafts is not None

    def _on(self, answers: list[SequenceState], hidden: Tensor) -> Tensor:
        chunks = [Chunk(a, a.computed + len(a.drafts) - 1, 1) for a in answers]
        return self.runner.ahead(chunks, hidden, [answer.drafts[-1] for answer in answers])


class ModelDrafter:
    """A smaller model of the same vocabulary, with its own cache in the same blocks."""

    def __init__(self, runner: Runner, scheduler: Scheduler, depth: int, cost: float) -> None:
        self.runner, self.scheduler, self.depth, self.cost = runner, scheduler, depth, cost

    def propose(self, plan: Sequence[Chunk], hidden: Tensor, ends: list[int]) -> None:
        """See `Drafter.propose`. It reads what the model has read, and the newest token too."""
        chunks: list[Chunk] = []
        drafting: list[tuple[SequenceState, int]] = []
        places: list[int] = []
        for answer in (chunk.answer for chunk in plan):
            if answer.finish is not None:
                continue
            start, end = min(answer.draft_computed, answer.computed), answer.computed
            most = worth(answer, self.depth, self.cost)
            if most and self.scheduler.extend(answer, len(answer.tokens)):
                end = len(answer.tokens)
                drafting.append((answer, most))
                places.append(len(chunks))
            if start < end:
                chunks.append(Chunk(answer, start, end - start))
                answer.draft_computed = end
        if not chunks:
            return
        last = _last_rows(self.runner.run(chunks, []).hidden, chunks, places)
        draft_on(drafting, last, self.runner, self.scheduler, self._on)

    def _on(self, answers: list[SequenceState], hidden: Tensor) -> Tensor:
        chunks = [Chunk(a, len(a.tokens) + len(a.drafts) - 1, 1) for a in answers]
        for chunk in chunks:
            chunk.answer.draft_computed = chunk.start + 1
        return self.runner.run(chunks, []).hidden


class LookupDrafter:
    """Prompt look-up: drafts what followed an earlier occurrence of the last tokens."""

    kinds = tuple(sum(least <= alike for least in ALIKE) - 1 for alike in range(LONGEST + 1))

    def __init__(self, depth: int, cost: float) -> None:
        self.depth, self.cost = depth, cost

    def propose(self, plan: Sequence[Chunk], hidden: Tensor, ends: list[int]) -> None:
        """See `Drafter.propose`."""
        for answer in (chunk.answer for chunk in plan):
            if most := room(answer, self.depth):
                answer.drafts = self._drafts(answer, most)

    def _drafts(self, answer: SequenceState, most: int) -> list[int]:
        if answer.lookup is None or answer.acceptance is None:
            answer.lookup = Lookup()
            answer.acceptance = Acceptance(list(ALIKE.values()), self.cost)
        place, alike = answer.lookup.find(answer.tokens)
        if not alike:
            return []
        count = answer.acceptance.depth(repeat(self.kinds[alike], most))
        return following(answer.tokens, place, count)
