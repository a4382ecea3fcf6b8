"""Training a tokenizer in Llama 3's form: byte-level BPE with the special tokens last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import models, pre_tokenizers, trainers

from llamaseek.errors import UserError, bad_value
from llamaseek.text.json_backend import add_specials, around
from llamaseek.text.llama3_calls import CHAT_TEMPLATE
from llamaseek.text.special import SPECIAL_TOKENS
from llamaseek.text.tokenizer import Tokenizer

SMALLEST = 256 + len(SPECIAL_TOKENS)


def train_bpe(texts: Iterable[str], vocab_size: int, more: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` ids: bytes and merges first, then SPECIAL_TOKENS, `more`.

    The same texts always give the same tokenizer. Memory grows with the number of different
    words, not with the length of the corpus.
    Raises UserError for an empty corpus, a size below SMALLEST, or one beyond what the corpus
    can reach.
    """
    specials = (*SPECIAL_TOKENS, *more)
    if vocab_size < SMALLEST + len(more):
        raise bad_value("vocab_size", vocab_size, f"{SMALLEST + len(more)} or more")
    library = around(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(_checked(texts), trainer)
    add_specials(library, specials)
    reached = library.get_vocab_size()
    if reached < vocab_size:
        raise UserError(
            f"vocab_size: this corpus is too small for {vocab_size}; it can reach {reached}"
        )
    return Tokenizer(library.to_str(pretty=True), chat_template=CHAT_TEMPLATE)


def _checked(texts: Iterable[str]) -> Iterator[str]:
    """The texts that are not empty; UserError where one is not Unicode, or none is left."""
    seen = False
    for number, text in enumerate(texts):
        if not _is_unicode(text):
            raise UserError(f"corpus: text {number} holds a lone surrogate")
        if text:
            seen = True
            yield text
    if not seen:
        raise UserError("corpus: it is empty; training a tokenizer needs text")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
