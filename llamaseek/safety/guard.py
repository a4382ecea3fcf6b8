"""A guard: a model that judges the last turn of a conversation, through the one engine.

Its prompt is `llamaseek.text.guard_prompt`; it answers greedily.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from llamaseek.engine.engine import Engine
from llamaseek.engine.open import open_model, open_tokenizer
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import MOST_LOGPROBS, Completion, Logprob, Request, SamplingParams
from llamaseek.errors import UserError
from llamaseek.safety.verdict import GuardError, Verdict, read_answer
from llamaseek.text.chat import encode_chat
from llamaseek.text.guard_prompt import PUBLISHED, Category, guard_prompt
from llamaseek.text.llama3_calls import ChatOptions
from llamaseek.text.messages import SYSTEM, Message
from llamaseek.text.special import START_HEADER
from llamaseek.text.tokenizer import Tokenizer

MOST_TOKENS = 64  # of a verdict; fourteen codes take fifty


class Policy:
    """A guard's prompt and the parser of its answer, independent of the engine that runs it."""

    def __init__(self, tokenizer: Tokenizer, categories: Sequence[Category] = PUBLISHED) -> None:
        self.tokenizer, self.categories = tokenizer, tuple(categories)
        self.unsafe_id = tokenizer.encode("unsafe")[0]
        if self.unsafe_id == tokenizer.encode("safe")[0]:
            raise UserError(
                "guard: its tokenizer encodes safe and unsafe with the same first token"
            )
        self.params = SamplingParams(max_tokens=MOST_TOKENS, logprobs=MOST_LOGPROBS)

    def request(self, messages: Sequence[Message]) -> Request:
        """The request to the engine. Raises UserError for messages that no guard can judge."""
        prompt = guard_prompt(messages, self.categories)
        # A guard's own template builds the same prompt, but with a fixed policy.
        known = START_HEADER in self.tokenizer.specials.values()
        options = ChatOptions(format="llama3" if known else None)
        asked = [{"role": "user", "content": prompt}]
        ids = encode_chat(self.tokenizer, asked, add_generation_prompt=True, options=options).ids
        return Request(prompt=ids, params=self.params)

    def verdict(self, messages: Sequence[Message], answer: Completion) -> Verdict:
        """What an answer means; GuardError where it means nothing."""
        if answer.finish != "stop":
            raise GuardError("its answer does not end")
        safe, categories = read_answer(answer.text, self.categories)
        last = next(m["role"] for m in reversed(messages) if m["role"] not in SYSTEM)
        role = "user" if last == "user" else "assistant"
        return Verdict(safe, categories, self._probability(answer.logprobs or []), role)

    def _probability(self, answer: Sequence[Logprob]) -> float:
        """Of unsafe, at the first token that is not blank; 0 beyond the likeliest hundred."""
        for sampled in answer:
            if self.tokenizer.decode([sampled.token]).strip():
                return math.exp(dict(sampled.top).get(self.unsafe_id, -math.inf))
        return 0.0


class Guard:
    """Judges conversations with an engine of its own. Not for several threads at once."""

    def __init__(self, engine: Engine, policy: Policy) -> None:
        self.engine, self.policy = engine, policy

    def check(self, messages: Sequence[Message]) -> Verdict:
        """The verdict on the last turn. GuardError where there is none, whatever the reason."""
        return self.check_all([messages])[0]

    def check_all(self, conversations: Sequence[Sequence[Message]]) -> list[Verdict]:
        """The verdicts on several, judged together."""
        try:
            requests = [self.policy.request(messages) for messages in conversations]
            outputs = self.engine.generate(requests)
        except Exception as error:
            raise GuardError(f"it failed ({type(error).__name__}: {error})") from error
        return [
            self.policy.verdict(messages, output.answers[0])
            for messages, output in zip(conversations, outputs, strict=True)
        ]


def load_guard(
    folder: str | Path,
    categories: Sequence[Category] = PUBLISHED,
    device: torch.device | str = "cpu",
    options: EngineOptions | None = None,
) -> Guard:
    """A guard from a model folder, in the precision it is stored in."""
    folder, device = Path(folder), torch.device(device)
    tokenizer = open_tokenizer(folder)
    engine = Engine(
        open_model(folder, device=device), tokenizer, options or EngineOptions(max_num_seqs=16)
    )
    return Guard(engine, Policy(tokenizer, categories))
