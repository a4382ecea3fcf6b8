"""Requests to the engine, their state while they run, and their results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from llamaseek.errors import UserError, bad_value

if TYPE_CHECKING:
    from torch import Tensor

    from llamaseek.engine.constrain import Constraint
    from llamaseek.engine.drafts.acceptance import Acceptance
    from llamaseek.engine.drafts.lookup import Lookup
    from llamaseek.engine.matcher import Matcher, Session
    from llamaseek.engine.text_out import TextOut

GREEDY_BELOW = 1e-5  # temperatures so low are greedy; float32 could not divide by them anyway
MOST_LOGPROBS = 100
MOST_ANSWERS = 128  # OpenAI's limit on n
_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of an answer are sampled and when it ends.

    Logits pass through, in this order: repetition penalty (over prompt and answer; Keskar et al.
    2019 §4.1), presence and frequency penalty (over the answer; OpenAI's API reference), logit
    bias, temperature (0 is greedy), top_k (0 keeps all), top_p (1 keeps all), min_p (a share of
    the likeliest token's probability).
    `max_tokens` None runs to the end of the context; 0 only reads the prompt. `logprobs` and
    `prompt_logprobs` ask for log-probabilities with that many likeliest alternatives; they are
    the model's own, before penalties and temperature. Those of a prompt begin at its token number
    `logprob_start_len` (SGLang's name), so that what stands before may come from the cache. The
    tokens of `logprob_token_ids` (vLLM's name) are listed after the likeliest. The same `seed`
    gives the same answer whatever else is running; None is a different one each time. An answer
    ends at the model's own end tokens, unless `ignore_eos`, and at `stop_token_ids`, which are not
    part of it; `stop` strings likewise, also where they span tokens. Without `detokenize` an answer
    has tokens and no text. `embed` asks for the hidden state of the prompt's last token.
    Raises UserError, naming the field, for a value that is not allowed.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = 128
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    stop: Sequence[str] = ()
    detokenize: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_start_len: int = 0
    logprob_token_ids: Sequence[int] = ()
    n: int = 1
    constraint: Constraint | None = None
    embed: bool = False

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0, math.inf)
        _whole("top_k", self.top_k, 0, 2**31)
        _number("top_p", self.top_p, 0, 1, above=True)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, math.inf, above=True)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        _whole("n", self.n, 1, MOST_ANSWERS)
        if self.seed is not None:
            _whole("seed", self.seed, 0, 2**64 - 1)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 0, 2**31)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0, MOST_LOGPROBS)
        _whole("logprob_start_len", self.logprob_start_len, 0, 2**31)
        for name in ("stop_token_ids", "logprob_token_ids"):
            for token in getattr(self, name):
                _whole(name, token, 0, 2**31)
        if self.logprob_start_len and self.prompt_logprobs is None:
            raise bad_value(
                "logprob_start_len", self.logprob_start_len, "0 without prompt_logprobs"
            )
        if self.logprob_token_ids and self.logprobs is None:
            raise bad_value(
                "logprob_token_ids", list(self.logprob_token_ids), "none without logprobs"
            )
        for token, bias in self.logit_bias.items():
            _whole("logit_bias", token, 0, 2**31)
            _number(f"logit_bias[{token}]", bias, -100, 100)
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise bad_value("stop", self.stop, "a list of texts that are not empty")

    @property
    def greedy(self) -> bool:
        """Whether each token is simply the likeliest one."""
        return self.temperature < GREEDY_BELOW

    @property
    def shaped(self) -> bool:
        """Whether what was said before, a bias or a grammar changes the logits."""
        return bool(
            self.constraint is not None
            or self.logit_bias
            or self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
        )


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and its sampling parameters.

    `salt` keeps prefix sharing among requests of one salt. `adapter` names one of the engine's
    adapters, "" its base; what one has computed is never shared with another.
    """

    prompt: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    salt: str = ""
    adapter: str = ""
    id: int = field(default_factory=lambda: next(_numbers))


class Logprob(NamedTuple):
    """A token's log-probability, and the most probable tokens at its position in order.

    Those of `logprob_token_ids` follow the most probable ones.

    Both come from one float32 tensor, so that `logprob == top[0][1]` identifies a greedy choice.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass
class Completion:
    """One answer. `finish` is stop or length; `stop_id` is the id that ended it, if one did."""

    index: int
    tokens: list[int]
    text: str
    finish: str
    logprobs: list[Logprob] | None = None
    stop_id: int | None = None


@dataclass
class Output:
    """All answers to one request, in order of their index.

    `prompt_logprobs` has an entry a prompt token, None for the first and for those before
    `logprob_start_len`; `embedding` is the (D)
    hidden state that was asked for. `cached` counts prompt
    tokens that came from shared blocks. Times are `time.monotonic()` seconds.
    """

    request: Request
    answers: list[Completion]
    prompt_logprobs: list[Logprob | None] | None
    cached: int
    arrived: float
    first_token: float | None
    finished: float
    embedding: list[float] | None = None


@dataclass(slots=True)
class Delta:
    """The tokens and text that one step added to one answer.

    The last one of an answer has a `finish`: stop, length, or error, and then `error`.
    `prompt_logprobs`, `embedding` and `cached`, the prompt's tokens that came from shared blocks,
    come once, with the first delta of answer 0. `stop_reason` is the stop string that came, as in
    vLLM. `moment` is when its tokens were drawn, in `time.monotonic()` seconds.
    """

    request: int
    index: int
    tokens: list[int]
    text: str = ""
    finish: str | None = None
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob | None] | None = None
    error: str | None = None
    embedding: list[float] | None = None
    cached: int = 0
    stop_reason: str | None = None
    moment: float = 0.0


@dataclass(slots=True, eq=False)
class SequenceState:
    """The state of one running answer: `computed` of its `tokens` are in the cache.

    `tokens` is the prompt and what was said so far; `drafts` are guesses at what comes next,
    each with the distribution (V) it was drawn from if it was drawn. `row` is its
    line in the scheduler's block table, -1 while it waits.
    """

    request: Request
    index: int
    seed: int
    limit: int  # tokens it may have, prompt included
    tokens: list[int]
    stop_token_ids: frozenset[int] = frozenset()  # the request's, and the model's end tokens
    computed: int = 0
    cached: int | None = None  # tokens found in shared blocks when it first ran
    row: int = -1
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    published: int = 0  # of its blocks, those others may share
    drafts: list[int] = field(default_factory=list)
    draft_probs: list[Tensor] = field(default_factory=list)
    draft_computed: int = 0  # of its places, those that a draft model has computed
    acceptance: Acceptance | None = None  # of its drafts, once there are any
    lookup: Lookup | None = None
    text: TextOut | None = None
    matcher: Matcher | None = None
    logprobs: list[Logprob] = field(default_factory=list)
    prompt_logprobs: list[Logprob | None] = field(default_factory=list)
    arrived: float = 0.0
    first_token: float | None = None
    embedding: list[float] | None = None
    finish: str | None = None
    stop_id: int | None = None
    error: Exception | None = None

    @property
    def params(self) -> SamplingParams:
        """How it is drawn."""
        return self.request.params

    @property
    def prompt_length(self) -> int:
        """Tokens it was given."""
        return len(self.request.prompt)

    @property
    def waits(self) -> bool:
        """Whether its next token cannot be drawn yet, because the grammar's mask is not there."""
        return self.matcher is not None and not self.matcher.ready

    @property
    def scored_from(self) -> int:
        """The first place whose hidden state its prompt's log-probabilities need."""
        return max(self.params.logprob_start_len, 1) - 1

    @property
    def unscored(self) -> bool:
        """Whether log-probabilities of its prompt are wanted and not all there."""
        wanted = self.params.prompt_logprobs is not None and self.index == 0
        return wanted and len(self.prompt_logprobs) < self.prompt_length

    @property
    def generated(self) -> list[int]:
        """Tokens it has added to the prompt."""
        return self.tokens[len(self.request.prompt) :]


def check_request(request: Request, context: int, vocabulary: int) -> None:
    """Refuse empty prompts, prompts beyond the context, and ids the model does not have."""
    prompt = request.prompt
    if not prompt:
        raise UserError("prompt: is empty; it needs at least one token")
    room = context if request.params.max_tokens == 0 else context - 1
    if len(prompt) > room:
        raise UserError(f"prompt: has {len(prompt)} tokens; the model's context leaves {room}")
    params = request.params
    named = {"logit_bias": params.logit_bias, "logprob_token_ids": params.logprob_token_ids}
    for name, ids in {"prompt": prompt, **named}.items():
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            outside = next(token for token in ids if not 0 <= token < vocabulary)
            raise bad_value(name, outside, f"ids from 0 to {vocabulary - 1}")


def _number(name: str, value: Any, low: float, high: float, above: bool = False) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = fits and (low < value if above else low <= value) and value <= high
    if not fits or math.isinf(value):
        least = f"above {low}" if above else f"of at least {low}"
        most = "" if math.isinf(high) else f" and at most {high}"
        raise bad_value(name, value, f"a number {least}{most}")


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise bad_value(name, value, f"a whole number from {low} to {high}")


@dataclass
class ActiveRequest:
    """A request that the engine is running."""

    request: Request
    seed: int
    answers: list[SequenceState]
    texts: list[str]
    arrived: float
    session: Session | None = None
    closed: int = 0
    finished: float = 0.0

    @property
    def done(self) -> bool:
        """Whether all of its answers are."""
        return self.closed == self.request.params.n

    def output(self) -> Output:
        """What came of it; RuntimeError if an answer failed."""
        for answer in self.answers:
            if answer.error is not None:
                raise RuntimeError(f"request {self.request.id} failed") from answer.error
        wanted = self.request.params.logprobs is not None
        answers = [
            Completion(
                a.index,
                a.generated,
                text,
                a.finish or "",
                a.logprobs if wanted else None,
                a.stop_id,
            )
            for a, text in zip(self.answers, self.texts, strict=True)
        ]
        first = self.answers[0]
        scores = first.prompt_logprobs if self.request.params.prompt_logprobs is not None else None
        moments = (self.arrived, first.first_token, self.finished)
        return Output(self.request, answers, scores, first.cached or 0, *moments, first.embedding)
