"""What a GPU keeps from step to step, and steps that it begins before their tokens are read: the
answers are the same. On a CPU, which computes the same in order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from llamaseek.engine.ahead import Flight
from llamaseek.engine.engine import Engine
from llamaseek.engine.forward.step_layout import StepResult
from llamaseek.engine.options import EngineOptions, Speculation
from llamaseek.engine.request import Request, SamplingParams, SequenceState
from llamaseek.engine.sampling.sampler import decide, shape_logits
from llamaseek.engine.sampling.state import SamplingState
from tests.engine.reference import random_prompts
from tests.models.shapes import tiny_model

CPU = torch.device("cpu")
VOCABULARY = 97
PARAMS = [
    SamplingParams(max_tokens=12),
    SamplingParams(max_tokens=12, temperature=0.9, top_p=0.8, seed=1),
    SamplingParams(max_tokens=9, temperature=1.2, top_k=20, seed=2, repetition_penalty=1.3),
    SamplingParams(max_tokens=12, presence_penalty=1.5, frequency_penalty=0.7),
    SamplingParams(max_tokens=7, temperature=0.7, min_p=0.02, seed=3, n=3, frequency_penalty=-1.0),
    SamplingParams(max_tokens=12, logit_bias={5: 3.0, 40: -2.5}, repetition_penalty=0.8),
]


def opened(kept: bool, **options: Any) -> Engine:
    """An engine of few blocks, that keeps numbers on its device and runs ahead as on a GPU."""
    torch.manual_seed(0)
    given = {"cache_bytes": 40_000, "block_size": 4, "max_num_seqs": 8, **options}
    engine = Engine(tiny_model("llama3").eval(), options=EngineOptions(**given))
    if kept:
        engine.keep_on_device()
    return engine


def answered(engine: Engine, **changes: Any) -> list[list[int]]:
    """What an engine answers to many requests of all kinds."""
    prompts = [prompt[:20] for prompt in random_prompts(24)]
    params = [replace(PARAMS[i % len(PARAMS)], **changes) for i in range(len(prompts))]
    asked = [Request(prompt=p, params=each) for p, each in zip(prompts, params, strict=True)]
    found = engine.generate(asked)
    assert not engine.busy and engine.flight is None
    return [answer.tokens for output in found for answer in output.answers]


def watched(engine: Engine) -> list[bool]:
    """Fills as the engine steps: whether the next step was launched before tokens were read."""
    assert engine.ahead is not None
    follow, found = engine.ahead.follow, []

    def seen(flight: Flight) -> Flight | None:
        following = follow(flight)
        found.append(following is not None)
        return following

    engine.ahead.follow = seen  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("ends", [(), (1, 17, 30, 44, 52, 63, 71, 80)])
def test_answers_are_the_same_with_numbers_that_stay(ends: tuple[int, ...]) -> None:
    plain, kept = opened(kept=False), opened(kept=True)
    ahead = watched(kept)
    assert answered(kept, stop_token_ids=ends) == answered(plain, stop_token_ids=ends)
    assert plain.scheduler.preemptions > 0  # answers change their rows meanwhile
    assert sum(ahead) > 10 and not all(ahead)
    assert kept.pool.free == plain.pool.free == kept.pool.count


def test_log_probabilities_and_drafts_are_not_run_ahead_of() -> None:
    plain, kept = opened(kept=False), opened(kept=True)
    ahead = watched(kept)
    assert answered(kept, logprobs=2) == answered(plain, logprobs=2)
    assert not any(ahead)
    drafting = {"speculation": Speculation(kind="lookup", depth=2)}
    plain, kept = opened(kept=False, **drafting), opened(kept=True, **drafting)
    assert kept.ahead is None
    assert answered(kept) == answered(plain)


def test_requests_come_and_go_while_a_step_is_not_read() -> None:
    plain, kept = opened(kept=False, cache_bytes=None), opened(kept=True, cache_bytes=None)
    prompts = random_prompts(8, seed=3)
    asked = [
        Request(prompt=prompt, params=replace(PARAMS[n % 4], max_tokens=20))
        for n, prompt in enumerate(prompts)
    ]
    wanted = [output.answers[0].tokens for output in plain.generate(asked)]
    works = [kept.add(request) for request in asked[:4]]
    for step in range(60):
        kept.step()
        if step == 5:
            assert kept.flight is not None
            kept.cancel(asked[1].id)
            works += [kept.add(request) for request in asked[4:]]
        if step == 9:
            kept.cancel(asked[5].id)
    assert not kept.busy
    for number, work in enumerate(works):
        if number not in (1, 5):
            assert work.output().answers[0].tokens == wanted[number]


def test_a_step_that_breaks_fails_its_answers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(kept=True)
    first = engine.add(Request(prompt=[1, 2, 3], params=PARAMS[0]))
    engine.step()
    assert engine.flight is not None
    with monkeypatch.context() as patched:
        patched.setattr(engine.runner, "step", None)
        (delta,) = engine.step()
    assert delta.finish == "error" and first.done and not engine.busy
    assert len(engine.generate([Request(prompt=[1, 2, 3], params=PARAMS[0])])) == 1


def answer(params: SamplingParams, row: int) -> SequenceState:
    request = Request(prompt=[3, 5, 5, 9], params=params)
    return SequenceState(request, 0, 11, 1000, [3, 5, 5, 9, 7, 7, 3], row=row)


def test_logits_are_shaped_as_one_by_one() -> None:
    state = SamplingState(8, VOCABULARY, CPU)
    answers = [answer(params, row) for row, params in enumerate(PARAMS)]
    for step in range(3):
        torch.manual_seed(step)
        logits = torch.randn(len(answers), VOCABULARY) * 4
        wanted = shape_logits(logits, answers)
        torch.testing.assert_close(shape_logits(logits, answers, state), wanted)
        for each in answers:
            each.tokens += [step, 7]
        answers = answers[1:]
    fresh = [answer(PARAMS[3], 0)]  # in a row that another answer had
    torch.testing.assert_close(
        shape_logits(logits[:1], fresh, state), shape_logits(logits[:1], fresh)
    )


def test_an_answer_whose_logits_are_no_numbers_fails_alone() -> None:
    answers = [answer(PARAMS[row], row) for row in range(2)]
    logits = torch.randn(2, VOCABULARY)
    logits[1] = torch.nan
    first, _ = decide(StepResult(logits, logits), answers, SamplingState(8, VOCABULARY, CPU))
    assert first == [int(logits[0].argmax())]
    assert answers[0].error is None
    with pytest.raises(ArithmeticError):
        raise answers[1].error or AssertionError
