"""A guard of a served model: it judges messages, and answers while they are generated.

This fails closed. A guard that is stopped, broken, late, or answers anything but a verdict
lets nothing pass. Its engine has a thread of its own, so that both models work at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llamaseek.engine.background import BackgroundEngine
from llamaseek.engine.request import Completion, Delta, Logprob
from llamaseek.engine.scheduler import QueueFull
from llamaseek.safety.guard import Guard
from llamaseek.safety.stream import HeldText
from llamaseek.safety.verdict import GuardError, Unread, Verdict
from llamaseek.text.messages import Message
from llamaseek.text.tokenizer import StreamDecoder

log = logging.getLogger("llamaseek.serve")
NO_VERDICT = "the guard gave no verdict"


@dataclass(frozen=True)
class GuardFindings:
    """What the guard found of a conversation's last message, and of its answer so far."""

    input: Verdict | None = None
    output: Verdict | None = None
    failed: bool = False

    @property
    def safe(self) -> bool:
        """Whether there are verdicts, and none against it."""
        found = [verdict for verdict in (self.input, self.output) if verdict is not None]
        return bool(found) and not self.failed and all(verdict.safe for verdict in found)

    @property
    def refusal(self) -> str | None:
        """Why something did not pass, for people; None where it did."""
        if self.safe:
            return None
        if self.failed:
            return f"Refused: {NO_VERDICT}."
        whose = "answer" if self.output else "message"
        verdict = self.output or self.input
        assert verdict is not None
        return f"The {whose} was refused by the guard ({verdict.summary})."

    def as_json(self) -> dict[str, Any]:
        """The extra field `guard` of a choice."""
        sides = {"input": self.input, "output": self.output}
        fields: dict[str, Any] = {
            side: verdict.as_json() for side, verdict in sides.items() if verdict is not None
        }
        return fields | ({"error": NO_VERDICT} if self.failed else {})


class ServedGuard:
    """A guard's engine in the background; `timeout` bounds one verdict, in seconds."""

    def __init__(self, guard: Guard, timeout: float = 30.0) -> None:
        self.policy, self.timeout = guard.policy, timeout
        self.background = BackgroundEngine(guard.engine)

    async def judge(self, messages: Sequence[Message]) -> Verdict:
        """The verdict on the last turn; GuardError where there is none, whatever the reason.

        `QueueFull` where as many wait as may: whoever asks may come again.
        """
        try:
            async with asyncio.timeout(self.timeout):
                return self.policy.verdict(messages, await self._answer(messages))
        except (GuardError, QueueFull):
            raise
        except TimeoutError:
            raise GuardError(f"it took longer than {self.timeout:g} s") from None
        except Exception as error:
            raise GuardError(f"it failed ({type(error).__name__})") from error

    async def _answer(self, messages: Sequence[Message]) -> Completion:
        request = await asyncio.to_thread(self.policy.request, messages)
        stream = self.background.submit([request])
        text, tokens, finish = "", list[int](), ""
        logprobs = list[Logprob]()
        try:
            async for deltas in stream:
                for delta in deltas:
                    text += delta.text
                    tokens += delta.tokens
                    logprobs += delta.logprobs or []
                    finish = delta.finish or finish
        finally:
            stream.close()
        return Completion(0, tokens, text, finish, logprobs)

    async def check(self, views: Sequence[Sequence[Message]]) -> GuardFindings:
        """What is found of the last turns of conversations, see `views.input_views`.

        The verdict is the first that is not safe, else the first.
        """
        try:
            verdicts = [await self.judge(messages) for messages in views]
        except GuardError as error:
            return GuardFindings(failed=_logged(error))
        unsafe = [verdict for verdict in verdicts if not verdict.safe]
        return GuardFindings(input=(unsafe or verdicts)[0])


@dataclass
class GuardedAnswer:
    """Buffers an answer until the guard has judged its text so far as safe.

    All that the model says is judged as it says it, whatever is then made of it: calls of tools,
    and text that a stop string may cut off, too.
    """

    guard: ServedGuard
    messages: Sequence[Message]
    decoder: StreamDecoder
    found: GuardFindings
    held: HeldText[Delta] = field(default_factory=HeldText)

    async def clear(self, delta: Delta) -> list[Delta]:
        """The deltas that may be sent now; none once `found` is not safe."""
        text = "".join(map(self.decoder.push, delta.tokens))
        due = self.held.add(delta, text + (self.decoder.flush() if delta.finish else ""))
        if due or (delta.finish and self.held.waits):
            await self._judge()
        elif not delta.finish:
            return []
        return self.held.clear() if self.found.safe else []

    async def _judge(self) -> None:
        answer = {"role": "assistant", "content": self.held.generated}
        found = self.found
        try:
            verdict = await self.guard.judge([*self.messages, answer])
            self.found = GuardFindings(found.input, verdict)
        except GuardError as error:
            self.found = GuardFindings(found.input, found.output, failed=_logged(error))


def _logged(error: GuardError) -> bool:
    """Say why there is no verdict, without what the guard said, which may repeat a user; True."""
    why = "it answered otherwise" if isinstance(error, Unread) else error
    log.error("the guard gave no verdict: %s", why)
    return True
