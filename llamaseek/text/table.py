"""The lecture's table: each token of a text beside its id."""

from __future__ import annotations

from collections.abc import Iterable

from llamaseek.text.tokenizer import Tokenizer


def id_table(tokenizer: Tokenizer, ids: Iterable[int]) -> list[tuple[str, int]]:
    """Each id with its token as a printable piece."""
    return [(tokenizer.token_text(i), i) for i in ids]


def token_table(tokenizer: Tokenizer, text: str, special: bool = True) -> list[tuple[str, int]]:
    """The tokens of `text` as printable pieces, each with its id.

    With `special` the special tokens that the text spells are tokens; without, they are text.
    """
    return id_table(
        tokenizer, tokenizer.encode_special(text) if special else tokenizer.encode(text)
    )
