"""Answers that fit a JSON schema, a regular expression or a grammar, whatever the model prefers.

Through llguidance rather than xgrammar: it makes each step's mask when it is needed, so a large
schema costs no compile time before the first token; and it depends on nothing, where xgrammar
asks for transformers and Triton at run time.

Constraints are untrusted programs. Each request with one has a worker process of its own
(`llamaseek.workers.grammar`), which compiles it and computes its masks beside the model's steps.
An answer whose mask is late sits out steps, and one over its budget fails; no other waits for it.

V vocabulary.
"""

from __future__ import annotations

import asyncio
import pickle
import select
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llamaseek.errors import UserError, bad_value, shorten
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.workers.channel import Message
from llamaseek.workers.pool import JobFailed, Late, OverLimit, Worker, WorkerError, WorkerPool

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

KINDS = ("json_schema", "regex", "lark")
# No white space but what `json.dumps` writes: a weak model could go on with blanks for ever.
JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
KNOWN = 4096  # constraints of which it is remembered whether they compile
MEMORY = 256 << 20  # bytes that one request's grammar may take
STEP_CPU = 1  # seconds of processor time that compiling, or one mask, may take
STEP_SECONDS = 10.0  # the same by the clock, for machines that are busy
REQUEST_CPU, TOKEN_CPU = 2.0, 0.01  # seconds of processor time for a request, and more a token
PATIENCE = 0.02  # seconds that a step waits for masks that were in time before
POLITE = 0.1  # seconds after which a mask is computed when nothing else runs
COMPILE_SECONDS = 5.0


@dataclass(frozen=True)
class Constraint:
    """What an answer has to be: `kind` json_schema, regex or lark (a Lark grammar), and `source`,
    the text of it."""

    kind: str
    source: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise bad_value("constraint", self.kind, ", ".join(KINDS))

    @property
    def key(self) -> bytes:
        """A digest of it."""
        source = self.source.encode("utf-8", "surrogatepass")
        return blake2b(self.kind.encode() + b" " + source).digest()


class Matcher:
    """How far one answer is through its grammar, and the mask of what may come next.

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
        row[: len(allowed)].masked_fill_(torch.from_numpy(~allowed).to(row.device), -torch.inf)
        row[len(allowed) :] = -torch.inf

    def accept(self, token: int) -> None:
        """Go on by a token: the next mask is then computed beside whatever runs here."""
        self.ready, self.asked = False, time.monotonic()
        self._session.advance(self, token)

    def receive(self, reply: Message) -> None:
        """The mask has come, or why there is none."""
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

    def __init__(self, worker: Worker, constraint: Constraint) -> None:
        self.worker = worker
        self._matchers: dict[int, Matcher] = {}
        self._waiting = 1  # replies that are to come, the one to compiling first
        self._since = time.monotonic()  # when the worker began on the next of them
        self._tokens = self._opened = 0
        self._failure: str | None = None
        self._polite = False
        self._send({"compile": [constraint.kind, constraint.source]}, replies=0)

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
        """An answer goes on by a token."""
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
            told = f"takes more than {allowed:.2g} s of processor time"
            raise OverLimit(f"{told} for {self._tokens} tokens")
        matcher = self._matchers.get(reply.value.get("answer", -1))
        if matcher is not None:
            matcher.receive(reply)

    def _send(self, job: dict[str, object], replies: int = 1) -> None:
        if self._failure is not None:
            return
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting += replies
        try:
            self.worker.send(job)
        except WorkerError as error:
            self._fail(str(error))

    def _fail(self, why: str) -> None:
        self._failure = shorten(why)
        for matcher in self._matchers.values():
            matcher.failure = self._failure

    def close(self) -> None:
        """End the worker."""
        self._failure = self._failure or "was closed"
        self.worker.close()


class Grammars:
    """Checks constraints for one tokenizer and the ids that end an answer, and holds answers to
    them. `start` and `check` may be called from any thread; the rest is the engine's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._pool: WorkerPool | None = None
        self._starting, self._lock = Lock(), Lock()
        self._known: OrderedDict[bytes, str | None] = (
            OrderedDict()
        )  # errors, None for those without
        self._sessions: set[Session] = set()

    def start(self) -> WorkerPool:
        """The workers. The first call takes a second or two with a large vocabulary."""
        with self._starting:
            if self._pool is None:
                blob = pickle.dumps((self.tokenizer, JSON_STYLE))
                self._pool = WorkerPool(
                    "llamaseek.workers.grammar", blob, memory=MEMORY, cpu=STEP_CPU, idle=0
                )
            self._pool.start()
            return self._pool

    def check(self, constraint: Constraint, seconds: float = COMPILE_SECONDS) -> None:
        """UserError for a constraint that cannot be compiled within the limits."""
        if not self._is_known(constraint):
            with self._remembering(constraint):
                self.start().run(_compile_job(constraint), seconds)

    async def check_async(self, constraint: Constraint, seconds: float = COMPILE_SECONDS) -> None:
        """`check` for an event loop."""
        if self._is_known(constraint):
            return
        with self._remembering(constraint):
            worker = (await asyncio.to_thread(self.start)).take()
            later = asyncio.get_running_loop().call_later(POLITE, worker.lower_priority)
            try:
                await worker.ask_async(_compile_job(constraint), seconds)
            finally:
                later.cancel()
                worker.close()

    def _is_known(self, constraint: Constraint) -> bool:
        """Whether it compiles, if that is known; UserError if it is known not to."""
        with self._lock:
            if constraint.key not in self._known:
                return False
            self._known.move_to_end(constraint.key)
            error = self._known[constraint.key]
        if error is not None:
            raise UserError(error)
        return True

    @contextmanager
    def _remembering(self, constraint: Constraint) -> Iterator[None]:
        """Make UserErrors of what is wrong with a constraint, and remember them.

        Whether it was late depends on what else runs, so that is not remembered.
        """
        error = None
        try:
            yield
        except (JobFailed, OverLimit) as failed:
            error = f"constraint: {constraint.kind}: {shorten(str(failed))}"
            if isinstance(failed, Late):
                raise UserError(error) from None
        with self._lock:
            self._known[constraint.key] = error
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
        if error is not None:
            raise UserError(error)

    def open(self, constraint: Constraint) -> Session:
        """A worker for a request. WorkerError if there can be none."""
        session = Session(self.start().take(), constraint)
        self._sessions.add(session)
        return session

    def release(self, session: Session) -> None:
        """A request is done."""
        self._sessions.discard(session)
        session.close()

    def close(self) -> None:
        """End the workers; the next constraint starts others."""
        if self._pool is not None:
            self._pool.close()

    def collect(self, idle: bool) -> None:
        """Take the masks that have come. Waits a moment for those that were in time before, or,
        where the engine is `idle` without any, for one."""
        end = time.monotonic() + PATIENCE
        while pending := [session for session in self._sessions if session.pending]:
            wait = idle or any(session.quick for session in pending)
            left = max(0.0, end - time.monotonic()) if wait else 0.0
            poller = select.poll()
            for session in pending:
                poller.register(session.worker.channel, select.POLLIN)
            arrived = poller.poll(1000 * left)
            for session in pending:
                session.read()
            idle = idle and not arrived
            if not arrived:
                return


def _compile_job(constraint: Constraint) -> dict[str, object]:
    return {"compile": [constraint.kind, constraint.source]}
