"""Constrained decoding: answers that conform to a JSON schema, regular expression or grammar.

Through llguidance rather than xgrammar: it makes each step's mask when it is needed, so a large
schema costs no compile time before the first token; and it depends on nothing, where xgrammar
asks for transformers and Triton at run time.

Constraints are untrusted programs. Each request with one has a worker process of its own
(`llamaseek.workers.grammar`), which compiles it and computes its masks beside the model's steps.
An answer whose mask is late sits out steps, and one over its budget fails; no other waits for it.
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

from llamaseek.engine.matcher import PATIENCE, POLITE, Session
from llamaseek.errors import UserError, bad_value, shorten
from llamaseek.text.grammar import JSON_STYLE
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.workers.pool import WorkerPool
from llamaseek.workers.worker import JobFailed, Late, OverLimit

KINDS = ("json_schema", "regex", "lark")
KNOWN = 4096  # constraints of which it is remembered whether they compile
MEMORY = 256 << 20  # bytes that one request's grammar may take
STEP_CPU = 1  # seconds of processor time that compiling, or one mask, may take
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


class Grammars:
    """Checks constraints for one tokenizer and the ids that end an answer, and holds answers to
    them. `start` and `check` may be called from any thread; the rest is the engine's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._pool: WorkerPool | None = None
        self._starting, self._lock = Lock(), Lock()
        self._known = OrderedDict[bytes, str | None]()  # their errors, None where they have none
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
        session = Session(self.start().take(), _compile_job(constraint))
        self._sessions.add(session)
        return session

    def release(self, session: Session) -> None:
        """A request is done."""
        self._sessions.discard(session)
        session.close()

    def end_late(self, why: str) -> None:
        """Fail the answers whose masks are late."""
        for session in self._sessions:
            session.end_late(why)

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
