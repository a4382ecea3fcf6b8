"""The engine in a separate thread; the results of a request are an async stream.

One event loop asks; the thread steps the engine while there is work. Between two steps it takes
on what was asked for and drops what was cancelled, so a cancelled request's blocks are free
after the step under way at the latest.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from llamaseek.engine.engine import Engine
from llamaseek.engine.request import Delta, Request
from llamaseek.engine.scheduler import QueueFull
from llamaseek.errors import UserError

T = TypeVar("T")


class EngineDown(Exception):
    """The engine accepts no requests: it was stopped or has failed."""


class Stream:
    """The results of requests that were submitted together; iterate for lists of deltas.

    Ends after the last delta of the last answer. `close` drops what is not finished. A reader
    that is slower than the engine finds more in each list; an answer's length bounds it.
    """

    def __init__(self, background: BackgroundEngine, requests: Sequence[Request]) -> None:
        self._background = background
        self.unfinished = {request.id: set(range(request.params.n)) for request in requests}
        self._found: list[Delta] = []
        self._ready = asyncio.Event()

    def put(self, delta: Delta) -> None:
        """Called by the event loop, in order."""
        self._found.append(delta)
        if delta.finish is not None:
            self.unfinished[delta.request].discard(delta.index)
            if not self.unfinished[delta.request]:
                del self.unfinished[delta.request]
                self._background.forget(delta.request)
        self._ready.set()

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        try:
            while self.unfinished or self._found:
                await self._ready.wait()
                self._ready.clear()
                found, self._found = self._found, []
                if found:
                    yield found
        finally:
            self.close()

    def close(self) -> None:
        """Cancel what is not finished; its blocks are free after the step under way."""
        for request in list(self.unfinished):
            self._background.cancel(request)
        self.unfinished.clear()
        self._ready.set()


class BackgroundEngine:
    """Runs an engine for one event loop.

    At most `max_num_seqs` + `most_waiting` of the engine's options requests are in its hands;
    `fault` says what broke the engine, if something did: it then takes no more requests.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.fault: str | None = None
        self.most = engine.options.max_num_seqs + engine.options.most_waiting
        # The bound is kept here: between two steps the scheduler sees all that was just asked as
        # waiting, also what will run at once.
        engine.scheduler.most_waiting = self.most
        self._streams: dict[int, Stream] = {}
        self._works: set[asyncio.Future[Any]] = set()
        self._commands: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopped = False

    def start(self) -> None:
        """Begin; called in the event loop that will ask."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Fail what is under way and end the thread, after its step."""
        self._stopped = True
        self.end_all("the server is shutting down")
        self._commands.put(None)
        self._thread.join()
        if self.engine.grammars is not None:
            self.engine.grammars.close()

    @property
    def in_flight(self) -> int:
        """Requests in its hands, running or waiting."""
        return len(self._streams)

    def submit(self, requests: Sequence[Request]) -> Stream:
        """Ask for answers, for all of the requests or none.

        UserError for one that can never be answered, or for more than may ever be in flight;
        `QueueFull` where too many are, `EngineDown` after a fault or `stop`.
        """
        self._check_running()
        for request in requests:
            self.engine.check(request)
        if len(requests) > self.most:
            raise UserError(f"prompt: has {len(requests)} entries; at most {self.most} may be")
        if len(self._streams) + len(requests) > self.most:
            raise QueueFull(f"{len(self._streams)} requests are in flight; at most {self.most} may")
        stream = Stream(self, requests)
        for request in requests:
            self._streams[request.id] = stream
        self._commands.put(lambda: self._add(requests))
        return stream

    async def between_steps(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, run in the engine's thread between two of its steps.

        The engine waits for it. It is not run if the caller is gone before its turn.
        EngineDown after a fault or `stop`.
        """
        self._check_running()
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._works.add(result)
        self._commands.put(lambda: self._work(work, result))
        try:
            return await result
        finally:
            self._works.discard(result)

    def _work(self, work: Callable[[], T], result: asyncio.Future[T]) -> None:
        if result.done():
            return
        try:
            found = work()
        except Exception as error:
            self._call(partial(_settle, result), partial(result.set_exception, error))
        else:
            self._call(partial(_settle, result), partial(result.set_result, found))

    def _check_running(self) -> None:
        if self.fault is not None or self._stopped:
            raise EngineDown(self.fault or "the server is shutting down")

    def cancel(self, request: int) -> None:
        """Drop a request."""
        if self._streams.pop(request, None) is not None:
            self._commands.put(lambda: self.engine.cancel(request))

    def forget(self, request: int) -> None:
        """A request is answered."""
        self._streams.pop(request, None)

    def _run(self) -> None:
        try:
            while self._take_commands():
                self._tell(self.engine.step())
        except Exception as error:  # not an answer's failure: the engine's own state is broken
            self.fault = f"{type(error).__name__}: {error}"
            self._call(self.end_all, "the engine has failed")

    def _take_commands(self) -> bool:
        """Carry out what was asked, waiting for something where there is no work; False to end."""
        block = not self.engine.busy
        while True:
            try:
                command = self._commands.get(block=block)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            block = False

    def _add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            try:
                self.engine.add(request)
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                answers = range(request.params.n)
                self._tell([Delta(request.id, n, [], finish="error", error=text) for n in answers])

    def _tell(self, deltas: list[Delta]) -> None:
        if deltas:
            self._call(self._deliver, deltas)

    def _call(self, function: Callable[..., None], argument: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _deliver(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            stream = self._streams.get(delta.request)
            if stream is not None:
                stream.put(delta)

    def end_late(self, why: str) -> None:
        """Fail what waits for the masks of its grammar, saying why."""
        if self.engine.grammars is not None:
            self._commands.put(partial(self.engine.grammars.end_late, why))

    def end_all(self, why: str) -> None:
        """Fail all that is under way, saying why."""
        for result in self._works:
            _settle(result, partial(result.set_exception, EngineDown(why)))
        for request, stream in list(self._streams.items()):
            self.cancel(request)
            for index in sorted(stream.unfinished.get(request, ())):
                stream.put(Delta(request, index, [], finish="error", error=why))


def _settle(result: asyncio.Future[Any], settle: Callable[[], None]) -> None:
    """Called by the event loop: settle what nobody has settled."""
    if not result.done():
        settle()
