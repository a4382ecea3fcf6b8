"""Text from tokens as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llamaseek.text.tokenizer import StreamDecoder, Tokenizer


class TextOut:
    """An answer's text. What may be the beginning of a stop string is held back until it is not.

    What `push` and `flush` return, joined, is the answer's text up to its first stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stops = list(stops)
        self._held = ""
        self.stopped = False

    def push(self, tokens: Iterable[int]) -> str:
        """The text that these tokens complete; `stopped` tells whether a stop string came."""
        return self._pass("".join(map(self._decoder.push, tokens)))

    def flush(self) -> str:
        """What was held back, at the end of an answer that no stop string ended."""
        if self.stopped:
            return ""
        rest = self._pass(self._decoder.flush())
        if self.stopped:
            return rest
        rest, self._held = rest + self._held, ""
        return rest

    def _pass(self, text: str) -> str:
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        held = self._held + text
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)]
        keep = max(overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`, short of all of it."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
