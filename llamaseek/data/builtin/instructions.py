"""Instructions of many kinds in many wordings; some wordings are never trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from llamaseek.data.builtin.stories import parses, prompt
from llamaseek.data.builtin.tasks import TASKS, task_item
from llamaseek.data.builtin.words import ANIMALS, COLOURS, DICTIONARY, Split


@dataclass(frozen=True)
class InstructionItem:
    """An instruction, an answer that follows it, and what it asked about."""

    kind: str
    input: str
    output: str
    content: str

    @property
    def key(self) -> str:
        """What makes it this item."""
        return f"{self.kind}: {self.input}"


@dataclass(frozen=True)
class Kind:
    """Openers × asks × frames for training, whole wordings for testing."""

    asks: tuple[str, ...]
    frames: tuple[str, ...]
    held_out: tuple[str, ...]


OPENERS = ("", "", "Please ", "You are to ", "Your task is to ", "I want you to ", "Now ")
TEXT_FRAMES = (" Text: '{0}'", " Here is the text: '{0}'", " The text is: '{0}'", " '{0}'")
SENTENCE_FRAMES = (" Sentence: '{0}'", " The sentence is: '{0}'", " Here it is: '{0}'", " '{0}'")

WORDINGS: dict[str, Kind] = {
    "complete": Kind(
        (
            "complete the following sentence.",
            "finish the following sentence.",
            "continue this sentence.",
            "write the rest of the sentence.",
            "complete this story.",
            "tell the rest of this story.",
        ),
        tuple(frame.replace("{0}", "{0} ") for frame in SENTENCE_FRAMES),
        (
            "I want you to finish this story. Sentence: '{0} '",
            "Please complete the rest of the sentence. Here it is: '{0} '",
            "Your task is to continue the following story. The sentence is: '{0} '",
        ),
    ),
    "sentiment": Kind(
        (
            "say whether the writer is happy or unhappy.",
            "tell me if the writer is happy or unhappy.",
            "decide if this is happy or unhappy.",
            "name the feeling of the writer, happy or unhappy.",
            "classify the feeling as happy or unhappy.",
        ),
        TEXT_FRAMES,
        (
            "Please decide whether the writer is happy or unhappy. Text: '{0}'",
            "Your task is to say if this is happy or unhappy. Here is the text: '{0}'",
        ),
    ),
    "entities": Kind(
        (
            "list the places in the text.",
            "find the places in this text.",
            "name all places that you find.",
            "write down the places.",
            "extract the places from the text.",
        ),
        TEXT_FRAMES,
        (
            "Please extract all places in this text. Text: '{0}'",
            "You are to list the places that you find. Here is the text: '{0}'",
        ),
    ),
    "question": Kind(
        (
            "answer the question.",
            "answer this question.",
            "give the answer to this question.",
            "reply to the question.",
            "write the answer.",
        ),
        (" Question: '{0}'", " The question is: '{0}'", " Here it is: '{0}'", " '{0}'"),
        (
            "I want you to give the answer to the question. Question: '{0}'",
            "Now reply to this question. Here it is: '{0}'",
        ),
    ),
    "summary": Kind(
        (
            "summarize the text.",
            "write a summary of the text.",
            "say in one short sentence what happened.",
            "give a short summary.",
            "tell me in short what happened.",
        ),
        TEXT_FRAMES,
        (
            "Please write a short summary of the text. Text: '{0}'",
            "You are to say in short what happened. The text is: '{0}'",
        ),
    ),
    "intent": Kind(
        (
            "name the intent of the user.",
            "say what the user wants.",
            "find the intent of this request.",
            "classify the request of the user.",
            "detect the intent.",
        ),
        (" Request: '{0}'", " The request is: '{0}'", " Here it is: '{0}'", " '{0}'"),
        (
            "Please detect the intent of this request. Request: '{0}'",
            "Your task is to say the intent of the user. The request is: '{0}'",
        ),
    ),
    "repeat": Kind(
        (
            "repeat the word {0} three times.",
            "write the word {0} three times.",
            "say {0} three times.",
            "say the word {0} again and again, three times.",
        ),
        ("",),
        ("Please say the word {0} three times.", "You are to write {0} three times."),
    ),
    "first_word": Kind(
        (
            "give the first word of the sentence.",
            "write the first word of this sentence.",
            "say which word comes first.",
        ),
        SENTENCE_FRAMES,
        ("Please say the first word of the sentence. Sentence: '{0}'",),
    ),
    "add": Kind(
        ("add {0}.", "give the sum of {0}.", "find the sum of {0}.", "work out the sum of {0}."),
        ("",),
        ("Please write the sum of {0}.", "I want you to give me the sum of {0}."),
    ),
    "translate": Kind(
        (
            "translate the word {0}.",
            "translate {0}.",
            "say the word {0}.",
            "give the word {0}.",
        ),
        ("",),
        ("Your task is to translate the word {0}.", "I want you to say {0}."),
    ),
}
KINDS = tuple(WORDINGS)


def _content(kind: str, rng: Random, split: Split) -> tuple[str, str]:
    """What is asked about, and the answer."""
    if kind in TASKS:
        item = task_item(kind, rng, split)
        return item.input, item.output
    return CONTENTS[kind](rng, split)


def _complete(rng: Random, split: Split) -> tuple[str, str]:
    prefix, made = prompt(rng, split)
    return prefix, made.text


def _repeat(rng: Random, split: Split) -> tuple[str, str]:
    word = rng.choice(ANIMALS + COLOURS)
    return word, f"{word} {word} {word}"


def _first_word(rng: Random, split: Split) -> tuple[str, str]:
    first, *rest = rng.sample(ANIMALS + COLOURS, rng.randint(3, 5))
    return " ".join([first, *rest]), first


def _add(rng: Random, split: Split) -> tuple[str, str]:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    return f"{a} and {b}", str(a + b)


def _translate(rng: Random, split: Split) -> tuple[str, str]:
    word, language = rng.choice(tuple(DICTIONARY)), rng.randrange(2)
    return f"{word} in {('Spanish', 'French')[language]}", DICTIONARY[word][language]


CONTENTS: dict[str, Callable[[Random, Split], tuple[str, str]]] = {
    "complete": _complete,
    "repeat": _repeat,
    "first_word": _first_word,
    "add": _add,
    "translate": _translate,
}

LECTURE_INSTRUCTION = InstructionItem(
    "complete",
    "You are to complete the following sentence. Sentence: 'The red fox '",
    "The red fox chased the blue bird. And the bird flew away in the nick of time!",
    "The red fox",
)


def training_wording(kind: str, rng: Random) -> str:
    """One of the wordings that may be trained on, with `{0}` for the content."""
    table = WORDINGS[kind]
    opener, ask = rng.choice(OPENERS), rng.choice(table.asks)
    start = opener + ask if opener else ask[0].upper() + ask[1:]
    return start + rng.choice(table.frames)


def held_out(wording: str) -> bool:
    """Whether a wording is kept for testing."""
    return any(wording in kind.held_out for kind in WORDINGS.values())


def instruction_item(kind: str, rng: Random, split: Split) -> InstructionItem:
    """An instruction; `test` takes held-out wordings and held-out content, `train` neither."""
    content, output = _content(kind, rng, split)
    if split == "test":
        wording = rng.choice(WORDINGS[kind].held_out)
    else:
        wording = training_wording(kind, rng)
        while held_out(wording):
            wording = training_wording(kind, rng)
    return InstructionItem(kind, wording.format(content), output, content)


def followed(item: InstructionItem, answer: str) -> bool:
    """Whether the answer does what was asked: the right text, or a story that goes on."""
    answer = answer.strip()
    if item.kind == "complete":
        return answer.startswith(item.content) and parses(answer)
    return answer == item.output
