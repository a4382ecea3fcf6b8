"""What all routes share: the engine, the tokenizer, the models' names, the limits."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from llamaseek.checkpoints.peft import read_adapter
from llamaseek.checkpoints.sources import find_source
from llamaseek.engine.background import BackgroundEngine, Stream
from llamaseek.engine.constrain import Constraint
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.ranks.tensor_group import TensorGroup
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.errors import UserError, bad_value
from llamaseek.models import CausalLM
from llamaseek.plan.serving import DEFAULT_CACHE
from llamaseek.runtime.device import pick_device
from llamaseek.safety.guard import load_guard
from llamaseek.safety.served import ServedGuard
from llamaseek.serve.callers import current_caller
from llamaseek.serve.compiling import Compiler
from llamaseek.serve.metrics import Metrics
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.wire.errors import ApiError
from llamaseek.serve.wire.logprobs import token_text
from llamaseek.text.guard_prompt import Category
from llamaseek.text.tokenizer import Tokenizer

SHORT = 2000  # characters that are encoded at once; longer texts in a thread


@dataclass
class Service:
    """One model being served, and its adapters by name."""

    engine: Engine
    tokenizer: Tokenizer
    options: ServeOptions
    guard: ServedGuard | None = None
    draining: bool = False
    started: int = field(default_factory=lambda: int(time.time()))
    folders: dict[str, Path] = field(default_factory=dict)  # of the model and its adapters, by name

    def __post_init__(self) -> None:
        self.background = BackgroundEngine(self.engine)
        self.metrics = Metrics(self.background)
        if self.engine.grammars is None:
            raise UserError("engine: has no tokenizer")
        self.looking = 0  # requests that look inside the model, or wait for their turn to
        self.look_turn = asyncio.Lock()
        self.compiler = Compiler(self.engine.grammars, self.options.limits)

    @property
    def models(self) -> list[str]:
        """The names that requests may ask for; the first is the base."""
        return [self.options.name, *sorted(self.engine.adapters.names)]

    def adapter(self, model: str) -> str:
        """The adapter that a model's name means, "" for the base; ApiError 404 for no model."""
        if model not in self.models:
            known = ", ".join(self.models)
            message = f"model: {model[:64]!r} does not exist; served here: {known}"
            raise ApiError(404, message, "model", "model_not_found")
        return "" if model == self.options.name else model

    @cached_property
    def longest_token(self) -> int:
        """The most bytes that a token stands for."""
        sizes = map(len, map(self.tokenizer.token_bytes, range(self.tokenizer.vocab_size)))
        return max(1, *sizes)

    def special_id(self, name: str) -> int | None:
        """The id of the special token of exactly this name, if there is one."""
        return self._special_ids.get(name)

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        return {name: token for token, name in self.tokenizer.specials.items()}

    @cached_property
    def ids_of_texts(self) -> dict[str, int]:
        """The token that a text of `logprobs` means; of two with one text the first."""
        size = self.tokenizer.vocab_size
        return {token_text(self.tokenizer, token): token for token in reversed(range(size))}

    async def encode(self, text: str, name: str = "prompt") -> list[int]:
        """A text's ids. UserError, before any work, for one that cannot fit the context."""
        if len(text) > self.longest_token * self.engine.context:
            raise UserError(
                f"{name}: has {len(text)} characters, more than the context of "
                f"{self.engine.context} tokens can hold"
            )
        if len(text) < SHORT:
            return self.tokenizer.encode(text)
        return await asyncio.to_thread(self.tokenizer.encode, text)

    async def encode_prompt(self, prompt: str | Sequence[int], name: str = "prompt") -> list[int]:
        """A prompt as ids: a text after what its tokenizer puts before texts, ids as they are."""
        if isinstance(prompt, str):
            return [*self.tokenizer.prefix_ids, *await self.encode(prompt, name)]
        return list(prompt)

    def submit(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        adapter: str = "",
        user: str | None = None,
        name: str = "prompt",
    ) -> tuple[list[Request], Stream]:
        """Ask the engine; errors as `BackgroundEngine.submit` raises them, and when draining.

        `name` is what the route calls its prompts.
        """
        limits = self.options.limits
        if len(prompts) * params.n > limits.answers:
            raise bad_value("n", params.n, f"prompts times n of up to {limits.answers}")
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="unavailable")
        requests = [
            Request(prompt=prompt, params=params, salt=user or "", adapter=adapter)
            for prompt in prompts
        ]
        with renamed(name):
            stream = self.background.submit(requests)
        if caller := current_caller():
            caller.charge(sum(map(len, prompts)))
        return requests, stream

    def check(self, prompt: list[int], params: SamplingParams, name: str) -> None:
        """UserError, as `submit` raises it, for a prompt that the model cannot take."""
        with renamed(name):
            self.engine.check(Request(prompt=prompt, params=params))

    async def compile(
        self, constraint: Constraint | None, field: str = "response_format"
    ) -> Constraint | None:
        """The constraint, known to compile within the limits; UserError where it does not."""
        if constraint is not None:
            await self.compiler.check(constraint, field)
        return constraint


@contextmanager
def renamed(name: str) -> Iterator[None]:
    """An error about the engine's `prompt` names what the route calls it."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("prompt:", f"{name}:", 1)) from None


def new_id(prefix: str) -> str:
    """A name for an answer that nobody can guess."""
    return f"{prefix}-{secrets.token_hex(12)}"


def make_service(
    model: CausalLM,
    folder: Path,
    options: ServeOptions,
    engine: EngineOptions,
    adapters: Sequence[str] = (),
    group: TensorGroup | None = None,
    tokenizer: Tokenizer | None = None,
) -> Service:
    """A folder's model with adapters as `name=folder`, ready to be served.

    `tokenizer` stands for the folder's own.

    UserError for an adapter's name that is not there or taken, and for any beside a `group`.
    """
    if adapters and group is not None:
        raise UserError(
            f"--adapter: {adapters[0]} cannot be used on several ranks; merge it with: "
            "llamaseek convert --adapter"
        )
    tokenizer = tokenizer or Tokenizer.load(folder)
    folders = adapter_folders(adapters, options.name)
    found = {name: read_adapter(place) for name, place in folders.items()}
    made = Engine(model, tokenizer, engine, found, group, scoring=True)
    return Service(made, tokenizer, options, folders={options.name: folder, **folders})


def adapter_folders(given: Sequence[str], base: str) -> dict[str, Path]:
    """Adapters' folders by name; UserError for what is not `name=folder` and a name given twice."""
    found: dict[str, Path] = {}
    for each in given:
        name, _, folder = each.partition("=")
        if not name or not folder:
            raise bad_value("--adapter", each, "NAME=FOLDER")
        if name == base or name in found:
            raise bad_value("--adapter", name, "a name that is not taken")
        found[name] = find_source(folder, adapters=True)
    return found


def load_served_guard(
    folder: Path,
    device: str,
    categories: Sequence[Category],
    options: ServeOptions,
    engine: EngineOptions,
) -> ServedGuard:
    """The guard of a service; its cache may take half the size of the model's."""
    limits = replace(engine, cache_bytes=(engine.cache_bytes or DEFAULT_CACHE) // 2)
    guard = load_guard(folder, categories, pick_device(device, "--device"), limits)
    return ServedGuard(guard, options.guard_timeout)
