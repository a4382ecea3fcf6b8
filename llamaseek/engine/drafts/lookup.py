"""Prompt look-up: what followed the end of the text when it stood there before (Saxena 2023)."""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST, LONGEST = 2, 16  # tokens of the end that are sought
PLACES = 32  # most earlier places that are compared


class Lookup:
    """Where each pair of tokens stands in one answer's text, which only grows."""

    def __init__(self) -> None:
        self.known = SHORTEST
        self.places: dict[tuple[int, int], list[int]] = {}  # of what follows the pair

    def find(self, tokens: Sequence[int]) -> tuple[int, int]:
        """The place after the longest earlier occurrence of the text's end, the newest of equals,
        and how many tokens are alike; zeros where the last pair did not stand before.
        """
        for place in range(self.known, len(tokens)):
            self.places.setdefault((tokens[place - 2], tokens[place - 1]), []).append(place)
        self.known = max(self.known, len(tokens))
        best = (0, 0)
        if len(tokens) > SHORTEST:
            for place in reversed(self.places.get((tokens[-2], tokens[-1]), [])[-PLACES:]):
                length = alike(tokens, place)
                if length > best[1]:
                    best = place, length
        return best


def alike(tokens: Sequence[int], place: int) -> int:
    """How many tokens before `place` are those at the end, LONGEST at most."""
    end, most = len(tokens), min(place, LONGEST)
    for length in range(SHORTEST, most):
        if tokens[place - length - 1] != tokens[end - length - 1]:
            return length
    return most


def following(tokens: Sequence[int], place: int, count: int) -> list[int]:
    """`count` tokens from `place` on; behind the end of the text it goes on as from there."""
    found = list(tokens[place : place + count])
    period = len(tokens) - place
    while len(found) < count:
        found.append(found[len(found) - period])
    return found
