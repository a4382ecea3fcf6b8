"""Any tokenizer.json, through the tokenizers library."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers.decoders import ByteLevel, DecodeStream

from llamaseek.errors import UserError, shorten
from llamaseek.text.backend import ByteStream, TokenStream, check_unicode
from llamaseek.text.llama3_library import byte_characters


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
    found = library.encode("a", add_special_tokens=True)
    pairs = zip(found.ids, found.special_tokens_mask, strict=True)
    return tuple(i for i, _ in takewhile(lambda pair: pair[1], pairs))


def _parse(source: str) -> Any:
    try:
        return Library.from_str(source)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"not a tokenizer: {shorten(str(error))}") from error


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
