"""A guard whose answers are written down: a real engine, logits of our choice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from random import Random

import torch
from torch import Tensor

from llamaseek.data.builtin.guard import guard_text
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import Request
from llamaseek.models import CausalLM
from llamaseek.safety.guard import Guard, Policy
from llamaseek.text.messages import Message
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.text.train_bpe import train_bpe
from tests.models.shapes import tiny_model

CONTEXT = 512


@cache
def guard_tokenizer() -> Tokenizer:
    """One that knows the words of guards' prompts."""
    rng = Random("tests")
    return train_bpe([guard_text(rng) for _ in range(200)], 600)


def scripted_guard(answers: Iterable[str]) -> Guard:
    """Answers its first question with the first text, and so on; each token nearly certain."""
    given = iter(answers)
    return deciding_guard(lambda messages: next(given))


def deciding_guard(decide: Callable[[Sequence[Message]], str]) -> Guard:
    """Answers what `decide` makes of the messages; each token nearly certain."""
    tokenizer = guard_tokenizer()
    script: deque[int] = deque()
    model = small_model(tokenizer)

    class Deciding(Policy):
        def request(self, messages: Sequence[Message]) -> Request:
            asked = super().request(messages)
            script.clear()
            script.extend([*tokenizer.encode(decide(messages)), end(tokenizer)])
            return asked

    def logits(hidden: Tensor) -> Tensor:
        chosen = torch.full((len(hidden), tokenizer.vocab_size), 0.0)
        chosen[-1, script.popleft()] = 20.0
        return chosen

    options = EngineOptions(
        max_num_seqs=1, max_num_batched_tokens=CONTEXT, enable_prefix_caching=False
    )
    engine = Engine(model, tokenizer, options)
    engine.runner.logits = logits  # type: ignore[method-assign]
    engine.runner.fused = None  # which makes its logits in one call with the layers
    return Guard(engine, Deciding(tokenizer))


def end(tokenizer: Tokenizer) -> int:
    """The token that ends an answer."""
    return next(iter(tokenizer.stop_ids))


def small_model(tokenizer: Tokenizer) -> CausalLM:
    """Random weights; it says what it likes."""
    return tiny_model("llama3", vocab_size=tokenizer.vocab_size, max_position_embeddings=CONTEXT)
