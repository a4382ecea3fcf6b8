"""One answer's way through a grammar, waiting for every mask."""

from __future__ import annotations

import torch

from llamaseek.engine.constrain import Constraint, Grammars


class Walk:
    """An answer at the start of a constraint; to be closed."""

    def __init__(self, grammars: Grammars, constraint: Constraint) -> None:
        self._grammars, self._session = grammars, grammars.open(constraint)
        self.matcher = self._session.matcher()
        self._wait()

    def _wait(self) -> None:
        while not self.matcher.ready and self.matcher.failure is None:
            self._grammars.collect(idle=True)

    def accept(self, token: int) -> bool:
        """Go on by a token; whether it fits."""
        if self.matcher.ended:
            return False
        self.matcher.accept(token)
        self._wait()
        return self.matcher.failure is None

    def may_end(self, size: int, stop_ids: frozenset[int]) -> bool:
        """Whether the answer may end here, of a vocabulary of `size` tokens."""
        if self.matcher.ended:
            return True
        row = torch.zeros(size)
        self.matcher.mask(row)
        return bool((row[sorted(stop_ids)] == 0).any())

    def close(self) -> None:
        self._grammars.release(self._session)
