"""lm-eval's model interface over the engine.

Prompts reach the model as ids of our own encoders: begin-of-text is there once, from the chat
template or from the tokenizer's post-processor, never from both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llamaseek.engine.engine import Engine
from llamaseek.engine.request import Output, Request, SamplingParams
from llamaseek.errors import UserError
from llamaseek.evals.journal import Journal
from llamaseek.text.chat import ChatOptions, encode_chat
from llamaseek.text.tokenizer import Tokenizer

CHUNK = 128  # requests that are computed from an empty prefix cache, and saved together
DEFAULT_TOKENS = 256  # lm-eval's own limit of an answer where a task names none
DATE = "26 Jul 2024"  # the date that Llama 3.1's template writes where none is given
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class RenderedChat(str):
    """A text whose beginning is encoded already: `head` up to its last control token, then `tail`.

    lm-eval passes it on unchanged, as the text that it is.
    """

    head: tuple[int, ...]
    tail: str

    @classmethod
    def of(cls, text: str, head: Sequence[int], tail: str) -> RenderedChat:
        """The prompt `text`, in its two parts."""
        made = cls(text)
        made.head, made.tail = tuple(head), tail
        return made


class Likelihood(tuple[float, bool]):
    """The log-probability of a continuation and whether it is greedy, as lm-eval takes it.

    `tokens` are the continuation's ids, `logprobs` their log-probabilities.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    @classmethod
    def of(cls, tokens: Sequence[int], logprobs: Sequence[float], greedy: bool) -> Likelihood:
        """A continuation's result, from its tokens'."""
        made = cls((sum(logprobs), greedy))
        made.tokens, made.logprobs = tuple(tokens), tuple(logprobs)
        return made


def chat_prompt(
    tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True
) -> RenderedChat:
    """A conversation as the text that transformers renders, with our own ids.

    Without `add_generation_prompt` the last message, the assistant's, is left open. A template
    that writes a date gets `DATE`. UserError where the template takes no such conversation.
    """
    dated = "date_string" in (tokenizer.chat_template or "")
    options = ChatOptions(
        continue_final_message=not add_generation_prompt,
        chat_template_kwargs={"date_string": DATE} if dated else {},
    )
    chat = encode_chat(tokenizer, messages, add_generation_prompt, options=options)
    last = max((at for at, control in enumerate(chat.control) if control), default=-1) + 1
    text = tokenizer.decode(chat.ids, skip_special=False)
    return RenderedChat.of(
        text, chat.ids[:last], tokenizer.decode(chat.ids[last:], skip_special=False)
    )


@dataclass(frozen=True)
class LMQuery:
    """What the engine is asked for an item of a task: a prompt, and fields of `SamplingParams`."""

    task: str
    prompt: tuple[int, ...]
    params: dict[str, Any]

    @property
    def key(self) -> str:
        """Names it by all that its result depends on."""
        return hashlib.blake2b(
            repr((self.prompt, sorted(self.params.items()))).encode()
        ).hexdigest()


@dataclass
class Warnings:
    """Prompts that were cut on the left, and answers that ended at their length limit."""

    cut_prompts: int = 0
    at_limit: int = 0


@dataclass(eq=False)
class EngineLM(LM):  # type: ignore[misc]
    """An engine as lm-eval's model.

    Requests are computed in chunks, each from an empty prefix cache, so that a chunk's figures do
    not depend on what ran before; `journal` keeps them for a run that is resumed. `truncate` cuts
    prompts that do not fit, after begin-of-text; without it they are a UserError. `progress` is
    called with the number of new requests, and with the number that is done.
    """

    engine: Engine
    tokenizer: Tokenizer = field(repr=False)
    name: str = "model"
    journal: Journal | None = None
    truncate: bool = False
    progress: Callable[[int, int], None] = lambda more, done: None
    warnings: dict[str, Warnings] = field(default_factory=dict)
    facts: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.context = min(self.engine.context, self.engine.capacity)

    @property
    def tokenizer_name(self) -> str:
        """Which template is used; lm-eval's request cache, which is off, wants to know."""
        return self.name

    @property
    def max_length(self) -> int:
        """Tokens of a prompt with its answer."""
        return self.context

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The source of the model's own template."""
        return self.tokenizer.chat_template or ""

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> RenderedChat:
        """See `chat_prompt`."""
        return chat_prompt(self.tokenizer, chat_history, add_generation_prompt)

    # How texts become ids.

    def parts(self, text: str) -> tuple[tuple[int, ...], str]:
        """Ids that stand before what is encoded, and the text to encode after them."""
        if isinstance(text, RenderedChat):
            return text.head, text.tail
        return tuple(self.tokenizer.prefix_ids), text

    def encode(self, text: str) -> list[int]:
        """A prompt's ids; plain text after what the tokenizer's post-processor puts before it."""
        head, tail = self.parts(text)
        return [*head, *self.tokenizer.encode(tail)]

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of a context and of what follows it, split as lm-eval's `hf` model does.

        Blanks at the context's end belong to the continuation; both are encoded as one text, and
        the continuation is what exceeds the number of tokens of the context alone. After an empty
        context stands begin-of-text, or the end-of-text token of a tokenizer without one.
        """
        if not context:
            ids, begin = self.tokenizer.encode(continuation), self._begin
            return ([begin], ids) if ids[:1] != [begin] else (ids[:1], ids[1:])
        head, tail = self.parts(context)
        kept = tail.rstrip()
        before = [*head, *self.tokenizer.encode(kept)]
        whole = [*head, *self.tokenizer.encode(tail + continuation)]
        return before, whole[len(before) :]

    @property
    def _begin(self) -> int:
        bos = self.tokenizer.bos_id
        return self.tokenizer.eos_id if bos is None else bos

    # The three questions that lm-eval asks.

    def loglikelihood(self, requests: list[Instance]) -> list[Likelihood]:
        """The log-probability of each continuation after its context, and whether it is greedy."""
        pairs = [self.encode_pair(*request.args) for request in requests]
        for request, (context, _) in zip(requests, pairs, strict=True):
            self.facts[request.task_name, request.doc_id] = {"prompt_tokens": len(context)}
        return self.score([request.task_name for request in requests], pairs)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-probability of each text, in windows of the context's length."""
        tasks: list[str] = []
        pairs: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tokenizer.encode(request.args[0]),
                prefix_token=self._begin,
                max_seq_len=self.context - 1,
                context_len=1,
            )
            for window in map(make_disjoint_window, windows):
                pairs.append((list(window[0]), list(window[1])))
                tasks.append(request.task_name)
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self.score(tasks, pairs), strict=True):
            sums[owner] += value
        return sums

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each prompt, up to its stop strings."""
        jobs, seen = [], dict[str, int]()
        for request in requests:
            context, given = request.args
            kwargs = normalize_gen_kwargs(dict(given), DEFAULT_TOKENS)
            jobs.append(self._generation(request.task_name, self.encode(context), kwargs, seen))
        found = self.generate(jobs)
        for request, job, answer in zip(requests, jobs, found, strict=True):
            self.facts[request.task_name, request.doc_id] = {
                "prompt_tokens": len(job.prompt),
                "answer_tokens": answer["tokens"],
                "finish_reason": answer["finish"],
            }
            self._warned(request.task_name).at_limit += answer["finish"] == "length"
        return [answer["text"] for answer in found]

    def generate(self, jobs: Sequence[LMQuery]) -> list[dict[str, Any]]:
        """`text`, `finish` and `tokens` of each answer. UserError for prompts that do not fit."""
        self._check_fit(jobs, 0)
        return self._answers([self._fitted(job) for job in jobs])

    def _generation(
        self, task: str, ids: list[int], kwargs: dict[str, Any], seen: dict[str, int]
    ) -> LMQuery:
        """A generation as the engine takes it; a prompt drawn again gets another seed."""
        stops = handle_stop_sequences(kwargs.get("until"), eos=None)
        tokens = [text for text in stops if self.tokenizer.has(text)]
        params: dict[str, Any] = {
            "max_tokens": int(kwargs["max_gen_toks"]),
            "stop": [text for text in stops if text and text not in tokens],
            "stop_token_ids": [self.tokenizer.id_of(text) for text in tokens],
        }
        if kwargs.get("do_sample") and kwargs.get("temperature", 1.0):
            params |= {key: kwargs[key] for key in SAMPLING if kwargs.get(key) is not None}
            params.setdefault("temperature", 1.0)
            again = LMQuery(task, tuple(ids), params).key
            params["seed"] = seen[again] = seen.get(again, -1) + 1
        return LMQuery(task, tuple(ids), params)

    def score(
        self, tasks: Sequence[str], pairs: Sequence[tuple[list[int], list[int]]]
    ) -> list[Likelihood]:
        """Of each pair of contexts and continuations, as ids.

        Continuations that differ in their last token alone are one request: MMLU's letters.
        """
        groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        jobs: list[LMQuery] = []
        for number, (task, (context, after)) in enumerate(zip(tasks, pairs, strict=True)):
            groups.setdefault((task, (*context, *after[:-1])), []).append(number)
        for (task, prompt), members in groups.items():
            start = min(len(pairs[member][0]) for member in members)
            last = sorted({pairs[member][1][-1] for member in members})
            params = {"max_tokens": 1, "logprobs": 1, "logprob_token_ids": last}
            if start < len(prompt):
                params |= {"prompt_logprobs": 1, "logprob_start_len": start}
            jobs.append(LMQuery(task, prompt, params | {"ignore_eos": True, "detokenize": False}))
        self._check_fit(jobs, 1)
        answers = self._answers([self._fitted(job) for job in jobs])
        results: list[Likelihood] = [Likelihood.of((), (), False)] * len(pairs)
        for members, answer in zip(groups.values(), answers, strict=True):
            for member in members:
                results[member] = _likelihood(pairs[member][1], answer)
        return results

    # How they reach the engine.

    def _check_fit(self, jobs: Sequence[LMQuery], after: int) -> None:
        """UserError where prompts are longer than the context leaves room for."""
        room = self.context - max(after, 1)
        long = [job for job in jobs if len(job.prompt) > room]
        if not long:
            return
        if not self.truncate:
            task, most = long[0].task, max(len(job.prompt) for job in long)
            raise UserError(
                f"{task}: {len(long)} of {len(jobs)} prompts do not fit the model's context of "
                f"{self.context} tokens (the longest has {most}); use fewer shots (--num-fewshot), "
                "or --truncate to cut prompts at their beginning"
            )
        for job in long:
            self._warned(job.task).cut_prompts += 1

    def _fitted(self, job: LMQuery) -> LMQuery:
        """With what fits the context: the end of a long prompt, the beginning of the answer."""
        room, begin = self.context - 1, tuple(self.tokenizer.prefix_ids)
        prompt, params = job.prompt, dict(job.params)
        if len(prompt) > room:
            gone = len(prompt) - room
            keep = begin if prompt[: len(begin)] == begin else ()
            prompt = (*keep, *prompt[gone + len(keep) :])
            if "logprob_start_len" in params:
                params["logprob_start_len"] = max(params["logprob_start_len"] - gone, 1)
        params["max_tokens"] = min(params["max_tokens"], self.context - len(prompt))
        return LMQuery(job.task, prompt, params)

    def _warned(self, task: str) -> Warnings:
        return self.warnings.setdefault(task, Warnings())

    def _answers(self, jobs: Sequence[LMQuery]) -> list[dict[str, Any]]:
        """What the engine says to each job; equal ones are asked once."""
        unique = {job.key: job for job in jobs}
        self.progress(len(unique), 0)
        found: dict[str, dict[str, Any]] = {}
        for _, of_task in groupby(unique.items(), lambda item: item[1].task):
            rest = list(of_task)
            for at in range(0, len(rest), CHUNK):
                found.update(self._chunk(dict(rest[at : at + CHUNK])))
        return [found[job.key] for job in jobs]

    def _chunk(self, jobs: dict[str, LMQuery]) -> dict[str, dict[str, Any]]:
        """The answers of one chunk, from the journal where it has them."""
        name = hashlib.blake2b("".join(jobs).encode()).hexdigest()
        kept = None if self.journal is None else self.journal.get(name)
        if kept is None:
            kept = [_kept(output) for output in self._compute(jobs.values())]
            if self.journal is not None:
                self.journal.put(name, kept)
        else:
            self.progress(0, len(jobs))
        return dict(zip(jobs, kept, strict=True))

    def _compute(self, jobs: Iterable[LMQuery]) -> list[Output]:
        engine = self.engine
        engine.pool.clear()
        works = []
        try:
            for job in jobs:
                params = SamplingParams(**job.params)
                works.append(engine.add(Request(prompt=job.prompt, params=params)))
            while engine.busy:
                self.progress(0, sum(delta.finish is not None for delta in engine.step()))
            return [work.output() for work in works]
        except RuntimeError as error:
            raise UserError(f"{self.name}: {error.__cause__ or error}") from error
        finally:
            for work in works:
                engine.cancel(work.request.id)


def _kept(output: Output) -> dict[str, Any]:
    """What a result needs of an output, as JSON holds it."""
    (answer,) = output.answers
    if answer.logprobs is None:
        return {"text": answer.text, "finish": answer.finish, "tokens": len(answer.tokens)}
    scores = [[s.logprob, s.logprob == s.top[0][1]] for s in output.prompt_logprobs or [] if s]
    best, *named = answer.logprobs[0].top
    return {"scores": scores, "best": best[1], "named": named}


def _likelihood(continuation: Sequence[int], answer: dict[str, Any]) -> Likelihood:
    """Of a continuation: it is greedy where each token is the likeliest."""
    before = answer["scores"][len(answer["scores"]) - (len(continuation) - 1) :]
    last = dict(map(tuple, answer["named"]))[continuation[-1]]
    greedy = all(likeliest for _, likeliest in before) and last == answer["best"]
    return Likelihood.of(continuation, [*(value for value, _ in before), last], greedy)
