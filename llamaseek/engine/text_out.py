"""Incremental detokenization: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llamaseek.text.tokenizer import StreamDecoder, Tokenizer


class StopStrings:
    """Passes text on up to the first stop string; what may be the beginning of one is held back.

    What `push` and `flush` return, joined, is the text up to there; `stop` is the one that came.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = list(stops)
        self._held = ""
        self.stop: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether one came."""
        return self.stop is not None

    def push(self, text: str) -> str:
        """What of the text so far is known to come before any stop string."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        held = self._held + text
        found = [(place, stop) for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            place, self.stop = min(found)
            self._held = ""
            return held[:place]
        keep = max(overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back, at an end that no stop string made."""
        rest, self._held = self._held, ""
        return rest


class TextOut:
    """An answer's text from its tokens, up to its first stop string.

    What `push` and `flush` return, joined, is the answer's text.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopStrings(stops)

    @property
    def stop(self) -> str | None:
        """The stop string that came."""
        return self._stops.stop

    @property
    def stopped(self) -> bool:
        """Whether one came."""
        return self._stops.stopped

    def push(self, tokens: Iterable[int]) -> str:
        """The text that these tokens complete."""
        return self._stops.push("".join(map(self._decoder.push, tokens)))

    def flush(self) -> str:
        """What was held back, at the end of an answer that no stop string ended."""
        if self.stopped:
            return ""
        rest = self._stops.push(self._decoder.flush())
        return rest if self.stopped else rest + self._stops.flush()


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`, short of all of it."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
