"""The grammar state of running answers: which tokens are allowed next, within a time budget.

A request's grammar is in a worker process (`llamaseek.workers.grammar`), which computes masks
beside the model's steps. Nothing here waits for it: the engine looks whether masks have come.

V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from llamaseek.errors import shorten
from llamaseek.workers.channel import Message
from llamaseek.workers.worker import OverLimit, Worker, WorkerError

STEP_SECONDS = 10.0  # the same by the clock, for machines that are busy
REQUEST_CPU, TOKEN_CPU = 2.0, 0.01  # seconds of processor time for a request, and more a token
PATIENCE = 0.02  # seconds that a step waits for masks that were in time before
POLITE = 0.1  # seconds after which a mask is computed when nothing else runs


class Matcher:
    """The state of one answer in its grammar, and the mask of the tokens allowed next.

    `ready` says whether the mask is there; `ended` that nothing may follow; `failure` why the
    answer cannot go on.
    """

    def __init__(self, session: Session, number: int) -> None:
        self._session, self.number = session, number
        self._bits = b""
        self.ready = self.ended = False
        self.failure: str | None = None
        self.asked = time.monotonic()
        self.slow = True  # whether its last mask was late; the first one compiles

    def mask(self, row: Tensor) -> None:
        """Put logits (V) of tokens that may not come now to -inf."""
        bits = np.frombuffer(self._bits, np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: len(row)].astype(bool)
        banned = torch.from_numpy(~allowed).to(row.device, non_blocking=True)
        row[: len(allowed)].masked_fill_(banned, -torch.inf)
        row[len(allowed) :] = -torch.inf

    def accept(self, token: int) -> None:
        """Go on by a token: the next mask is then computed beside whatever runs here."""
        self.ready, self.asked = False, time.monotonic()
        self._session.advance(self, token)

    def receive(self, reply: Message) -> None:
        """The mask has arrived, or the error why there is none."""
        self.slow = time.monotonic() - self.asked > PATIENCE
        if "failed" in reply.value:
            self.failure = shorten(str(reply.value["failed"]))
            return
        self._bits, self.ended = reply.blob, bool(reply.value.get("ended"))
        self.ready = True

    def close(self) -> None:
        """The answer is done."""
        self._session.forget(self)


class Session:
    """A request's grammar: a worker that holds the matchers of its answers."""

    def __init__(self, worker: Worker, job: Mapping[str, object]) -> None:
        self.worker = worker
        self._matchers: dict[int, Matcher] = {}
        self._waiting = 1  # replies that are to come, the one to compiling first
        self._since = time.monotonic()  # when the worker began on the next of them
        self._tokens = self._opened = 0
        self._failure: str | None = None
        self._polite = False
        self._send(job, replies=0)

    @property
    def pending(self) -> bool:
        """Whether replies are to come."""
        return self._failure is None and self._waiting > 0

    @property
    def quick(self) -> bool:
        """Whether a mask is to come that is worth a moment's wait."""
        return any(not matcher.ready and not matcher.slow for matcher in self._matchers.values())

    def matcher(self) -> Matcher:
        """One more answer, at its start."""
        found = self._matchers[self._opened] = Matcher(self, self._opened)
        found.failure = self._failure
        self._opened += 1
        self._send({"open": found.number})
        return found

    def advance(self, matcher: Matcher, token: int) -> None:
        """Advance an answer by one token."""
        self._tokens += 1
        self._send({"answer": matcher.number, "token": token})

    def forget(self, matcher: Matcher) -> None:
        """An answer is done."""
        if self._matchers.pop(matcher.number, None) is not None:
            self._send({"close": matcher.number})

    def read(self) -> None:
        """Take the replies that have come, and hold the worker to its budget."""
        try:
            while self.pending and (reply := self.worker.poll()) is not None:
                self._take(reply)
            late = time.monotonic() - self._since
            if self.pending and late > STEP_SECONDS:
                raise self.worker.late(STEP_SECONDS)
            if self.pending and late > POLITE and not self._polite:
                self._polite = True
                self.worker.lower_priority()
        except WorkerError as error:
            self._fail(str(error))

    def _take(self, reply: Message) -> None:
        self._waiting -= 1
        self._since = time.monotonic()
        used, allowed = float(reply.value.get("cpu", 0)), REQUEST_CPU + TOKEN_CPU * self._tokens
        if used > allowed:
            self.worker.close()
            reason = f"takes more than {allowed:.2g} s of processor time"
            raise OverLimit(f"{reason} for {self._tokens} tokens")
        matcher = self._matchers.get(reply.value.get("answer", -1))
        if matcher is not None:
            matcher.receive(reply)

    def _send(self, job: Mapping[str, object], replies: int = 1) -> None:
        if self._failure is not None:
            return
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting += replies
        try:
            self.worker.send(job)
        except WorkerError as error:
            self._fail(str(error))

    def end_late(self, why: str) -> None:
        """Fail answers whose masks are late; the others may go on."""
        late = time.monotonic() - self._since > POLITE
        if self.pending and late and any(not each.ready for each in self._matchers.values()):
            self.worker.close()
            self._fail(why)

    def _fail(self, why: str) -> None:
        self._failure = shorten(why)
        for matcher in self._matchers.values():
            matcher.failure = self._failure

    def close(self) -> None:
        """End the worker."""
        self._failure = self._failure or "was closed"
        self.worker.close()
