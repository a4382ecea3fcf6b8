"""Log-probabilities in the formats of the two endpoints.

Figures are passed on as the engine made them: lm-eval calls a token greedy where its figure
equals the largest of the list exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llamaseek.engine.request import Logprob
from llamaseek.serve.wire.pieces import LongList
from llamaseek.text.tokenizer import StreamDecoder, Tokenizer

FEW = 16  # tokens whose figures are written at once
LEAST = -9999.0  # in place of minus infinity, which JSON does not have


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """One token as text; OpenAI writes bytes that are no text as `bytes:\\xe2\\x80`."""
    given = tokenizer.token_bytes(token)
    try:
        return given.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in given)


class CompletionLogprobs:
    """The `logprobs` object of a text completion, piece by piece."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._offset = 0

    def of(self, tokens: Sequence[int], scores: Sequence[Logprob | None]) -> dict[str, Any]:
        """The object for these tokens, which follow those before; None for what has no score.

        It has to be written before the next one is.
        """
        found: dict[str, Iterator[Any]] = {
            "tokens": (token_text(self._tokenizer, token) for token in tokens),
            "token_logprobs": (None if s is None else max(s.logprob, LEAST) for s in scores),
            "top_logprobs": (None if s is None else self._top(s) for s in scores),
            "text_offset": self._offsets(tokens),
        }
        return {name: _listed(each, len(tokens)) for name, each in found.items()}

    def _offsets(self, tokens: Sequence[int]) -> Iterator[int]:
        for token in tokens:
            yield self._offset
            self._offset += len(self._decoder.push(token))

    def _top(self, score: Logprob) -> dict[str, float]:
        """Texts and figures, the likeliest first; of tokens with one text the likelier stands."""
        found: dict[str, float] = {}
        for token, value in [*score.top, (score.token, score.logprob)]:
            text = token_text(self._tokenizer, token)
            found[text] = max(value, found.get(text, LEAST))
        return found


def chat_logprobs(tokenizer: Tokenizer, scores: Sequence[Logprob]) -> dict[str, Any]:
    """The `logprobs` object of a chat's choice."""

    def entry(token: int, value: float) -> dict[str, Any]:
        return {
            "token": token_text(tokenizer, token),
            "logprob": max(value, LEAST),
            "bytes": list(tokenizer.token_bytes(token)),
        }

    content = (
        {**entry(s.token, s.logprob), "top_logprobs": [entry(*one) for one in s.top]}
        for s in scores
    )
    return {"content": _listed(content, len(scores)), "refusal": None}


def _listed(items: Iterator[Any], count: int) -> list[Any] | LongList:
    """A few items as they are; more of them are made when they are written."""
    return list(items) if count <= FEW else LongList(items)
