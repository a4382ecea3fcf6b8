"""A conversation with a model: its turns, its settings, and the commands that change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from llamaseek.engine.engine import Engine
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.errors import UserError, unknown_name
from llamaseek.safety.stream import Judge, Refused, guarded
from llamaseek.text.chat import TEMPLATE, encode_chat
from llamaseek.text.messages import Message
from llamaseek.text.parse import parse_text
from llamaseek.text.reasoning import opens_reasoning, writes_reasoning
from llamaseek.text.special import THINK
from llamaseek.text.tokenizer import Tokenizer

HELP = """\
/help               show this list
/reset              forget the conversation
/retry              answer the last message again
/system TEXT        set the system message (alone: remove it), and start anew
/temperature X      sampling temperature; 0 is greedy decoding
/top_p X            nucleus sampling: keep the most probable tokens up to this total
/top_k N            sample from the N most probable tokens (0: all)
/max_tokens N       maximum number of tokens of an answer
/seed N             random seed for temperatures above 0
/stop TEXT          stop answers before TEXT (alone: remove the stop text)
/settings           show the settings
/quit               leave (or Ctrl-D)
Alt-Enter begins a new line; Ctrl-C ends an answer; the up arrow brings back what you typed."""


class Quit(Exception):
    """The user has asked to quit."""


@dataclass
class ChatSession:
    """The turns so far and the sampling settings."""

    engine: Engine
    tokenizer: Tokenizer
    sampling: SamplingParams
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    guard: Judge | None = None

    def command(self, line: str) -> str | None:
        """Carry out a /command and return what to show; None asks for the answer again.

        Raises `UserError` for a command or value that is not allowed.
        """
        name, _, value = line[1:].partition(" ")
        if name not in COMMANDS:
            raise unknown_name("command", f"/{name}", [f"/{known}" for known in COMMANDS])
        return COMMANDS[name](self, value.strip())

    def reset(self) -> None:
        """Forget all turns."""
        self.turns.clear()

    def ask(self, text: str) -> Iterator[str]:
        """Add a user's message and stream the answer."""
        self.turns.append({"role": "user", "content": text})
        return self.answer()

    def answer(self) -> Iterator[str]:
        """Stream the answer to the last message; what was said is kept, even if cut short, the
        reasoning of models that reason in a field of its own.

        An exchange that the guard refuses is forgotten, and Refused raised.
        """
        prompt = self._prompt()
        pieces = self._pieces(prompt)
        if self.guard is not None:
            pieces = guarded(self.guard, self._messages(), pieces)
        reply_parts: list[str] = []
        refused = False
        try:
            for text in pieces:
                reply_parts.append(text)
                yield text
        except Refused:
            refused = True
            raise
        finally:
            if refused:
                del self.turns[-1]
            else:
                self.turns.append(self._reply("".join(reply_parts), prompt))

    def _reply(self, text: str, prompt: list[int]) -> Message:
        begun = THINK if opens_reasoning(self.tokenizer, prompt) else ""
        return parse_text(TEMPLATE, begun + text, reasoning=writes_reasoning(self.tokenizer))

    def _pieces(self, ids: list[int]) -> Iterator[str]:
        for delta in self.engine.stream(Request(prompt=ids, params=self.sampling)):
            if delta.error is not None:
                raise RuntimeError(delta.error)
            yield delta.text

    def _prompt(self) -> list[int]:
        """The conversation as ids; the oldest turns go where the context is too short."""
        engine, wanted = self.engine, self.sampling.max_tokens or 1
        room = min(engine.context - 1, engine.capacity - wanted)
        while True:
            ids = encode_chat(self.tokenizer, self._messages(), add_generation_prompt=True).ids
            if len(ids) <= room:
                return ids
            if len(self.turns) == 1:
                self.turns.clear()
                raise UserError(f"message: has {len(ids)} tokens; the context leaves {room}")
            del self.turns[:2]

    def _messages(self) -> list[Message]:
        start = [{"role": "system", "content": self.system}] if self.system else []
        return [*start, *self.turns]


def _setting(name: str, read: Callable[[str], Any], kind: str) -> Callable[[ChatSession, str], str]:
    def change(talk: ChatSession, value: str) -> str:
        try:
            number = read(value)
        except ValueError:
            raise UserError(f"/{name}: {value!r} is not {kind}") from None
        talk.sampling = replace(talk.sampling, **{name: number})
        return f"{name} {number}"

    return change


def _reset(talk: ChatSession, value: str) -> str:
    talk.reset()
    return "a new conversation"


def _system(talk: ChatSession, value: str) -> str:
    talk.system = value
    talk.reset()
    return f"system message {'set' if value else 'removed'}; a new conversation"


def _stop(talk: ChatSession, value: str) -> str:
    stops = [*talk.sampling.stop, value] if value else []
    talk.sampling = replace(talk.sampling, stop=stops)
    return f"stops: {stops}" if stops else "no stop texts"


def _settings(talk: ChatSession, value: str) -> str:
    s = talk.sampling
    return (
        f"temperature {s.temperature}  top_p {s.top_p}  top_k {s.top_k}  "
        f"max_tokens {s.max_tokens}  seed {s.seed}\nsystem {talk.system!r}  stops {list(s.stop)}"
    )


def _retry(talk: ChatSession, value: str) -> None:
    if not talk.turns:
        raise UserError("/retry: there is no message to answer yet")
    del talk.turns[-1]
    if talk.sampling.temperature > 0:  # the same seed would give the same answer again
        talk.sampling = replace(talk.sampling, seed=(talk.sampling.seed or 0) + 1)


def _quit(talk: ChatSession, value: str) -> str:
    raise Quit


COMMANDS: dict[str, Callable[[ChatSession, str], str | None]] = {
    "help": lambda talk, value: HELP,
    "reset": _reset,
    "retry": _retry,
    "system": _system,
    "temperature": _setting("temperature", float, "a number"),
    "top_p": _setting("top_p", float, "a number"),
    "top_k": _setting("top_k", int, "a whole number"),
    "max_tokens": _setting("max_tokens", int, "a whole number"),
    "seed": _setting("seed", int, "a whole number"),
    "stop": _stop,
    "settings": _settings,
    "quit": _quit,
}
