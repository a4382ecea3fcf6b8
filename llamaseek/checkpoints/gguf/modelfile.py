"""An Ollama Modelfile: where the weights are, how a conversation is written, where answers end.

Ollama's templates are Go's and loop over messages. What stands before and after each message is
read off the tokenizer's own rendering, and the result is held against other conversations; a
template that does not come out the same is left out, and the file says so. The bos token is left
to Ollama, which puts it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamaseek.errors import UserError
from llamaseek.text.chat import encode_chat
from llamaseek.text.messages import Message
from llamaseek.text.tokenizer import Tokenizer

SYSTEM, USER, ASSISTANT = ("system", "Sx1"), ("user", "Ux2"), ("assistant", "Ax3")
CHECKS = (
    (SYSTEM, USER),
    (USER,),
    (USER, ASSISTANT, USER),
    (SYSTEM, USER, ASSISTANT, USER, ASSISTANT, USER),
)
Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Around:
    """Texts before and after each role's message, before the first where there is no system
    message, and before the answer."""

    roles: dict[str, tuple[str, str]]
    start: str
    answer: str

    def render(self, turns: Turns) -> str:
        """A conversation, its answer begun."""
        first = "" if turns[0][0] == "system" else self.start
        said = (self.roles[role][0] + text + self.roles[role][1] for role, text in turns)
        return first + "".join(said) + self.answer

    def to_go(self) -> str:
        """The template in Go's words."""
        start = f"{{{{ if not .System }}}}{self.start}{{{{ end }}}}" if self.start else ""
        branches = (
            f'{word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for word, (role, (before, after)) in zip(
                ("{{ if", "{{ else if", "{{ else if"), self.roles.items(), strict=True
            )
        )
        loop = "{{ range .Messages }}" + "".join(branches) + "{{ end }}{{ end }}"
        return start + loop + self.answer


def modelfile(weights: str, tokenizer: Tokenizer | None) -> str:
    """The text of a Modelfile for a GGUF file beside it, called `weights`."""
    lines = [f"FROM ./{weights}"]
    around = None if tokenizer is None else _around(tokenizer)
    if around is not None and '"""' not in around.to_go():
        lines.append(f'TEMPLATE """{around.to_go()}"""')
    elif tokenizer is not None and tokenizer.chat_template is not None:
        lines.append("# The chat template has no form in Ollama's words; it is in the file itself.")
    if tokenizer is not None:
        ends = (tokenizer.specials[i] for i in tokenizer.stop_ids if i in tokenizer.specials)
        lines += [f'PARAMETER stop "{end}"' for end in ends]
    return "\n".join(lines) + "\n"


def _around(tokenizer: Tokenizer) -> Around | None:
    """What stands around messages, or None where that depends on more than their role."""
    try:
        whole = _rendered(tokenizer, (SYSTEM, USER, ASSISTANT, USER))
        alone = _rendered(tokenizer, (USER,))
        answered = _rendered(tokenizer, (USER, ASSISTANT), answer=False)
        asked = _rendered(tokenizer, (USER,), answer=False)
        found = _cut(whole, alone, asked, answered)
        right = all(found.render(turns) == _rendered(tokenizer, turns) for turns in CHECKS)
    except (UserError, ValueError):
        return None
    return found if right else None


def _cut(whole: str, alone: str, asked: str, answered: str) -> Around:
    """The texts around messages; ValueError where a message is not there as it was given."""
    answer = alone.removeprefix(asked)
    before_user, after_user = asked.split(USER[1])
    between = answered.removeprefix(asked).split(ASSISTANT[1])
    before_system, rest = whole.split(SYSTEM[1])
    to_user = rest.split(USER[1])[0]
    # What is before a user's message when a system message precedes is that one's end and the
    # user's beginning; alone, it is the start of a conversation and the user's beginning.
    after_assistant, _ = whole.split(ASSISTANT[1])[1].split(USER[1])
    own = after_assistant.removeprefix(between[1])
    if not before_user.endswith(own) or not to_user.endswith(own):
        raise ValueError("a user's message begins differently after others")
    return Around(
        {
            "system": (before_system, to_user.removesuffix(own)),
            "user": (own, after_user),
            "assistant": (between[0], between[1]),
        },
        before_user.removesuffix(own),
        answer,
    )


def _rendered(tokenizer: Tokenizer, turns: Turns, answer: bool = True) -> str:
    """A conversation as text, without what the tokenizer puts before every text (bos)."""
    messages: list[Message] = [{"role": role, "content": text} for role, text in turns]
    ids = list(encode_chat(tokenizer, messages, add_generation_prompt=answer).ids)
    prefix = list(tokenizer.prefix_ids)
    start = len(prefix) if prefix and ids[: len(prefix)] == prefix else 0
    return tokenizer.decode(ids[start:], skip_special=False)
