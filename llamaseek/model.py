"""A model with its tokenizer as an object: texts, answers, probabilities, rewards, insides.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, overload

from llamaseek.errors import UserError, bad_value, unknown_name

if TYPE_CHECKING:
    from typing import Unpack

    from torch import Tensor

    from llamaseek.engine.constrain import Constraint
    from llamaseek.engine.engine import Engine
    from llamaseek.engine.internals import Internals
    from llamaseek.engine.request import Logprob, Output, Request, SamplingParams
    from llamaseek.herd import ModelConfig
    from llamaseek.models import CausalLM
    from llamaseek.text.tokenizer import Tokenizer

Message = dict[str, Any]
T = TypeVar("T")
OTHER_METHODS = {
    "n": 1,
    "logprobs": None,
    "prompt_logprobs": None,
    "logprob_start_len": 0,
    "logprob_token_ids": (),
    "embed": False,
}
"""Fields of `SamplingParams` whose results are no text, with their defaults."""


class SamplingOptions(TypedDict, total=False):
    """`SamplingParams`' fields as keywords, those that change a text."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    max_tokens: int | None
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    stop: Sequence[str]
    constraint: Constraint | None


class Model:
    """A model with its tokenizer. Made by `load` and `Run.model`; not for several threads at once.

    Every method takes one input or a list of them, and returns one result or a list in that order;
    a list is computed as one batch. Answers end at the model's end tokens.
    """

    def __init__(self, network: CausalLM, tokenizer: Tokenizer) -> None:
        self.network, self.tokenizer = network, tokenizer
        self._engine: Engine | None = None

    @property
    def config(self) -> ModelConfig:
        """The architecture's sizes, by Hugging Face's names."""
        return self.network.config

    @property
    def engine(self) -> Engine:
        """The inference engine, made when first used. UserError for a reward model."""
        if self._engine is None:
            from llamaseek.engine.engine import Engine

            self._engine = Engine(self.network, self.tokenizer)
        return self._engine

    @overload
    def generate(
        self,
        prompt: str,
        sampling: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: list[str],
        sampling: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[str]: ...
    def generate(
        self,
        prompt: str | list[str],
        sampling: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> str | list[str]:
        """What follows a text, without the text itself.

        `sampling`, with `options` in place of its fields, says how tokens are drawn; without both
        the likeliest token is taken, at most 128 times. Raises UserError.
        """
        params = _params(sampling, options)

        def answer(texts: Sequence[str]) -> list[str]:
            return [output.answers[0].text for output in self.engine.generate(texts, params)]

        return _each(prompt, isinstance(prompt, str), answer, "prompt")

    @overload
    def chat(
        self,
        messages: list[Message],
        sampling: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Message: ...
    @overload
    def chat(
        self,
        messages: list[list[Message]],
        sampling: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Message]: ...
    def chat(
        self,
        messages: list[Message] | list[list[Message]],
        sampling: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Message | list[Message]:
        """The assistant's next message in a conversation, or in each of several.

        A message is `{"role", "content"}`; the answer has `tool_calls` if the model calls `tools`
        (definitions as in OpenAI's API), and `reasoning_content` if it reasons. Raises UserError.
        """
        params = _params(sampling, options)

        def answer(talks: Sequence[list[Message]]) -> list[Message]:
            requests = [self._conversation(talk, params, tools) for talk in talks]
            outputs = self.engine.generate(requests)
            return [self._message(output, bool(tools), params) for output in outputs]

        return _each(messages, _is_conversation(messages), answer, "messages")

    def stream(
        self,
        prompt: str | list[Message],
        sampling: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """`generate` for a text, or `chat` for a conversation, in pieces of text as they come.

        Of a conversation's answer these are its content. Closing the iterator ends the answer.
        """
        params = _params(sampling, options)
        if isinstance(prompt, str):
            return self._pieces(self.engine.request(prompt, params))
        return self._contents(self._conversation(prompt, params), params)

    @overload
    def logprobs(self, text: str, *, top: int = 0) -> list[Logprob]: ...
    @overload
    def logprobs(self, text: list[str], *, top: int = 0) -> list[list[Logprob]]: ...
    def logprobs(
        self, text: str | list[str], *, top: int = 0
    ) -> list[Logprob] | list[list[Logprob]]:
        """The log-probability of each of a text's tokens, with the `top` likeliest of each place.

        Natural logarithms; their sum is the text's. A tokenizer without a begin-of-text token
        leaves out the first one, which nothing predicts.
        """
        from llamaseek.engine.request import SamplingParams

        before = len(self.tokenizer.prefix_ids)
        params = SamplingParams(max_tokens=0, prompt_logprobs=top)

        def score(texts: Sequence[str]) -> list[list[Logprob]]:
            outputs = self.engine.generate(texts, params)
            scores = [output.prompt_logprobs or [] for output in outputs]
            return [[one for one in each[before:] if one is not None] for each in scores]

        return _each(text, isinstance(text, str), score, "text")

    @overload
    def reward(self, messages: list[Message]) -> float: ...
    @overload
    def reward(self, messages: list[list[Message]]) -> list[float]: ...
    def reward(self, messages: list[Message] | list[list[Message]]) -> float | list[float]:
        """A reward model's score of a conversation's last answer, read at its last token.

        Raises UserError for a model that is no reward model.
        """
        from llamaseek.engine.uncached import score_sequences
        from llamaseek.text.chat import encode_chat

        def score(talks: Sequence[list[Message]]) -> list[float]:
            sequences = [encode_chat(self.tokenizer, talk).ids for talk in talks]
            return score_sequences(self.network, sequences)

        return _each(messages, _is_conversation(messages), score, "messages")

    def embed(self, text: str | list[str]) -> Tensor:
        """The hidden state at a text's last token, scaled to length 1.

        (D,) for a text, (N, D) for a list of N; float32, on the CPU.
        """
        import torch

        from llamaseek.engine.request import SamplingParams

        params = SamplingParams(max_tokens=0, embed=True)
        texts = [text] if isinstance(text, str) else text
        found = torch.tensor([o.embedding for o in self.engine.generate(texts, params)])
        states = torch.nn.functional.normalize(found, dim=-1)
        return states[0] if isinstance(text, str) else states

    def internals(self, text: str, *, top: int = 5) -> Internals:
        """What the model does while it reads `text`: attention of each layer and head, experts of
        each token, the `top` likeliest next tokens after each layer, bytes of cache.

        Raises UserError for a text of no or too many tokens, and for a reward model.
        """
        from llamaseek.engine.internals import read_internals

        if self.config.is_reward_model:
            raise UserError("model: is a reward model: it returns scores and has no next tokens")
        ids = [*self.tokenizer.prefix_ids, *self.tokenizer.encode(text)]
        return read_internals(self.network, ids, top)

    def _conversation(
        self,
        messages: list[Message],
        params: SamplingParams,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Request:
        from llamaseek.engine.request import Request
        from llamaseek.text.chat import encode_chat

        ids = encode_chat(self.tokenizer, messages, add_generation_prompt=True, tools=tools).ids
        return Request(prompt=ids, params=params)

    def _message(self, output: Output, calls: bool, params: SamplingParams) -> Message:
        from llamaseek.engine.text_out import StopStrings
        from llamaseek.text.parse import parse_ids

        message = parse_ids(self.tokenizer, output.answers[0].tokens, calls, output.request.prompt)
        stops = StopStrings(params.stop)
        content = stops.push(message["content"])
        message["content"] = content if stops.stopped else content + stops.flush()
        return message

    def _pieces(self, request: Request) -> Iterator[str]:
        for delta in self.engine.stream(request):
            if delta.error is not None:
                raise RuntimeError(delta.error)
            if delta.text:
                yield delta.text

    def _contents(self, request: Request, params: SamplingParams) -> Iterator[str]:
        from llamaseek.engine.text_out import StopStrings
        from llamaseek.text.messages import Content
        from llamaseek.text.parse import IdStream

        reader = IdStream(self.tokenizer, calls=False, prompt=request.prompt)
        stops = StopStrings(params.stop)
        for delta in self.engine.stream(request):
            if delta.error is not None:
                raise RuntimeError(delta.error)
            events = [event for token in delta.tokens for event in reader.push(token)]
            events += reader.finish() if delta.finish else []
            text = stops.push("".join(e.text for e in events if isinstance(e, Content)))
            text += stops.flush() if delta.finish and not stops.stopped else ""
            if text:
                yield text


def _params(sampling: SamplingParams | None, options: SamplingOptions) -> SamplingParams:
    """One set of sampling parameters. UserError for an option that is unknown or gives no text."""
    from llamaseek.engine.request import SamplingParams

    known = [each.name for each in fields(SamplingParams)]
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    params = replace(sampling or SamplingParams(), **options)
    for name, default in OTHER_METHODS.items():
        if getattr(params, name) != default:
            raise bad_value(name, getattr(params, name), f"{default} here, where a text is made")
    if not params.detokenize:
        raise bad_value("detokenize", False, "True here, where a text is made")
    return params


def _is_conversation(messages: object) -> bool:
    """Whether these are the messages of one conversation, not a list of conversations."""
    several = isinstance(messages, Sequence) and len(messages) > 0
    return not (several and isinstance(messages[0], list | tuple))  # type: ignore[index]


def _each(given: Any, one: bool, ask: Callable[[Sequence[Any]], list[T]], field: str) -> Any:
    """What `ask` makes of one input, or the list it makes of several."""
    if one:
        return ask([given])[0]
    if not isinstance(given, Sequence):
        raise bad_value(field, given, "one input, or a list of them")
    return ask(given) if given else []
