"""One answer of a chat as the other protocols read it: parts, counts, errors in their words."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from llamaseek.safety.served import GuardFindings
from llamaseek.serve.routes.chat import Chat, begin
from llamaseek.serve.service import Service, new_id
from llamaseek.serve.wire.blocks import AnswerPart, Counts
from llamaseek.serve.wire.conversation import written_as
from llamaseek.serve.wire.fields import ChatFields


@dataclass
class Reply:
    """An answer under way, or what the guard found where there is none.

    `names` says what the client calls a chat's fields.
    """

    answer: Chat | GuardFindings
    id: str
    names: Mapping[str, str]
    created: int = field(default_factory=lambda: int(time.time()))

    async def parts(self) -> AsyncIterator[AnswerPart]:
        """What is said, piece by piece; the last has the reason of its end."""
        if isinstance(self.answer, GuardFindings):
            yield AnswerPart(refusal=self.answer.refusal, finish="content_filter")
            return
        with written_as(self.names):
            async for part in self.answer.parts():
                yield part

    def counts(self) -> Counts:
        """Tokens given and said."""
        if isinstance(self.answer, GuardFindings):
            return Counts(0, 0)
        (choice,) = self.answer.choices
        return Counts(self.answer.prompt, choice.generated, self.answer.cached, choice.reasoned)

    @property
    def stop_reason(self) -> str | None:
        """The stop string that ended the answer."""
        return self.answer.choices[0].stop_reason if isinstance(self.answer, Chat) else None


async def begin_reply(
    service: Service, fields: ChatFields, prefix: str, names: Mapping[str, str]
) -> Reply:
    """Ask the model as a chat does, for one answer; errors, too, are those of a chat."""
    with written_as(names):
        return Reply(await begin(service, fields), new_id(prefix).replace("-", "_"), names)
