"""Any tokenizer.json, through the tokenizers library."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, Protocol

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Library
from tokenizers.decoders import ByteLevel, DecodeStream

from llamaseek.errors import UserError, shorten
from llamaseek.text.backend_limits import check_library, check_source, no_panic
from llamaseek.text.special import BEGIN_OF_TEXT


class TokenStream(Protocol):
    """Text from ids that come one at a time."""

    def push(self, token_id: int) -> str:
        """The text this id completes; empty while a character is not whole."""

    def flush(self) -> str:
        """The rest of the stream at its end; the stream is then reset."""


class Backend(Protocol):
    """An engine without state. Every added token of its file is in `specials`.

    `hidden` are those of them that the file calls special, which text does not show. `prefix` is
    what the file's post-processor puts before a text.
    `unknown` is the one that stands for text which the vocabulary cannot spell; byte-level
    engines have none.
    """

    specials: dict[int, str]
    hidden: frozenset[int]
    prefix: tuple[int, ...]
    size: int
    unknown: str | None

    def id_of(self, name: str) -> int | None:
        """The id of a token by its name, or None."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, where the text of a special token is text.

        Raises UserError for a text that is not Unicode.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special ones included; unknown ids are nothing."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; none for an unknown id."""

    def stream(self) -> TokenStream:
        """A fresh stream whose pieces add up to what `decode` gives."""

    def to_json(self) -> str:
        """The text of a tokenizer.json."""


class ByteStream:
    """The stream of a byte-level engine, where ids stand for bytes of UTF-8."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._backend.token_bytes(token_id))

    def flush(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def check_unicode(texts: Sequence[str]) -> None:
    """Raises UserError for the first text that UTF-8 cannot hold, or that is no text."""
    for text in texts:
        if not isinstance(text, str):
            raise UserError("text: not a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"text: lone surrogate {text[error.start]!r} at {error.start}"
            ) from None


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

    As in Meta's file, other libraries put begin-of-text before a text by default.
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


class JsonBackend:
    """Built from the text of a tokenizer.json; UserError if it is broken."""

    def __init__(self, source: str) -> None:
        self._source = source
        parsed = _parse(source)
        added = parsed.get_added_tokens_decoder()
        self.hidden = frozenset(i for i, token in added.items() if token.special)
        self._library = _with_plain_text(parsed, source)
        self.prefix = _prefix(self._library)
        added = self._library.get_added_tokens_decoder()
        self.specials = {i: token.content for i, token in sorted(added.items())}
        self.size = max(self._library.get_vocab_size(), max(self.specials, default=-1) + 1)
        self.unknown: str | None = getattr(self._library.model, "unk_token", None)
        self._byte_level = isinstance(self._library.decoder, ByteLevel)

    def id_of(self, name: str) -> int | None:
        found = self._library.token_to_id(name)
        return None if found is None else int(found)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            with no_panic("tokenizer"):
                found = self._library.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            check_unicode(texts)
            raise
        return [encoding.ids for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._library.decode(ids, skip_special_tokens=False))

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self.specials:
            return self.specials[token_id].encode()
        piece = self._library.id_to_token(token_id) or ""
        return _byte_level_bytes(piece) if self._byte_level else _other_bytes(piece)

    def stream(self) -> TokenStream:
        return ByteStream(self) if self._byte_level else _LibraryStream(self._library, self)

    def to_json(self) -> str:
        return self._source


class _LibraryStream:
    """For decoders that look at more than one token: the library's own stream.

    It holds a token back while its text may still change; `flush` gives what it held.
    """

    def __init__(self, library: Any, backend: JsonBackend) -> None:
        self._library, self._backend = library, backend
        self._begin()

    def _begin(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=False)
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        piece = self._stream.step(self._library, token_id) or ""
        self._shown += piece
        return piece

    def flush(self) -> str:
        rest = self._backend.decode(self._ids)[len(self._shown) :]
        self._begin()
        return rest


def _with_plain_text(library: Any, source: str) -> Any:
    """The library's tokenizer, set so that the text of added tokens is text to it."""
    if not all(token.special for token in library.get_added_tokens_decoder().values()):
        library = _parse(_all_special(source))
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    return library


def _prefix(library: Any) -> tuple[int, ...]:
    """The special tokens that the post-processor puts before a text."""
    with no_panic("not a tokenizer"):
        found = library.encode("a", add_special_tokens=True)
    pairs = zip(found.ids, found.special_tokens_mask, strict=True)
    return tuple(i for i, _ in takewhile(lambda pair: pair[1], pairs))


def _parse(source: str) -> Any:
    check_source(source)
    try:
        with no_panic("not a tokenizer"):
            library = Library.from_str(source)
    except UserError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"not a tokenizer: {shorten(str(error))}") from error
    check_library(library)
    return library


def _all_special(source: str) -> str:
    """The source with every added token marked special: the library keeps only those from text."""
    content = json.loads(source)
    for token in content["added_tokens"]:
        token["special"] = True
    return json.dumps(content)


_BYTE_OF = byte_characters()


def _byte_level_bytes(piece: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in piece)
    except KeyError:  # an entry outside the byte alphabet is its own text
        return piece.encode()


def _other_bytes(piece: str) -> bytes:
    """SentencePiece's spelling: `<0x0A>` is a byte, U+2581 a blank."""
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
