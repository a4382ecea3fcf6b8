"""Answers that fit a JSON schema, a regular expression or a grammar, whatever the model prefers.

Through llguidance rather than xgrammar: it makes each step's mask when it is needed, so a large
schema costs no compile time before the first token; its automata have limits on work and size,
so a regular expression cannot run away; and it depends on nothing, where xgrammar asks for
transformers and Triton at run time.

V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from llamaseek.errors import UserError, bad_value, shorten
from llamaseek.text.grammar import JSON_STYLE
from llamaseek.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    pass


KINDS = ("json_schema", "regex", "lark")
KEPT = 64  # compiled grammars kept for the next request
# Largest work of a step: some 25 ms. Errors do not repeat the grammar.
LIMITS = LLParserLimits(step_lexer_fuel=200_000, step_max_items=50_000, verbose_errors=False)


@dataclass(frozen=True)
class Constraint:
    """What an answer has to be: `kind` json_schema, regex or lark (a Lark grammar), and `source`,
    the text of it."""

    kind: str
    source: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise bad_value("constraint", self.kind, ", ".join(KINDS))


class Matcher:
    """How far one answer is through its grammar."""

    def __init__(self, state: LLMatcher) -> None:
        self._state = state

    def mask(self, row: Tensor) -> None:
        """Put logits (V) of tokens that may not come now to -inf. RuntimeError at a limit."""
        bits = np.frombuffer(self._state.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[: len(row)].astype(bool)
        row[: len(allowed)].masked_fill_(torch.from_numpy(~allowed).to(row.device), -torch.inf)
        row[len(allowed) :] = -torch.inf

    def accept(self, token: int) -> bool:
        """Go on by a token; whether nothing may follow. RuntimeError if it does not fit."""
        self._state.consume_token(token)
        self._check()
        return bool(self._state.is_stopped())

    def _check(self) -> None:
        if self._state.is_error():
            raise RuntimeError(f"constraint: {shorten(self._state.get_error())}")


class Grammars:
    """Compiled constraints for one tokenizer and the ids that end an answer.

    Several threads may ask for matchers.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer)), eos_token=list(tokenizer.stop_ids)
        )
        self._kept: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._lock = Lock()  # of what is kept; compiling takes its time outside of it

    def matcher(self, constraint: Constraint) -> Matcher:
        """A matcher at its start. UserError for a constraint that cannot be compiled."""
        with self._lock:
            state = self._kept.get(constraint)
        if state is None:
            grammar = _grammar(constraint)
            state = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
            if state.is_error():
                raise UserError(f"constraint: {constraint.kind}: {shorten(state.get_error())}")
        with self._lock:
            self._kept[constraint] = state
            self._kept.move_to_end(constraint)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return Matcher(state.deep_copy())


def _grammar(constraint: Constraint) -> str:
    if constraint.kind == "regex":
        return str(LLMatcher.grammar_from_regex(constraint.source))
    if constraint.kind == "lark":
        return str(LLMatcher.grammar_from_lark(constraint.source))
    try:
        return str(LLMatcher.grammar_from_json_schema(constraint.source, defaults=JSON_STYLE))
    except ValueError as error:
        raise UserError(f"constraint: json_schema: {shorten(str(error))}") from None


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        self.eos_token_id = tokenizer.stop_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)

    def __call__(self, text: bytes | str) -> Sequence[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text)
