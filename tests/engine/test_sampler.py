"""Penalties, distributions, draws and log-probabilities against transformers and formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llamaseek.engine.forward.step_layout import StepResult
from llamaseek.engine.logprobs import log_probabilities
from llamaseek.engine.request import Request, SamplingParams, SequenceState
from llamaseek.engine.sampling.sampler import (
    decide,
    derive_seed,
    distributions,
    draw,
    shape_logits,
    uniforms,
)
from llamaseek.errors import UserError
from tests.engine.reference import chi_square_p

VOCABULARY = 500


def logits(rows: int, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def answer(
    params: SamplingParams, said: list[int], prompt: list[int], seed: int = 0
) -> SequenceState:
    request = Request(prompt=prompt, params=params)
    return SequenceState(request, 0, seed, 10_000, [*prompt, *said])


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty_is_transformers(penalty: float) -> None:
    scores = logits(1)
    prompt, said = [3, 5, 5, 9], [9, 100, 3]
    params = SamplingParams(repetition_penalty=penalty)
    ours = shape_logits(scores, [answer(params, said, prompt)])
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.tensor([prompt + said]), scores.clone()
    )
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, scores)


def test_presence_and_frequency_penalties_are_openais() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, over what was said."""
    scores, prompt, said = logits(1), [3, 5, 5], [7, 7, 3, 7]
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=-1.5)
    ours = shape_logits(scores, [answer(params, said, prompt)])[0]
    for token in range(VOCABULARY):
        count = said.count(token)
        wanted = float(scores[0, token]) + count * 1.5 - (count > 0) * 0.5
        assert float(ours[token]) == pytest.approx(wanted, abs=1e-5)


def test_logit_bias_is_added() -> None:
    scores = logits(2)
    params = SamplingParams(logit_bias={4: 100, 7: -3.5})
    ours = shape_logits(scores, [answer(params, [], [1]), answer(SamplingParams(), [], [1])])
    change = torch.zeros_like(scores)
    change[0, 4], change[0, 7] = 100, -3.5
    torch.testing.assert_close(ours, scores + change)
    assert decide(StepResult(scores, scores), [answer(params, [], [1])] * 2) == [[4], [4]]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 40, 400])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
def test_distributions_are_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    scores = logits(20, seed=top_k)
    plain = SamplingParams(temperature=1)  # a row that keeps all must not change its neighbours
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ours = distributions(torch.cat((scores, scores)), [params] * 20 + [plain] * 20)
    theirs = TemperatureLogitsWarper(temperature)(None, scores)
    theirs = TopKLogitsWarper(top_k)(None, theirs) if top_k else theirs
    theirs = TopPLogitsWarper(top_p)(None, theirs) if top_p < 1 else theirs
    theirs = MinPLogitsWarper(min_p)(None, theirs) if min_p else theirs
    torch.testing.assert_close(ours[:20], theirs.softmax(-1), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(ours[20:], scores.softmax(-1))
    assert torch.equal(ours[:20] > 0, theirs.softmax(-1) > 0)


def test_extreme_temperatures_stay_numbers() -> None:
    scores = logits(2)
    scores[0, 3] = -torch.inf
    for temperature in (1e-5, 1e308):
        found = distributions(scores, [SamplingParams(temperature=temperature)] * 2)
        assert bool(found.isfinite().all()) and float(found[0, 3]) == 0
    assert SamplingParams(temperature=1e-9).greedy


def test_20000_draws_follow_the_distribution() -> None:
    params = SamplingParams(temperature=1.3, top_k=200, top_p=0.95)
    chances = distributions(logits(1), [params])
    numbers = uniforms(list(range(20_000)), [7] * 20_000, 0)
    counts = draw(chances.expand(20_000, -1), numbers).bincount(minlength=VOCABULARY)
    assert chi_square_p(counts, chances[0]) > 1e-3
    other = distributions(logits(1), [SamplingParams(temperature=1.4, top_k=200, top_p=0.95)])
    assert chi_square_p(counts, torch.where(chances[0] > 0, other[0], 0)) < 1e-6


def test_a_draw_never_takes_what_has_no_chance() -> None:
    chances = torch.zeros(4, 6)
    chances[:, 2] = 0.25
    chances[1:, 4] = 0.75
    edges = np.array([0.0, 0.0, 0.25, 1 - 2**-24], np.float32)
    assert draw(chances, edges).tolist() == [2, 2, 4, 4]


def test_random_numbers_are_even_and_apart() -> None:
    seeds, places = np.meshgrid(np.arange(200), np.arange(200))
    tables = [uniforms(seeds.ravel().tolist(), places.ravel().tolist(), p) for p in range(3)]
    for table in tables:
        counts = torch.from_numpy(np.bincount((table * 100).astype(int), minlength=100))
        assert chi_square_p(counts, torch.full((100,), 0.01)) > 1e-3
    grid = tables[0].reshape(200, 200)
    pairs = [(tables[0], tables[1]), (tables[1], tables[2]), (grid[1:].ravel(), grid[:-1].ravel())]
    for one, other in pairs:
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    assert len({derive_seed(5, index) for index in range(1000)}) == 1000
    assert derive_seed(2**64 - 1, 0) == 2**64 - 1


def test_log_probabilities_share_one_float() -> None:
    scores = logits(50).to(torch.bfloat16)
    best = scores.float().argmax(-1).tolist()
    found = log_probabilities(scores, best, [3] * 50)
    for row, entry in zip(scores.float().log_softmax(-1), found, strict=True):
        assert entry.logprob == entry.top[0][1] == max(value for _, value in entry.top)
        assert entry.logprob == float(row[entry.token]) and len(entry.top) == 3
    other = log_probabilities(scores, [1] * 50, [0, *[2] * 49])
    assert other[0].top == [] and other[1].logprob <= other[1].top[0][1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -1),
        ("temperature", float("inf")),
        ("temperature", "0.7"),
        ("top_p", 0),
        ("top_p", 1.0001),
        ("top_p", float("nan")),
        ("top_k", -2),
        ("top_k", 2**31 + 1),
        ("top_k", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.0001),
        ("frequency_penalty", -2.0001),
        ("max_tokens", -1),
        ("max_tokens", True),
        ("seed", -1),
        ("seed", 2**64),
        ("n", 0),
        ("n", 10**9),
        ("logprobs", -1),
        ("logprobs", True),
        ("logprobs", "1"),
        ("stop", [""]),
        ("stop", "text"),
        ("logit_bias", {3: 100.5}),
        ("logit_bias", {-1: 0}),
    ],
)
def test_what_is_not_allowed_is_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
