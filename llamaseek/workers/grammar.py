"""A worker's handler that compiles constraints and computes the masks of tokens that they allow.

Both can take any amount of time and memory: llguidance's own limits count its steps, not the
work of each, so a small hostile grammar holds it for minutes. A worker compiles one constraint
and may then hold several answers to it:

    {"compile": [kind, source]}   compiles, and computes the first mask
    {"open": n}                   an answer at its start
    {"answer": n, "token": t}     the answer goes on by a token
    {"close": n}                  the answer is done

The replies to the middle two are `{"answer", "ended", "cpu"}` with the mask, a bit a token, lowest
first; or `{"answer", "failed"}`. `cpu` is the seconds of processor time used so far.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

# Errors do not repeat the grammar. Work of a step: 14,000 of fuel or 20,000 items a millisecond.
LIMITS = LLParserLimits(step_lexer_fuel=200_000, step_max_items=50_000, verbose_errors=False)

Reply = tuple[dict[str, Any], bytes]


def prepare(blob: bytes) -> Callable[[], Callable[[Mapping[str, Any], bytes], Reply]]:
    """See `child`. `blob` is a pickled pair: our own tokenizer, and the options of JSON schemas."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads would not survive the fork
    tokenizer, json_options = pickle.loads(blob)
    known = LLTokenizer(
        TokenizerWrapper(TokenizerView(tokenizer)), eos_token=list(tokenizer.stop_ids)
    )
    return lambda: Held(known, json_options).answer


class Held:
    """A compiled constraint and the answers that it holds."""

    def __init__(self, tokenizer: LLTokenizer, json_options: Any) -> None:
        self._tokenizer, self._json_options = tokenizer, json_options
        self._start: LLMatcher | None = None
        self._answers: dict[int, LLMatcher] = {}

    def answer(self, job: Mapping[str, Any], blob: bytes) -> Reply:
        """Do one job. ValueError for a constraint that cannot be compiled, or that nothing fits."""
        if "compile" in job:
            self._start = self._compile(*job["compile"])
            return {"cpu": time.process_time()}, b""
        if "close" in job:
            self._answers.pop(job["close"], None)
            return {}, b""
        if "open" in job:
            assert self._start is not None
            number, found = job["open"], self._start.deep_copy()
            self._answers[number] = found
        else:
            number = job["answer"]
            found = self._answers[number]
            found.consume_token(job["token"])
        ended = not found.is_error() and found.is_stopped() and "token" in job
        mask = b"" if ended or found.is_error() else found.compute_bitmask()
        if found.is_error():
            return {"answer": number, "failed": found.get_error()}, b""
        return {"answer": number, "ended": ended, "cpu": time.process_time()}, mask

    def _compile(self, kind: str, source: str) -> LLMatcher:
        if kind == "regex":
            grammar = LLMatcher.grammar_from_regex(source)
        elif kind == "lark":
            grammar = LLMatcher.grammar_from_lark(source)
        else:
            grammar = LLMatcher.grammar_from_json_schema(source, defaults=self._json_options)
        found = LLMatcher(self._tokenizer, str(grammar), log_level=0, limits=LIMITS)
        first = found.deep_copy()
        if not first.is_error():
            first.compute_bitmask()  # regular expressions do their work there
        if first.is_error():
            raise ValueError(first.get_error())
        return found


class TokenizerView:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._encode = tokenizer.encode
        self.eos_token_id = tokenizer.stop_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)

    def __call__(self, text: bytes | str) -> Sequence[int]:
        ids: Sequence[int] = self._encode(text.decode() if isinstance(text, bytes) else text)
        return ids
