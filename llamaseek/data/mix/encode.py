"""Fill-in-the-middle: a document as prefix, suffix, middle, so that a model learns to fill gaps.

Bavarian et al. 2022 §3, in DeepSeek-V3's form (§4.1): a share of the documents, cut at two
random characters, before packing:
begin-of-text, fim_begin, prefix, fim_hole, suffix, fim_end, middle, end-of-text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from llamaseek.errors import UserError
from llamaseek.text.special import FIM_TOKENS
from llamaseek.text.tokenizer import Tokenizer

Marks = tuple[int, int, int]  # ids of begin, hole, end

CHARACTERS = 1 << 20
"""Text that is tokenized at once, on all cores."""

MANY = 64  # pieces of a document, of which the last may begin early


def fim_marks(tokenizer: Tokenizer) -> Marks:
    """The ids that open a prefix, a suffix and a middle; UserError where there are none."""
    known = {text: i for i, text in tokenizer.specials.items()}
    for begin, hole, end in FIM_TOKENS:
        if begin in known and hole in known and end in known:
            return known[begin], known[hole], known[end]
    raise UserError(
        f"data.fim: the tokenizer has none of the tokens it needs ({', '.join(FIM_TOKENS[0])})"
    )


@dataclass(frozen=True)
class Encoder:
    """Documents to ids with beginning and end, a share `fim` of them as prefix, suffix, middle.

    Which ones and where they are cut follows from `seed` and a document's number alone.
    """

    tokenizer: Tokenizer
    fim: float = 0.0
    seed: str = "0"

    def __call__(self, texts: Iterator[str]) -> Iterator[list[int]]:
        """The token list of each text."""
        marks = fim_marks(self.tokenizer) if self.fim else None
        begin, end = self.tokenizer.prefix_ids, self.tokenizer.eos_id
        for first, batch in _batches(texts):
            parts = [self._parts(first + n, text) for n, text in enumerate(batch)]
            encoded = iter(self.tokenizer.encode_batch([p for some in parts for p in some]))
            for some in parts:
                ids = [next(encoded) for _ in some]
                yield [*begin, *_joined(ids, marks), end]

    def _parts(self, number: int, text: str) -> Sequence[str]:
        """The whole text, or prefix, suffix and middle."""
        if not self.fim:
            return (text,)
        rng = Random(f"{self.seed}/{number}")
        if rng.random() >= self.fim:
            return (text,)
        a, b = sorted(rng.randint(0, len(text)) for _ in range(2))
        return text[:a], text[b:], text[a:b]


def _joined(parts: list[list[int]], marks: Marks | None) -> list[int]:
    if len(parts) == 1 or marks is None:
        return parts[0]
    return [token for mark, ids in zip(marks, parts, strict=True) for token in (mark, *ids)]


def _batches(texts: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Texts together, each batch with the number of its first."""
    batch: list[str] = []
    first = size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= CHARACTERS:
            yield first, batch
            first, batch, size = first + len(batch), [], 0
    if batch:
        yield first, batch


Tokens = NDArray[np.unsignedinteger]


class TokenStore:
    """Read side. `pieces` (N, 3) int64: start, stop, and whether the document ends there."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.tokens: Tokens = _mapped(folder / "tokens.bin", token_type(vocab_size))
        self.pieces: NDArray[np.int64] = _mapped(folder / "pieces.bin", np.dtype(np.int64))
        self.pieces = self.pieces.reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.pieces)


def _mapped(path: Path, kind: np.dtype) -> NDArray:  # type: ignore[type-arg]
    """A file as an array; an empty one cannot be mapped."""
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)


def token_type(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def write_store(
    folder: Path,
    documents: Iterable[list[int]],
    vocab_size: int,
    length: int,
    long: tuple[int, int] | None = None,
) -> None:
    """Write token lists as a store whose pieces have at most `length` tokens.

    The last piece of a document of `MANY` pieces has `length` tokens too, some of which are in the
    piece before: a shorter one would move all rows after it, so that each holds the end of one
    piece and the beginning of another.
    `long` (tokens, times) lists the pieces of documents of at least that many tokens that many
    times: they are read more often in an epoch.
    """
    folder.mkdir(parents=True)
    kind, at = token_type(vocab_size), 0
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "pieces.bin").open("wb") as index:
        for ids in documents:
            np.array(ids, dtype=kind).tofile(tokens)
            starts = np.arange(0, len(ids), length)
            if len(starts) > MANY:
                starts[-1] = len(ids) - length
            stops = np.minimum(starts + length, len(ids))
            pieces = np.stack([starts + at, stops + at, stops == len(ids)], axis=1)
            times = long[1] if long is not None and len(ids) >= long[0] else 1
            np.tile(pieces.astype(np.int64), (times, 1)).tofile(index)
            at += len(ids)
