"""Prompts at the end of the context, more than the cache holds, one text by whatever way.

The texts are those of transformers' greedy generate.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from llamaseek.engine.drafts import drafters
from llamaseek.engine.options import Speculation
from tests.engine.reference import FAMILIES, greedy_reference, random_prompts, saved_model
from tests.serve.running import TOKENIZER, Running, make_service, running
from tests.serve.test_malformed import CHAT, COMPLETIONS, HELLO, check

EMBEDDINGS = "/v1/embeddings"
PROMPTS = random_prompts(8, seed=7)
NEW = 16
CONTEXT = 256
SMALL = {"cache_bytes": 25_000}  # 80 tokens of our tiny Llama


def test_prompts_at_the_end_of_the_context() -> None:
    with running(make_service()) as run:
        for given, new in ((CONTEXT - 1, 1), (CONTEXT - 2, 2), (CONTEXT - 20, 20)):
            body = {"prompt": [5] * given, "max_tokens": 1000, "ignore_eos": True}
            answer = run.post(COMPLETIONS, **body).json()
            assert answer["choices"][0]["finish_reason"] == "length"
            assert answer["usage"]["completion_tokens"] == new
        assert run.post(COMPLETIONS, prompt=[5] * CONTEXT, max_tokens=0, echo=True).is_success
        assert run.post(EMBEDDINGS, input=[5] * CONTEXT).is_success
        for size in (CONTEXT, CONTEXT + 1, 20 * CONTEXT):
            for stream in (False, True):
                error = check(run.post(COMPLETIONS, prompt=[5] * size, stream=stream), 400)
                assert error["param"] == "prompt" and "255" in error["message"]
        words = [{"role": "user", "content": "The red fox. " * CONTEXT}]
        check(run.post(CHAT, messages=words), 400, "messages")
        check(run.post(EMBEDDINGS, input=[5] * (CONTEXT + 1)), 400, "input")
        assert run.idle()


def test_what_the_whole_cache_cannot_hold_is_refused() -> None:
    with running(make_service(**SMALL)) as run:
        for body in ({"prompt": [5] * 200}, {"prompt": [5] * 50, "max_tokens": 50}):
            for stream in (False, True):
                error = check(run.post(COMPLETIONS, **body, stream=stream), 400, "prompt")
                assert "cache" in error["message"]
        check(run.post(COMPLETIONS, prompt=[[5], [5] * 200]), 400, "prompt")
        words = [{"role": "user", "content": "The red fox. " * 30}]
        check(run.post(CHAT, messages=words), 400, "messages")
        check(run.post(EMBEDDINGS, input=[5] * 200), 400, "input")
        answer = run.post(CHAT, messages=HELLO, ignore_eos=True).json()  # as far as the cache goes
        assert answer["usage"]["total_tokens"] == run.service.engine.capacity
        assert run.idle()


class Case:
    """A family's model, and the texts that transformers says."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        self.model, theirs = saved_model(family, folder, vocab_size=TOKENIZER.vocab_size)
        answers = greedy_reference(theirs, PROMPTS, NEW)
        self.wanted = [TOKENIZER.decode(answer) for answer in answers]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("model"))


def texts(run: Running, at_once: int) -> list[str]:
    """What the server says to all prompts, so many of them asked at once."""

    def ask(number: int) -> str:
        prompt, stream = PROMPTS[number % len(PROMPTS)], number % 2 == 1
        body = {"prompt": prompt, "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
        answer = run.post(COMPLETIONS, **body, stream=stream)
        return told(answer) if stream else str(answer.json()["choices"][0]["text"])

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, range(2 * len(PROMPTS))))


def told(answer: httpx.Response) -> str:
    """The text of a stream."""
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(json.loads(each)["choices"][0]["text"] for each in events)


WAYS: dict[str, dict[str, Any]] = {
    "alone": {"max_num_seqs": 1, "enable_prefix_caching": False},
    "batched": {"enable_prefix_caching": False},
    "prefix-shared": {"max_num_seqs": 4},
    "chunked": {"max_num_batched_tokens": 9, "max_num_seqs": 8},
    "preempted": {"cache_bytes": 60_000},
    "looked up": {"speculation": Speculation(kind="lookup", depth=3)},
    "mtp": {"speculation": Speculation(kind="mtp", depth=1)},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_text_is_transformers_whatever_the_way(
    case: Case, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "mtp" and case.family == "llama3":
        pytest.skip("Llama 3 has no multi-token module")
    # A random model's answers hardly repeat: any match is drafted from.
    monkeypatch.setattr(drafters, "ALIKE", dict.fromkeys(drafters.ALIKE, 0.9))
    with running(make_service(case.model, **WAYS[way])) as run:
        found = texts(run, 1 if way == "alone" else 32)
        engine = run.service.engine
        for _ in range(8):  # on a busy machine requests may come one after the other
            if way == "preempted" and not engine.scheduler.preemptions:
                found = texts(run, 32)
        assert (engine.scheduler.preemptions > 0) == (way == "preempted")
        assert (engine.statistics.drafted > 0) == (way in ("looked up", "mtp"))
        assert run.idle()
    assert found == [*case.wanted, *case.wanted]


def test_a_seed_is_the_same_text_whatever_runs_beside_it(case: Case) -> None:
    body = {"prompt": PROMPTS[3], "max_tokens": NEW, "temperature": 1.0, "ignore_eos": True}
    with running(make_service(case.model)) as run, ThreadPoolExecutor(12) as pool:

        def ask(seed: int | None) -> str:
            given = {} if seed is None else {"seed": seed}
            return str(run.post(COMPLETIONS, **body, **given).json()["choices"][0]["text"])

        alone = [ask(seed) for seed in range(3)]
        assert list(pool.map(ask, [0, 1, 2] * 4)) == alone * 4
        assert len({*alone, ask(None), ask(None)}) == 5


def test_a_cache_that_is_too_small_for_all_answers_all() -> None:
    """More than the cache holds at once: chats preempt one another and lose nothing."""
    bodies = [
        {"messages": [{"role": "user", "content": f"Say {n}"}], "max_tokens": 40, "seed": n,
         "temperature": 1.0, "ignore_eos": True}
        for n in range(8)
    ]  # fmt: skip
    found = []
    for options in ({"max_num_seqs": 1}, {**SMALL, "max_num_seqs": 8}):
        with running(make_service(**options)) as run, ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda body: run.post(CHAT, **body).json(), bodies)
            found.append([answer["choices"][0]["message"]["content"] for answer in answers])
            assert (run.service.engine.scheduler.preemptions > 0) == (len(found) == 2)
            assert run.idle()
    assert found[0] == found[1]
