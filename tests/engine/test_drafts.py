"""Drawn answers have the model's distribution, with drafts and without; drafts are what is said."""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random

import pytest
import torch

from llamaseek.engine.drafts.acceptance import Acceptance
from llamaseek.engine.drafts.lookup import LONGEST, Lookup, following
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions, Speculation
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.engine.sampling.sampler import distributions
from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from tests.engine.reference import chi_square_p
from tests.models.shapes import tiny_model

WORDS, LENGTH, DRAWS = 5, 4, 20_000
PROMPT = [1, 2, 3, 1, 2, 4, 0, 2, 2, 1, 3, 0, 1, 4, 3]  # what look-up finds is not always right
PARAMS = {"temperature": 1.2, "top_k": 4, "top_p": 0.97}


@torch.no_grad()
def exact(model: CausalLM) -> torch.Tensor:
    """The chance of each continuation of LENGTH tokens (WORDS ** LENGTH), from full forwards."""
    params = SamplingParams(**PARAMS)  # type: ignore[arg-type]
    chances = torch.ones(1)
    for length in range(LENGTH):
        ends = list(itertools.product(range(WORDS), repeat=length))
        ids = torch.tensor([[*PROMPT, *end] for end in ends])
        hidden = model(ids, torch.arange(ids.shape[1]).expand_as(ids))
        following = distributions(model.logits(hidden[:, -1]), [params] * len(ends))
        chances = (chances[:, None] * following).flatten()
    return chances


def counted(model: CausalLM, speculation: Speculation) -> tuple[torch.Tensor, Engine]:
    """How often each continuation was drawn, by 20,000 requests of a seed each."""
    options = EngineOptions(
        max_num_seqs=2000, max_num_batched_tokens=20_000, block_size=7, speculation=speculation
    )
    engine = Engine(model, options=options)
    outputs = engine.generate(
        Request(prompt=PROMPT, params=SamplingParams(max_tokens=LENGTH, seed=seed, **PARAMS))  # type: ignore[arg-type]
        for seed in range(DRAWS)
    )
    found = Counter(tuple(output.answers[0].tokens) for output in outputs)
    ends = itertools.product(range(WORDS), repeat=LENGTH)
    return torch.tensor([found[end] for end in ends]), engine


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return tiny_model("deepseek_v3", vocab_size=WORDS, num_nextn_predict_layers=1).eval()


@pytest.fixture(scope="module")
def chances(model: CausalLM) -> torch.Tensor:
    return exact(model)


CASES = {
    "plain": Speculation(),
    "mtp, two ahead": Speculation(kind="mtp", depth=2),
    "lookup": Speculation(kind="lookup", depth=2),
    "draft model": Speculation(
        kind="model", depth=3, draft_model=tiny_model("llama3", seed=4, vocab_size=WORDS)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_20000_draws_follow_the_exact_distribution(
    case: str, model: CausalLM, chances: torch.Tensor
) -> None:
    counts, engine = counted(model, CASES[case])
    p = chi_square_p(counts, chances)
    accepted = engine.statistics.acceptance
    print(f"{case}: p = {p:.3f}, {accepted:.1%} of {engine.statistics.drafted} drafts accepted")
    assert p > 1e-3
    assert (0.02 < accepted < 0.98) == (case != "plain")
    skewed = chances * (1 + 0.2 * torch.linspace(-1, 1, len(chances)))
    assert chi_square_p(counts, skewed / skewed.sum()) < 1e-3  # the test can fail


def look_up(tokens: list[int], most: int) -> list[int]:
    place, length = Lookup().find(tokens)
    return following(tokens, place, most) if length else []


def test_look_up_finds_the_newest_place_of_the_longest_ending() -> None:
    assert look_up([1, 2, 3, 4, 9, 1, 2, 3], 2) == [4, 9]
    assert look_up([5, 2, 3, 7, 1, 2, 3, 8, 2, 3], 3) == [8, 2, 3]
    assert look_up([1, 2, 3, 4, 2, 3, 5, 1, 2, 3], 1) == [4]  # three alike before two newer
    assert look_up([1, 2, 3], 4) == [] and look_up([1], 4) == [] and look_up([3, 3], 4) == []
    assert look_up([7, 7, 7, 7], 3) == [7, 7, 7]
    assert look_up([4, 8, 9, 8, 9], 5) == [8, 9, 8, 9, 8]  # goes on behind the end


@pytest.mark.parametrize("vocabulary", [2, 9])
def test_look_up_in_a_growing_text_is_that_in_the_whole_text(vocabulary: int) -> None:
    rng, index, tokens = Random(vocabulary), Lookup(), [0]
    for _ in range(200):
        tokens += [rng.randrange(vocabulary) for _ in range(rng.randint(1, 4))]
        ends = [
            (alike, place)
            for place in range(max(2, len(tokens) - 60), len(tokens))
            for alike in range(2, min(place, LONGEST) + 1)
            if tokens[place - alike : place] == tokens[-alike:]
        ]
        found = index.find(tokens)
        newest = max(ends, default=(0, 0))
        assert found[1] >= newest[0]  # it looks further back than 60 tokens
        assert tokens[found[0] - found[1] : found[0]] == tokens[len(tokens) - found[1] :]
        if found[0] >= len(tokens) - 30:
            assert found == newest[::-1]


def test_drafts_that_stand_grow_and_those_that_fall_pause() -> None:
    acceptance = Acceptance([0.5], cost=0.15)
    depths = []
    for stands in [True] * 20 + [False] * 40 + [True] * 20:
        depth = acceptance.depth([0] * 8)
        acceptance.record(depth, depth if stands else 0)
        depths.append(depth)
    assert 0 < depths[0] < 8 and depths[19] == 8
    assert sum(depths[40:60]) <= 7 and 0 in depths[40:60]
    assert max(depths[60:]) >= 4  # it has tried again


def test_what_follows_a_draft_that_mostly_falls_is_not_drafted() -> None:
    acceptance = Acceptance([0.8] * 4, cost=0.25)
    for _ in range(20):
        depth = acceptance.depth(range(4))
        acceptance.record(depth, min(depth, 1))  # the second one always falls
    assert depth == 1
    assert Acceptance([0.2], cost=0.25).depth([0]) == 0  # worth less than it costs


def test_what_cannot_draft_is_refused() -> None:
    llama = tiny_model("llama3", vocab_size=WORDS)
    with pytest.raises(UserError, match="multi-token"):
        Engine(llama, options=EngineOptions(speculation=Speculation(kind="mtp")))
    other = Speculation(kind="model", draft_model=tiny_model("llama3", vocab_size=WORDS + 1))
    with pytest.raises(UserError, match="6 tokens, the model 5"):
        Engine(llama, options=EngineOptions(speculation=other))
    for wrong in ({"kind": "guess"}, {"depth": 0}, {"kind": "model"}):
        with pytest.raises(UserError):
            Speculation(**wrong)  # type: ignore[arg-type]


def test_penalized_answers_are_not_drafted_and_stay_the_same(model: CausalLM) -> None:
    params = SamplingParams(max_tokens=10, frequency_penalty=1.0, repetition_penalty=1.2)
    requests = [Request(prompt=PROMPT, params=params), Request(prompt=PROMPT)]
    plain = Engine(model).generate(requests)
    drafted = Engine(model, options=EngineOptions(speculation=CASES["mtp, two ahead"])).generate(
        requests
    )
    assert [a.answers for a in plain] == [b.answers for b in drafted]
