"""Training a tokenizer in Llama 3's form: byte-level BPE with the special tokens last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from llamaseek.errors import UserError, bad_value
from llamaseek.text.special import BEGIN_OF_TEXT, SPECIAL_TOKENS
from llamaseek.text.tokenizer import Tokenizer

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

SMALLEST = 256 + len(SPECIAL_TOKENS)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` ids: bytes and merges first, then SPECIAL_TOKENS.

    The same texts always give the same tokenizer. Memory grows with the number of different
    words, not with the length of the corpus.
    Raises UserError for an empty corpus, a size below SMALLEST, or one beyond what the corpus
    can reach.
    """
    if vocab_size < SMALLEST:
        raise bad_value("vocab_size", vocab_size, f"{SMALLEST} or more")
    backend = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_checked(texts), trainer)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    reached = backend.get_vocab_size()
    if reached < vocab_size:
        raise UserError(
            f"vocab_size: this corpus is too small for {vocab_size}; it can reach {reached}"
        )
    backend.post_processor = _begin_with_bos(backend)
    return Tokenizer(backend.to_str(pretty=True))


def _untrained() -> Backend:
    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _begin_with_bos(backend: Backend) -> processors.TemplateProcessing:
    """As in Meta's file: other libraries put begin-of-text before a text unless told not to."""
    return processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A",
        pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT} $B:1",
        special_tokens=[(BEGIN_OF_TEXT, backend.token_to_id(BEGIN_OF_TEXT))],
    )


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
