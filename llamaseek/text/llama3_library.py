"""Llama 3's tokenizer in the tokenizers library: how it cuts, merges and marks a beginning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from llamaseek.text.special import BEGIN_OF_TEXT

SPLIT_PATTERN = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # English endings
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word, with the one mark or space before it
        r"\p{N}{1,3}",  # numbers in groups of three digits
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # punctuation, to the end of its line
        r"\s*[\r\n]+",  # line breaks
        r"\s+(?!\S)",  # blanks, but not the last one before a word
        r"\s+",
    ]
)
"""Where Llama 3 cuts text before merging (`models/llama3/tokenizer.py` of llama-models)."""


def around(model: Any) -> Any:
    """A library tokenizer that cuts as Llama 3 does and merges bytes by `model`."""
    library: Any = Tokenizer(model)
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    library.decoder = decoders.ByteLevel()
    return library


def add_specials(library: Any, names: Sequence[str]) -> None:
    """Adds the special tokens after the vocabulary.

    As in Meta's file, other libraries put begin-of-text before a text unless told not to.
    """
    library.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    library.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A",
        pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT} $B:1",
        special_tokens=[(BEGIN_OF_TEXT, library.token_to_id(BEGIN_OF_TEXT))],
    )


def from_ranks(ranks: dict[bytes, int], names: Sequence[str]) -> Any:
    """The library tokenizer of tiktoken's ranks, with `names` as special tokens."""
    letter = {byte: character for character, byte in byte_characters().items()}
    spelled = {token: "".join(letter[byte] for byte in token) for token in ranks}
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    merges = [(spelled[left], spelled[right]) for left, right in _merges(ranks)]
    library = around(models.BPE(vocabulary, merges, ignore_merges=True))
    add_specials(library, names)
    return library


def _merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token, by the rank of what it makes, then of its parts."""
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(a, b) for a, b in halves if a in ranks and b in ranks]
        yield from sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def byte_characters() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary, as GPT-2 laid them out.

    Bytes that print in Latin-1 stand for themselves; the rest count up from U+0100.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printing]
    shown = {chr(byte): byte for byte in printing}
    return shown | {chr(256 + n): byte for n, byte in enumerate(hidden)}
