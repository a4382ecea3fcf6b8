"""A model that says a given text, each token with made-up chances, and a server of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from llamaseek.engine.engine import Engine
from llamaseek.models import CausalLM
from llamaseek.safety.guard import Guard
from llamaseek.safety.served import ServedGuard
from llamaseek.serve.service import Service
from llamaseek.text.messages import Message
from llamaseek.text.tokenizer import Tokenizer
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER, make_service

STORY = (
    "The red fox chased the blue bird. And the bird flew away in the nick of time! "
    "It was a cold morning in the forest. The old frog met the happy bee and the bee buzzed away."
)


class Speech:
    """Logits that spell a text, whatever was asked; `pause` seconds a token.

    With a `tokenizer` of its own the text may spell control tokens.
    """

    engine: Engine

    def __init__(self, text: str = STORY, tokenizer: Tokenizer | None = None) -> None:
        self.pause = 0.0
        self.tokenizer = tokenizer or TOKENIZER
        self._encode = tokenizer.encode_special if tokenizer else TOKENIZER.encode
        self.ids: list[int] = []
        self.say(text)

    def say(self, text: str) -> None:
        """What is said from now on."""
        self.ids = [*self._encode(text), next(iter(self.tokenizer.stop_ids))]

    def logits(self, hidden: Tensor) -> Tensor:
        """The text's next token, and some that are less likely."""
        time.sleep(self.pause)
        at = len(self.engine.scheduler.running[0].generated)
        rng = Random(at)
        made = torch.zeros(len(hidden), self.tokenizer.vocab_size)
        made[-1, rng.sample(range(200), 8)] = torch.linspace(5, 8, 8)
        made[-1, self.ids[min(at, len(self.ids) - 1)]] = 9 + 4 * rng.random()
        return made


def spoken_service(
    speech: Speech, guard: Guard | None = None, family: str = "llama3", **options: Any
) -> Service:
    """A service whose model says what `speech` does, behind a guard if there is one."""
    tokenizer = speech.tokenizer
    model: CausalLM = tiny_model(
        family, vocab_size=tokenizer.vocab_size, max_position_embeddings=2048
    )
    service = make_service(model, tokenizer, options=options, max_num_seqs=1)
    speech.engine = service.engine
    speech.engine.runner.logits = speech.logits  # type: ignore[method-assign]
    speech.engine.runner.fused = None  # which makes its logits in one call with the layers
    if guard is not None:
        service.guard = ServedGuard(guard, service.options.guard_timeout)
    return service


def finds(*unsafe: str) -> Callable[[Sequence[Message]], str]:
    """What a guard says that finds these words unsafe in the last turn."""
    return lambda messages: (
        "unsafe\nS2" if any(word in str(messages[-1]["content"]) for word in unsafe) else "safe"
    )
