"""Requests end to end: ends of answers, several answers, scores, cancelling, errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from llamaseek.engine import logprobs
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions, Speculation
from llamaseek.engine.request import Delta, Request, SamplingParams
from llamaseek.engine.scheduler import QueueFull
from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from tests.engine.reference import FAMILIES
from tests.models.shapes import tiny_model
from tests.train.tiny import tiny_tokenizer

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]
TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return tiny_model("llama3", vocab_size=TOKENIZER.vocab_size)


def engine(model: CausalLM, tokenizer: Any = None, **options: Any) -> Engine:
    return Engine(model, tokenizer, EngineOptions(**options))


def request(prompt: list[int] = PROMPT, **params: Any) -> Request:
    return Request(prompt=prompt, params=SamplingParams(**params))


def test_ends_by_length_and_by_stop_token(model: CausalLM) -> None:
    (whole,) = engine(model).generate([request(max_tokens=9)])
    (said,) = whole.answers
    assert len(said.tokens) == 9 and said.finish == "length"
    stop = said.tokens[4]
    (cut,) = engine(model).generate([request(max_tokens=9, stop_token_ids=[stop])])
    assert cut.answers[0].tokens == said.tokens[: said.tokens.index(stop)]
    assert cut.answers[0].finish == "stop"


def test_speculation_ends_where_plain_decoding_ends(model: CausalLM) -> None:
    drafts = Speculation(kind="model", depth=5, draft_model=model)
    (whole,) = engine(model).generate([request(max_tokens=20)])
    tokens = whole.answers[0].tokens
    word = TOKENIZER.decode(tokens[8:10])
    for params in (
        {"max_tokens": 7},
        {"max_tokens": 20, "stop_token_ids": [tokens[9]]},
        {"max_tokens": 20, "stop": [word], "logprobs": 2},
    ):
        plain, fast = (
            engine(model, TOKENIZER, speculation=s).generate([request(**params)])[0]
            for s in (Speculation(), drafts)
        )
        assert plain.answers[0].tokens == fast.answers[0].tokens
        assert plain.answers[0].text == fast.answers[0].text
        assert len(plain.answers[0].logprobs or []) == len(fast.answers[0].logprobs or [])
        assert plain.answers[0].finish == fast.answers[0].finish


def test_the_context_is_the_longest_answer(model: CausalLM) -> None:
    context = model.config.max_position_embeddings
    for params in ({"max_tokens": None}, {"max_tokens": 10_000}):
        (out,) = engine(model).generate([request([3] * 200, **params)])
        assert len(out.answers[0].tokens) == context - 200
        assert out.answers[0].finish == "length"


def test_stop_strings_cut_the_text(model: CausalLM) -> None:
    (whole,) = engine(model, TOKENIZER).generate([request(max_tokens=30)])
    text = whole.answers[0].text
    assert text == TOKENIZER.decode(whole.answers[0].tokens)
    stop = text[10:14]
    (cut,) = engine(model, TOKENIZER).generate([request(max_tokens=30, stop=[stop])])
    assert cut.answers[0].text == text[: text.index(stop)]
    assert cut.answers[0].finish == "stop"


def test_streamed_pieces_are_the_whole(model: CausalLM) -> None:
    (whole,) = engine(model, TOKENIZER).generate([request(max_tokens=30)])
    deltas = list(engine(model, TOKENIZER).stream(request(max_tokens=30)))
    assert "".join(delta.text for delta in deltas) == whole.answers[0].text
    assert [t for delta in deltas for t in delta.tokens] == whole.answers[0].tokens
    assert [delta.finish for delta in deltas[-2:]] == [None, "length"]


def test_a_step_that_breaks_late_still_tells_what_it_has_said(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = engine(model)
    ends, goes_on = it.add(request(max_tokens=1)), it.add(request([3] * 9, max_tokens=5))
    monkeypatch.setattr(it.drafter, "propose", lambda *step: 1 / 0)
    told = [(delta.request, len(delta.tokens), delta.finish) for delta in it.step()]
    first, second = ends.request.id, goes_on.request.id
    assert told == [(first, 1, "length"), (second, 1, None), (second, 0, "error")]
    assert ends.done and goes_on.done and it.pool.used == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_is_the_same_answer_whatever_runs_beside_it(family: str) -> None:
    model = tiny_model(family)
    wanted = request(max_tokens=20, temperature=1.5, seed=7)
    others = [request([n + 1] * (n + 1), max_tokens=20, temperature=1.0) for n in range(30)]
    (alone,) = engine(model).generate([wanted])
    for options in ({}, {"cache_bytes": 80_000}, {"max_num_batched_tokens": 5, "max_num_seqs": 4}):
        crowd = engine(model, **options)
        found = crowd.generate([*others[:15], replace(wanted, id=-1), *others[15:]])
        assert found[15].answers == alone.answers
        others = [replace(other, id=other.id + 1000) for other in others]
    (other,) = engine(model).generate([request(max_tokens=20, temperature=1.5, seed=8)])
    assert other.answers != alone.answers


def test_several_answers_share_the_prompt(model: CausalLM) -> None:
    it = engine(model)
    params = {"max_tokens": 6, "temperature": 2.0, "seed": 3}
    (out,) = it.generate([request(n=5, **params)])
    assert [a.index for a in out.answers] == list(range(5))
    assert len({tuple(a.tokens) for a in out.answers}) == 5
    (one,) = engine(model).generate([request(**params)])
    assert out.answers[0].tokens == one.answers[0].tokens
    assert it.statistics.computed == len(PROMPT) + 4 * (len(PROMPT) - 16) + 5 * 5
    assert it.pool.used == 0


@torch.no_grad()
def full_scores(model: CausalLM, ids: list[int]) -> torch.Tensor:
    hidden = model(torch.tensor([ids]), torch.arange(len(ids))[None])
    return model.logits(hidden)[0].log_softmax(-1)


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 5, "max_num_seqs": 2}])
def test_log_probabilities_of_prompt_and_answer(
    model: CausalLM, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "PROMPT_LOGITS", 3 * model.config.vocab_size)
    it = engine(model, **options)
    it.generate([request()])  # now the prompt is in the cache
    (out,) = it.generate([request(max_tokens=4, logprobs=2, prompt_logprobs=1)])
    tokens = out.answers[0].tokens
    wanted = full_scores(model, PROMPT + tokens)
    scores = [*(out.prompt_logprobs or []), *(out.answers[0].logprobs or [])]
    assert scores[0] is None and len(scores) == len(PROMPT) + 4
    for place, entry in enumerate(scores[1:], start=1):
        assert entry is not None and entry.token == (PROMPT + tokens)[place]
        row = wanted[place - 1]
        assert entry.logprob == pytest.approx(float(row[entry.token]), abs=1e-4)
        assert len(entry.top) == (1 if place < len(PROMPT) else 2)
        best = int(row.argmax())
        assert entry.top[0][0] == best
        assert (entry.logprob == entry.top[0][1]) == (entry.token == best)
    assert out.cached == 0


@pytest.mark.parametrize("budget", [5, 512])
def test_a_prompt_is_scored_from_a_position_on(model: CausalLM, budget: int) -> None:
    prompt = [*PROMPT, *PROMPT[::-1], *PROMPT]
    wanted = full_scores(model, prompt)
    it = engine(model, max_num_batched_tokens=budget)
    it.generate([request(prompt)])
    for start in (0, 1, 16, 17, 33, 40, len(prompt) - 1, len(prompt), len(prompt) + 9):
        asked = {"max_tokens": 0, "prompt_logprobs": 1, "logprob_start_len": start}
        (out,) = it.generate([request(prompt, **asked)])
        assert out.cached == min(max(start - 1, 0), len(prompt) - 1) // 16 * 16
        assert out.prompt_logprobs is not None and len(out.prompt_logprobs) == len(prompt)
        for place, entry in enumerate(out.prompt_logprobs):
            assert (entry is None) == (place < max(start, 1))
            if entry is not None:
                assert entry.token == prompt[place]
                value = float(wanted[place - 1, entry.token])
                assert entry.logprob == pytest.approx(value, abs=1e-4)


def test_named_tokens_are_scored_after_the_likeliest(model: CausalLM) -> None:
    params = {"max_tokens": 2, "logprobs": 1, "logprob_token_ids": [3, 9, 3]}
    out, other = engine(model).generate([request(**params), request([7, 8], max_tokens=1)])
    tokens, scores = out.answers[0].tokens, out.answers[0].logprobs
    wanted = full_scores(model, PROMPT + tokens)
    assert scores is not None and other.answers[0].logprobs is None
    for place, entry in enumerate(scores, start=len(PROMPT) - 1):
        assert [token for token, _ in entry.top] == [entry.token, 3, 9, 3]
        for token, value in entry.top:
            assert value == pytest.approx(float(wanted[place, token]), abs=1e-4)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"logprob_start_len": 3}, "logprob_start_len"),
        ({"logprob_start_len": -1, "prompt_logprobs": 0}, "logprob_start_len"),
        ({"logprob_token_ids": [3]}, "logprob_token_ids"),
        ({"logprob_token_ids": [10**6], "logprobs": 0}, "logprob_token_ids"),
    ],
)
def test_scores_that_cannot_be_had_are_refused_by_name(
    model: CausalLM, params: dict[str, Any], field: str
) -> None:
    with pytest.raises(UserError, match=field):
        engine(model).generate([request(**params)])


def test_what_a_running_answer_computes_is_waited_for_and_shared(model: CausalLM) -> None:
    it = engine(model, max_num_batched_tokens=512)
    prompts = [[*range(1, 41), last] for last in (50, 51, 52)]
    alone = [engine(model).generate([request(p, max_tokens=4)])[0] for p in prompts]
    found = it.generate([request(p, max_tokens=4) for p in prompts])
    assert [out.cached for out in found] == [0, 32, 32]
    assert it.statistics.computed == 41 + 2 * 9 + 3 * 3
    for one, other in zip(alone, found, strict=True):
        assert one.answers[0].tokens == other.answers[0].tokens


def test_a_prompt_may_be_scored_without_an_answer(model: CausalLM) -> None:
    ends = range(model.config.vocab_size)
    (out,) = engine(model).generate([request(max_tokens=0, prompt_logprobs=0, stop_token_ids=ends)])
    assert out.answers[0].tokens == [] and out.answers[0].finish == "length"
    assert out.prompt_logprobs is not None and len(out.prompt_logprobs) == len(PROMPT)


def test_scores_survive_preemption(model: CausalLM) -> None:
    prompts = [[n + 1] * 40 for n in range(6)]
    asked = {"max_tokens": 20, "prompt_logprobs": 1, "logprobs": 1}
    wanted = [engine(model).generate([request(p, **asked)])[0] for p in prompts]
    small = engine(model, cache_bytes=30_000, max_num_batched_tokens=16, max_num_seqs=6)
    found = small.generate([request(p, **asked) for p in prompts])
    assert small.scheduler.preemptions > 0
    for one, other in zip(wanted, found, strict=True):
        assert one.answers[0].tokens == other.answers[0].tokens
        assert one.prompt_logprobs is not None and other.prompt_logprobs is not None
        for a, b in zip(one.prompt_logprobs[1:], other.prompt_logprobs[1:], strict=True):
            assert a is not None and b is not None
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


@pytest.mark.parametrize("after", [0, 1, 2, 6])
def test_cancelling_frees_at_once_and_leaves_neighbours_alone(model: CausalLM, after: int) -> None:
    (wanted,) = engine(model).generate([request(max_tokens=12)])
    it = engine(model, max_num_batched_tokens=8, max_num_seqs=4)
    work = it.add(request(max_tokens=12))
    gone = [it.add(request([9] * 30, max_tokens=50, n=n)) for n in (1, 3)]
    for _ in range(after):
        it.step()
    for one in gone:
        assert it.cancel(one.request.id)
        assert not it.cancel(one.request.id)
    blocks = -(-work.answers[0].computed // 16)
    assert blocks <= it.pool.used <= blocks + 1
    while it.busy:
        it.step()
    assert work.output().answers == wanted.answers and it.pool.used == 0


def test_a_closed_stream_is_cancelled(model: CausalLM) -> None:
    it = engine(model)
    stream: Iterator[Delta] = it.stream(request(max_tokens=50))
    next(stream)
    assert it.pool.used > 0
    stream.close()  # type: ignore[attr-defined]
    assert it.pool.used == 0 and not it.busy


def test_what_is_refused(model: CausalLM) -> None:
    small = engine(model, TOKENIZER, cache_bytes=40_000, most_waiting=1)
    assert small.capacity < 200
    for bad, message in [
        (request([]), "prompt: is empty"),
        (request([1] * 256), "256 tokens; the model's context leaves 255"),
        (request([1, 999]), "999"),
        (request([1, -1]), "-1"),
        (request(logit_bias={999: 1}), "logit_bias.*999"),
        (request([1] * 150, max_tokens=100), f"250 tokens of cache.*holds {small.capacity}"),
    ]:
        with pytest.raises(UserError, match=message):
            small.add(bad)
    with pytest.raises(UserError, match="tokenizer"):
        engine(model).add(request(stop=["x"]))
    with pytest.raises(UserError, match="cache_bytes"):
        engine(model, cache_bytes=100)
    first = small.add(request(max_tokens=5))
    with pytest.raises(QueueFull):
        small.add(request(max_tokens=5))
    with pytest.raises(UserError, match="in use"):
        small.step()
        small.add(first.request)
    assert len(small.generate([request(max_tokens=n) for n in (1, 2, 3)])) == 3


def test_an_answers_own_error_ends_only_that_answer(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = engine(model, TOKENIZER)
    (wanted,) = engine(model, TOKENIZER).generate([request(max_tokens=8)])
    works = [it.add(request(max_tokens=8)) for _ in range(3)]
    it.step()

    def broken(tokens: object) -> str:
        raise ValueError("no text today")

    monkeypatch.setattr(works[1].answers[0].text, "push", broken)
    deltas = [delta for _ in range(8) for delta in it.step()]
    errors = [delta for delta in deltas if delta.error]
    assert [(e.request, e.finish) for e in errors] == [(works[1].request.id, "error")]
    assert errors[0].error == "ValueError: no text today"
    assert works[0].output().answers == works[2].output().answers == wanted.answers
    with pytest.raises(RuntimeError, match="failed"):
        works[1].output()
    assert it.pool.used == 0 and it.statistics.failed == 1


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "logprobs": 1}])
def test_logits_that_are_no_numbers_end_their_answer_alone(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any]
) -> None:
    it = engine(model, TOKENIZER)
    (wanted,) = engine(model, TOKENIZER).generate([request(max_tokens=5)])
    bad, good = it.add(request(max_tokens=5, **params)), it.add(request(max_tokens=5))
    logits = it.runner.logits
    with monkeypatch.context() as patch:
        none = torch.tensor([[torch.nan], [0.0]])
        patch.setattr(it.runner, "logits", lambda hidden: logits(hidden) + none)
        told = it.step()
    assert [delta.error for delta in told][0].startswith("ArithmeticError")
    while it.busy:
        it.step()
    assert bad.done and good.output().answers == wanted.answers and it.pool.used == 0


def test_a_failing_model_fails_the_step_and_the_engine_goes_on(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = engine(model)
    (wanted,) = engine(model).generate([request(max_tokens=5)])
    work = it.add(request(max_tokens=5, n=2))
    with monkeypatch.context() as patch:
        patch.setattr(it.runner, "run", lambda *step: 1 / 0)
        (delta,) = it.step()
        assert delta.finish == "error" and "ZeroDivisionError" in (delta.error or "")
    while it.busy:
        it.step()
    assert work.answers[1].generated == wanted.answers[0].tokens and work.done
    assert it.pool.used == 0
    assert it.generate([request(max_tokens=5)])[0].answers == wanted.answers


def test_the_cache_is_no_larger_than_it_may_be(model: CausalLM) -> None:
    it = engine(model, cache_bytes=1_000_000)
    kept = sum(t.numel() * t.element_size() for s in it.runner.cache.stores for t in s.kept)
    assert 950_000 < kept <= 1_000_000
    few = engine(model, max_num_seqs=2)
    assert few.capacity == 2 * model.config.max_position_embeddings
