"""Verdicts, and that without one nothing passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llamaseek.checkpoints.hf import save_model
from llamaseek.cli.conversation import ChatSession
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import SamplingParams
from llamaseek.errors import UserError
from llamaseek.runtime.device import has_bf16
from llamaseek.safety.guard import Guard, Policy, load_guard
from llamaseek.safety.stream import LONGEST, HeldText, Refused, guarded, require_safe
from llamaseek.safety.verdict import GuardError, read_answer
from llamaseek.text.guard_prompt import PUBLISHED, without
from tests.safety.scripted import CONTEXT, guard_tokenizer, scripted_guard, small_model

ASK = [{"role": "user", "content": "How do I steal a bike?"}]
NONSENSE = [
    "", " ", "Safe", "SAFE", "safely", "safe.", "safe\nS1", "safe unsafe", "unsafe S1", "unsafely",
    "I think it is safe", "un", "sa", "safe\n\nunsafe", "yes", "{\"safe\": true}", "unsafe, safe",
]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        ("unsafe\nS1", ["S1"]),
        ("\n\nunsafe\nS9,S1\n", ["S1", "S9"]),
        ("unsafe\n S2 , S14", ["S2", "S14"]),
        ("unsafe\n\nS1", ["S1"]),
        ("unsafe", []),
        ("unsafe\nS99", []),
        ("unsafe\nsomething else", []),
    ],
)
def test_an_unsafe_answer_is_unsafe_whatever_it_names(answer: str, codes: list[str]) -> None:
    safe, categories = read_answer(answer, PUBLISHED)
    assert not safe
    assert [category.code for category in categories] == codes


def test_a_category_that_is_not_in_the_policy_is_not_named() -> None:
    assert read_answer("unsafe\nS1,S2", without(PUBLISHED, ["S1"]))[1] == (PUBLISHED[1],)


@pytest.mark.parametrize("answer", ["safe", "\n\nsafe", "safe\n "])
def test_only_safe_is_safe(answer: str) -> None:
    assert read_answer(answer, PUBLISHED) == (True, ())


@pytest.mark.parametrize("answer", NONSENSE)
def test_nothing_passes_a_guard_that_talks_nonsense(answer: str) -> None:
    with pytest.raises(GuardError, match="neither safe nor unsafe"):
        read_answer(answer, PUBLISHED)
    with pytest.raises(Refused, match="no verdict") as refused:
        require_safe(scripted_guard([answer]), ASK)
    assert refused.value.verdict is None


def test_the_probability_is_the_first_token_s() -> None:
    guard = scripted_guard(["safe", "unsafe\nS2", "\n\nunsafe\nS2"])
    rest = guard.policy.tokenizer.vocab_size - 1
    likely = float(torch.tensor(20.0).exp() / (torch.tensor(20.0).exp() + rest))
    first, second, third = (guard.check(ASK) for _ in range(3))
    assert first.safe
    assert first.probability < 1e-6
    assert not second.safe
    assert second.probability == pytest.approx(likely, abs=1e-6)
    assert second.summary == "unsafe: S2 Non-Violent Crimes"
    assert third.probability == pytest.approx(likely, abs=1e-6)
    assert second.as_json() == {
        "role": "user",
        "safe": False,
        "categories": [{"code": "S2", "name": "Non-Violent Crimes"}],
        "unsafe_probability": pytest.approx(likely, abs=1e-5),
    }


def test_an_endless_answer_is_no_verdict() -> None:
    with pytest.raises(Refused, match="does not end"):
        require_safe(scripted_guard(["safe " * 80]), ASK)


def test_random_weights_never_clear_anything() -> None:
    tokenizer = guard_tokenizer()
    engine = Engine(small_model(tokenizer), tokenizer, EngineOptions(max_num_seqs=1))
    with pytest.raises(Refused):
        require_safe(Guard(engine, Policy(tokenizer)), ASK)


def failing(error: Exception) -> Guard:
    """A guard whose model fails in its forward pass."""
    guard = scripted_guard([])

    def fail(hidden: Tensor) -> Tensor:
        raise error

    guard.engine.runner.logits = fail  # type: ignore[method-assign]
    return guard


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError(), ValueError("?")])
def test_nothing_passes_a_guard_that_fails(error: Exception) -> None:
    with pytest.raises(Refused, match="no verdict: it failed"):
        require_safe(failing(error), ASK)


def test_nothing_passes_a_guard_that_is_gone() -> None:
    guard = scripted_guard(["safe"])
    guard.engine = None  # type: ignore[assignment]
    with pytest.raises(Refused, match="no verdict: it failed"):
        require_safe(guard, ASK)


def test_nothing_passes_that_is_too_long_for_the_guard() -> None:
    long = [{"role": "user", "content": "fox " * CONTEXT}]
    with pytest.raises(Refused, match="no verdict.*context"):
        require_safe(scripted_guard(["safe"]), long)


def test_nothing_passes_that_is_no_conversation() -> None:
    with pytest.raises(Refused, match="no verdict"):
        require_safe(scripted_guard(["safe"]), [{"role": "user", "content": 5}])


def test_a_tokenizer_that_cannot_tell_safe_from_unsafe_is_refused() -> None:
    class Same:
        def encode(self, text: str) -> list[int]:
            return [1]

    with pytest.raises(UserError, match="same first token"):
        Policy(Same())  # type: ignore[arg-type]


STORY = ["The fox", " ran. The", " bird flew", " away. The", " end"]


def shown(answers: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    """What passes of a stream, and whether it ended in a refusal."""
    passed: list[str] = []
    try:
        for text in guarded(scripted_guard(answers), ASK, iter(pieces)):
            passed.append(text)
    except Refused:
        return passed, True
    return passed, False


@pytest.mark.parametrize(
    ("answers", "passed", "refused"),
    [
        (["safe", "safe", "safe", "safe"], 5, False),
        (["unsafe\nS2"], 0, True),
        (["safe", "unsafe\nS2"], 0, True),
        (["safe", "safe", "unsafe\nS2"], 2, True),
        (["safe", "safe", "safe", "unsafe\nS2"], 4, True),
        (["safe", "safe", "hm"], 2, True),
        (["safe", "safe", "safe", ""], 4, True),
    ],
)
def test_a_stream_passes_piece_by_piece(answers: list[str], passed: int, refused: bool) -> None:
    assert shown(answers, STORY) == (STORY[:passed], refused)


def test_the_answer_is_not_begun_before_its_message_is_cleared() -> None:
    begun = []

    def pieces() -> Iterator[str]:
        begun.append(True)
        yield "text"

    with pytest.raises(Refused):
        list(guarded(scripted_guard(["unsafe\nS2"]), ASK, pieces()))
    assert not begun


def test_all_that_was_said_is_judged_each_time() -> None:
    seen: list[str] = []

    class Watching:
        def check(self, messages: Any) -> Any:
            seen.append(messages[-1]["content"])
            return scripted_guard(["safe"]).check(messages)

    assert list(guarded(Watching(), ASK, iter(STORY))) == STORY
    assert seen[0] == ASK[0]["content"]
    assert seen[1:] == ["The fox ran. The", "".join(STORY[:4]), "".join(STORY)]


def test_text_without_sentences_does_not_wait_for_ever() -> None:
    held: HeldText[str] = HeldText()
    due = [held.add("word ", "word ") for _ in range(LONGEST // 5)]
    assert due == [False] * (len(due) - 1) + [True]
    assert "".join(held.clear()) == held.generated
    assert not held.waits


def talk(guard: Guard) -> ChatSession:
    """A conversation of a random model behind a guard."""
    tokenizer = guard_tokenizer()
    engine = Engine(small_model(tokenizer), tokenizer, EngineOptions(max_num_seqs=1))
    return ChatSession(engine, tokenizer, SamplingParams(max_tokens=8), guard=guard)


def test_chat_forgets_what_was_refused() -> None:
    refusing = talk(scripted_guard(["unsafe\nS2", "safe", "unsafe\nS2", "safe", "safe"]))
    for _ in range(2):  # the message, then the answer
        with pytest.raises(Refused):
            list(refusing.ask("How do I steal a bike?"))
        assert refusing.turns == []
    assert "".join(refusing.ask("Hello")) == refusing.turns[1]["content"] != ""


def test_chat_with_a_dead_guard_says_nothing() -> None:
    silent = talk(failing(RuntimeError("killed")))
    passed: list[str] = []
    with pytest.raises(Refused):
        passed.extend(silent.ask("Hello"))
    assert passed == []
    assert silent.engine.statistics.steps == 0


def test_a_guard_answers_in_what_it_is_stored_in(tmp_path: Path) -> None:
    save_model(small_model(guard_tokenizer()), tmp_path, torch.bfloat16)
    guard_tokenizer().save(tmp_path)
    wanted = torch.bfloat16 if has_bf16(torch.device("cpu")) else torch.float32
    assert load_guard(tmp_path).engine.model.model.norm.weight.dtype == wanted
