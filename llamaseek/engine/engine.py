"""The engine: requests in, tokens out, one step after another.

N tokens of a step, D width, R rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from random import SystemRandom
from typing import TYPE_CHECKING

import torch

from llamaseek.engine.adapters import Adapters
from llamaseek.engine.ahead import Flight, RunAhead
from llamaseek.engine.blocks import BlockPool
from llamaseek.engine.constrain import Grammars
from llamaseek.engine.drafts.drafters import make_drafter
from llamaseek.engine.ends import append, end_text
from llamaseek.engine.forward.graphs import Capture, Graphs, capturable, compiled
from llamaseek.engine.forward.paged import build_cache, bytes_per_token
from llamaseek.engine.forward.runner import Runner, home
from llamaseek.engine.forward.step_layout import StepResult
from llamaseek.engine.leader import CacheBlocks, lead
from llamaseek.engine.logprobs import score_prompts, score_tokens
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import (
    ActiveRequest,
    Delta,
    Output,
    Request,
    SamplingParams,
    SequenceState,
    check_request,
)
from llamaseek.engine.sampling.sampler import decide, derive_seed, read
from llamaseek.engine.sampling.state import SamplingState
from llamaseek.engine.scheduler import Chunk, QueueFull, Scheduler
from llamaseek.engine.statistics import Statistics
from llamaseek.engine.text_out import TextOut
from llamaseek.errors import UserError, bad_value
from llamaseek.herd.configs import MASKED
from llamaseek.models import CausalLM
from llamaseek.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llamaseek.checkpoints.peft import Adapter
    from llamaseek.engine.ranks.tensor_group import TensorGroup

_entropy = SystemRandom()
REWARD_MODEL = "model: is a reward model: it returns scores and cannot generate text"


class Engine:
    """Runs requests on a model. Not for several threads at once; see `background`.

    With a tokenizer answers have texts, and requests may have stop strings and constraints.
    `adapters` are put on the model in place; requests choose among them by name. With a `group`
    the model is rank 0's share, and the other ranks `leader.follow`. With `scoring` it may be a
    reward model, whose requests have to `embed`.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer | None = None,
        options: EngineOptions | None = None,
        adapters: Mapping[str, Adapter] | None = None,
        group: TensorGroup | None = None,
        scoring: bool = False,
    ) -> None:
        if model.config.is_reward_model and not scoring:
            raise UserError(REWARD_MODEL)
        if not model.config.is_causal:
            raise UserError(f"model: {MASKED}")
        self.model, self.tokenizer, self.group = model.eval(), tokenizer, group
        self.grammars = None if tokenizer is None else Grammars(tokenizer)
        self.adapters = Adapters(model, adapters or {})
        self.options = options = options or EngineOptions()
        self.end_token_ids = _end_token_ids(model.config.eos_token_id, tokenizer)
        self.context = model.config.max_position_embeddings
        self.pool = BlockPool(self._blocks(), options.block_size)
        ahead = options.speculation.ahead
        self.scheduler = Scheduler(
            self.pool,
            longest=self.context,
            max_num_seqs=options.max_num_seqs,
            most_waiting=options.most_waiting,
            budget=max(options.max_num_batched_tokens, options.max_num_seqs * (1 + ahead)),
            enable_prefix_caching=options.enable_prefix_caching,
        )
        self.runner = self._runner(model)
        self.drafter = make_drafter(options.speculation, self.runner, self.scheduler, self._runner)
        self.sampling: SamplingState | None = None
        self.ahead: RunAhead | None = None
        self.flight: Flight | None = None
        if home(model)[1].type != "cpu":
            self.keep_on_device()
        self.statistics = Statistics()
        self._work: dict[int, ActiveRequest] = {}

    def keep_on_device(self) -> None:
        """Keep what tokens are drawn with on the model's device, and launch steps ahead of what is
        read where nothing but the host has to see the tokens.
        """
        size, device = self.model.config.vocab_size, home(self.model)[1]
        self.sampling = SamplingState(self.options.max_num_seqs, size, device)
        if self.group is None and self.options.speculation.kind == "none":
            self.ahead = RunAhead(self.runner, self.scheduler, self.sampling)

    def _blocks(self) -> int:
        """How many blocks the allowed memory holds, as far as they could all be of use."""
        options, draft = self.options, self.options.speculation.draft_model
        token = sum(
            bytes_per_token(m.cache_shapes(), home(m)[0], options.cache_dtype)
            for m in (self.model, draft)
            if m is not None
        )
        size = options.block_size
        limit = options.cache_limit(home(self.model)[1])
        blocks = limit // (token * size)
        if not blocks:
            raise UserError(
                f"cache_bytes: {limit} is less than one block of {size} tokens "
                f"takes ({token * size})"
            )
        return min(blocks, options.max_num_seqs * -(-self.context // size))

    def _runner(self, model: CausalLM) -> Runner:
        """A model with a cache of its own, in the same blocks."""
        options, (dtype, device) = self.options, home(model)
        size, count, tables = options.block_size, self.pool.count, self.scheduler.tables
        if self.group is not None and model is self.model:
            return lead(self.group, model, CacheBlocks(count, size, options.cache_dtype), tables)
        adapters = self.adapters if model is self.model else None
        adapted = adapters is not None and adapters.names  # whose rows change from step to step
        replayed = options.cuda_graphs and capturable(model) and not adapted
        shapes, blocks = model.cache_shapes(), count + int(replayed)
        try:
            cache = build_cache(shapes, blocks, size, dtype, options.cache_dtype, device)
        except torch.OutOfMemoryError:
            raise UserError(
                f"cache_bytes: {options.cache_limit(device)} bytes are not free on {device}"
            ) from None
        graphs = None
        if replayed:
            faster = compiled(model) if options.compile else None
            graphs = Graphs(model, cache, tables.shape[1], Capture(device), faster)
        return Runner(model, cache, tables, size, adapters, graphs, spare=count)

    @torch.inference_mode()
    def capture_graphs(self) -> Iterator[tuple[int, int]]:
        """Capture the decoding steps of all sizes, compiled with `compile`, before a request needs
        them: how many of how many are done. Nothing where steps run without CUDA graphs.
        """
        options = self.options
        yield from self.runner.capture(options.max_num_seqs * (1 + options.speculation.ahead))

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    @property
    def capacity(self) -> int:
        """The tokens that the cache holds."""
        return self.pool.count * self.pool.size

    def check(self, request: Request) -> None:
        """Raise UserError for a request that can never be answered."""
        if self.model.config.is_reward_model and not request.params.embed:
            raise UserError(REWARD_MODEL)
        check_request(request, self.context, self.model.config.vocab_size)
        self.adapters.check(request.adapter)
        params = request.params
        if self.grammars is None and (params.stop or params.constraint is not None):
            raise UserError("stop, constraint: need an engine with a tokenizer")
        if params.stop and not params.detokenize:
            raise bad_value("detokenize", False, "true with stop, which is found in the text")
        self.scheduler.check(self._limit(request))
        if self.grammars is not None and params.constraint is not None:
            self.grammars.check(params.constraint)

    def _stops(self, params: SamplingParams) -> frozenset[int]:
        ends = frozenset() if params.ignore_eos else self.end_token_ids
        return ends.union(params.stop_token_ids)

    def _limit(self, request: Request) -> int:
        most, given = request.params.max_tokens, len(request.prompt)
        if most is None:
            return max(min(self.context, self.capacity), given + 1)
        return min(given + most, self.context)

    def add(self, request: Request) -> ActiveRequest:
        """Queue a request. UserError if it can never be answered, `QueueFull` if too many wait."""
        self.check(request)
        return self._queue(request)

    def _queue(self, request: Request) -> ActiveRequest:
        if request.id in self._work:
            raise UserError(f"request: id {request.id} is in use")
        seed = request.params.seed
        seed = _entropy.getrandbits(64) if seed is None else seed
        if not self.scheduler.room:
            raise QueueFull(f"{len(self.scheduler.waiting)} requests wait; no more may")
        work = ActiveRequest(request, seed, [], [], time.monotonic())
        if self.grammars is not None and request.params.constraint is not None:
            work.session = self.grammars.open(request.params.constraint)
        self.scheduler.add(self._answer(work))
        self._work[request.id] = work
        self.statistics.prompt += len(request.prompt)
        return work

    def _answer(self, work: ActiveRequest) -> SequenceState:
        """The next answer of a request."""
        request, index = work.request, len(work.answers)
        answer = SequenceState(
            request=request,
            index=index,
            seed=derive_seed(work.seed, index),
            limit=self._limit(request),
            tokens=list(request.prompt),
            stop_token_ids=self._stops(request.params),
        )
        if self.tokenizer is not None and request.params.detokenize:
            answer.text = TextOut(self.tokenizer, request.params.stop)
        if work.session is not None:
            answer.matcher = work.session.matcher()
        work.answers.append(answer)
        work.texts.append("")
        return answer

    def cancel(self, request: int) -> bool:
        """Drop a request and free its blocks at once; False if it is not under way."""
        work = self._work.pop(request, None)
        if work is None:
            return False
        for answer in work.answers:
            if answer.finish is None:
                self.scheduler.remove(answer)
        self._release(work)
        self.statistics.cancelled += 1
        return True

    def request(self, prompt: str, params: SamplingParams | None = None) -> Request:
        """A text to continue, after what the tokenizer puts before one, as a request."""
        if self.tokenizer is None:
            raise UserError(
                "prompt: a text needs an engine with a tokenizer; give a Request of ids"
            )
        ids = [*self.tokenizer.prefix_ids, *self.tokenizer.encode(prompt)]
        return Request(prompt=ids, params=params or SamplingParams())

    def generate(
        self, requests: Iterable[Request | str], params: SamplingParams | None = None
    ) -> list[Output]:
        """Answer all requests, in their order; a text is continued as `params` say.

        UserError for a request that can never be answered. RuntimeError where an answer fails; the
        others are dropped then.
        """
        asked = [self.request(r, params) if isinstance(r, str) else r for r in requests]
        for request in asked:
            self.check(request)
        if self.model.training:  # by whoever trains it meanwhile
            self.model.eval()
        waiting, works = deque(asked), []
        try:
            while waiting or self.busy:
                while waiting and self.scheduler.room:
                    works.append(self._queue(waiting.popleft()))
                self.step()
            return [work.output() for work in works]
        finally:
            for work in works:
                self.cancel(work.request.id)

    def stream(self, request: Request) -> Iterator[Delta]:
        """The answers of one request as they come; closing the iterator cancels it."""
        work = self.add(request)
        try:
            while not work.done:
                yield from (delta for delta in self.step() if delta.request == request.id)
        finally:
            self.cancel(request.id)

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """One forward over whatever is ready; what it added to each answer.

        If the model fails, the answers of this step fail, and the engine goes on.
        """
        deltas = self._collect_masks()
        flight, self.flight = self.flight, None
        plan = [] if flight is not None else self.scheduler.schedule()
        answers = [chunk.answer for chunk in plan] if flight is None else flight.answers
        if not answers:
            return deltas
        try:
            if flight is None:
                self._step(plan, deltas)
            else:
                self._land(flight, deltas)
            self.statistics.failing = None
        except Exception as error:
            self.statistics.failing = type(error).__name__
            broken = [answer for answer in answers if not answer.finish and answer.row >= 0]
            deltas += [self._fail(answer, error) for answer in broken]
        return deltas

    def _land(self, flight: Flight, deltas: list[Delta]) -> None:
        """Read the tokens of a step, the next one launched before."""
        assert self.ahead is not None
        following = self.ahead.follow(flight)
        if following is not None:
            self.statistics.steps += 1
            self.statistics.computed += len(following.answers)
        found, now = flight.read(), time.monotonic()
        for answer, generated in zip(flight.answers, read(found, flight.answers), strict=True):
            if answer.row >= 0:  # else it was cancelled
                deltas.append(self._add(answer, generated, now))
                if answer.finish is None:
                    self.scheduler.publish(answer)
        if following is not None and any(answer.row >= 0 for answer in following.answers):
            self.flight = following

    def _collect_masks(self) -> list[Delta]:
        """Take the masks that are ready; what it tells of answers that end or fail by them."""
        held = [a for a in self.scheduler.running if a.matcher is not None and a.waits]
        if not held or self.grammars is None:
            return []
        self.grammars.collect(idle=len(held) == len(self.scheduler.running))
        return [delta for a in held if (delta := self._after_mask(a)) is not None]

    def _after_mask(self, answer: SequenceState) -> Delta | None:
        """The end of an answer whose grammar ends or fails it, or that waited for that alone."""
        matcher = answer.matcher
        assert matcher is not None
        if matcher.failure is not None:
            return self._fail(answer, RuntimeError(f"constraint: {matcher.failure}"))
        if not matcher.ready or not (matcher.ended or len(answer.tokens) >= answer.limit):
            return None
        delta = Delta(answer.request.id, answer.index, [])
        finish = end_text(answer, delta, "stop" if matcher.ended else "length")
        self._finish(answer, finish, delta)
        return delta

    def _step(self, plan: list[Chunk], deltas: list[Delta]) -> None:
        """`step`; what is known when something breaks is in `deltas` by then."""
        ends = list(accumulate(chunk.count for chunk in plan))
        drawing, rows = _drawing(plan, ends)
        made = self.runner.run(plan, rows)
        self.statistics.steps += 1
        self.statistics.computed += ends[-1]
        if any(chunk.answer.unscored for chunk in plan):
            score_prompts(self.runner, plan, made.hidden, ends)
        for chunk in plan:
            if not chunk.samples:
                chunk.answer.computed += chunk.count
        if self.ahead is not None and self.ahead.takes(plan):
            self.flight = self.ahead.launch(drawing, made.logits)
            return
        if drawing:
            self._say(drawing, rows, made, deltas)
        self.drafter.propose(plan, made.hidden, ends)
        for chunk in plan:
            if chunk.answer.finish is None:
                self.scheduler.publish(chunk.answer)

    def _say(
        self, drawing: list[SequenceState], rows: list[int], made: StepResult, deltas: list[Delta]
    ) -> None:
        """Draw the next tokens of every answer whose last token is computed."""
        now = time.monotonic()
        scored, start = [], 0
        found = decide(made, drawing, self.sampling)
        for answer, generated in zip(drawing, found, strict=True):
            drafts, first = len(answer.drafts), answer.first_token is None
            delta = self._add(answer, generated, now)
            deltas.append(delta)
            if answer.params.embed and first and answer.index == 0:
                hidden = made.hidden[rows[start]].float()
                delta.embedding = answer.embedding = hidden.tolist()
            if answer.params.logprobs is not None:
                scored.append((answer, delta, start))
            start += 1 + drafts
        if scored:
            score_tokens(made.logits, scored)

    def _add(self, answer: SequenceState, generated: list[int], now: float) -> Delta:
        """Append what an answer says, up to where it ends; then it is done."""
        statistics = self.statistics
        statistics.rounds += 1
        statistics.drafted += len(answer.drafts)
        statistics.accepted += len(generated) - 1
        if answer.acceptance is not None:
            answer.acceptance.record(len(answer.drafts), len(generated) - 1)
        first = answer.first_token is None
        delta = Delta(answer.request.id, answer.index, [], moment=now)
        try:
            if answer.error is not None:
                raise answer.error
            finish = append(answer, generated, delta)
        except Exception as error:
            return self._fail(answer, error)
        statistics.output += len(delta.tokens)
        answer.computed = len(answer.tokens) - 1
        answer.drafts, answer.draft_probs = [], []
        if first:
            answer.first_token = now
            if answer.index == 0:
                self._first(answer, delta)
        self._finish(answer, finish, delta)
        return delta

    def _finish(self, answer: SequenceState, finish: str | None, delta: Delta) -> None:
        """Keep the text of a delta, the last one of its answer if there is a `finish`."""
        if delta.text:
            self._work[answer.request.id].texts[answer.index] += delta.text
        if finish is not None:
            self.statistics.finished += 1
            self._close(answer, finish, delta)

    def _first(self, answer: SequenceState, delta: Delta) -> None:
        """The prompt is computed: return its log-probabilities, share it with its other answers."""
        delta.cached = answer.cached or 0
        self.statistics.cached += delta.cached
        if answer.params.prompt_logprobs is not None:
            delta.prompt_logprobs = answer.prompt_logprobs
        self._others(answer)

    def _others(self, answer: SequenceState) -> None:
        work = self._work[answer.request.id]
        others = [self._answer(work) for _ in range(len(work.answers), answer.params.n)]
        self.scheduler.add_next(others)

    def _close(self, answer: SequenceState, finish: str, delta: Delta) -> None:
        answer.finish = delta.finish = finish
        if finish != "error":
            answer.computed = min(answer.computed, len(answer.tokens))
            self.scheduler.publish(answer)
        self.scheduler.remove(answer)
        if answer.matcher is not None:
            answer.matcher.close()
        work = self._work[answer.request.id]
        work.closed += 1
        if work.done:
            self._release(work)
            work.finished = time.monotonic()
            del self._work[answer.request.id]

    def _release(self, work: ActiveRequest) -> None:
        """End the worker that held a request to its grammar."""
        if work.session is not None and self.grammars is not None:
            self.grammars.release(work.session)

    def _fail(self, answer: SequenceState, error: Exception) -> Delta:
        """End one answer because of an error of its own."""
        answer.error = error
        delta = Delta(answer.request.id, answer.index, [], error=f"{type(error).__name__}: {error}")
        if answer.index == 0 and answer.first_token is None:
            self._others(answer)  # they may fare better
        self.statistics.failed += 1
        self._close(answer, "error", delta)
        return delta


def _drawing(plan: list[Chunk], ends: list[int]) -> tuple[list[SequenceState], list[int]]:
    """The answers whose last token a step computes, and the rows of it and of their drafts."""
    drawing: list[SequenceState] = []
    rows: list[int] = []
    for chunk, end in zip(plan, ends, strict=True):
        if chunk.samples:
            drawing.append(chunk.answer)
            rows += range(end - 1 - len(chunk.answer.drafts), end)
    return drawing, rows


def _end_token_ids(
    configured: int | Sequence[int] | None, tokenizer: Tokenizer | None
) -> frozenset[int]:
    """The ids that end an answer: those of the model's config and those of its tokenizer."""
    ids = (configured,) if isinstance(configured, int) else configured or ()
    return frozenset(ids).union(tokenizer.stop_ids if tokenizer is not None else ())
