"""Greedy answers are transformers' tokens, however the engine comes to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaseek.engine.options import Speculation
from llamaseek.kernels.build import builder
from tests.engine.reference import (
    FAMILIES,
    answers,
    greedy_reference,
    near_ties,
    random_prompts,
    saved_model,
)
from tests.models.shapes import tiny_model

PROMPTS = random_prompts(200)
NEW = 12


class Case:
    """A family's model, transformers', and what transformers answers."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        self.ours, self.theirs = saved_model(family, folder)
        self.wanted = greedy_reference(self.theirs, PROMPTS, NEW)

    def check(self, name: str, got: list[list[int]], count: int = len(PROMPTS)) -> None:
        """The same tokens but for near-ties, which are counted and shown."""
        ties = near_ties(self.theirs, PROMPTS[:count], self.wanted[:count], got)
        print(f"{self.family} {name}: {count} prompts, {ties} near-ties")
        assert ties <= count // 50


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("model"))


WAYS: dict[str, dict[str, Any]] = {
    "batched": {"max_num_seqs": 128, "max_num_batched_tokens": 4096},
    "chunked": {"max_num_seqs": 16, "max_num_batched_tokens": 17, "enable_prefix_caching": False},
    "unshared": {"enable_prefix_caching": False},
    "small blocks": {"block_size": 3},
    "preempted": {"cache_bytes": 100_000, "max_num_seqs": 32},
}


@pytest.mark.parametrize("way", WAYS)
def test_same_tokens_as_transformers(case: Case, way: str) -> None:
    got, engine = answers(case.ours, PROMPTS, NEW, **WAYS[way])
    case.check(way, got)
    assert engine.pool.used == 0
    assert (engine.scheduler.preemptions > 0) == (way == "preempted")
    assert engine.statistics.output == len(PROMPTS) * NEW


def test_without_kernels(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain model in PyTorch's operators, as where no kernel can be built."""
    monkeypatch.setattr(builder(), "ready", False)
    monkeypatch.setattr(builder(), "reason", "not in this test")
    got, _ = answers(case.ours, PROMPTS, NEW)
    case.check("without kernels", got)


def test_alone(case: Case) -> None:
    count = 60
    got, engine = answers(
        case.ours, PROMPTS[:count], NEW, max_num_seqs=1, enable_prefix_caching=False
    )
    case.check("alone", got, count)
    assert engine.statistics.steps == count * NEW


def test_prefixes_are_shared_and_change_nothing(case: Case) -> None:
    got, engine = answers(case.ours, PROMPTS, NEW, max_num_seqs=8)
    case.check("prefix-shared", got)
    assert engine.statistics.cached > 1000
    assert engine.statistics.computed < sum(map(len, PROMPTS)) + len(PROMPTS) * NEW - 1000


@pytest.mark.parametrize(("kind", "depth"), [("lookup", 4), ("mtp", 1), ("mtp", 3)])
def test_speculated(case: Case, kind: str, depth: int) -> None:
    if kind == "mtp" and case.family == "llama3":
        pytest.skip("Llama 3 has no multi-token module")
    drafts = Speculation(kind=kind, depth=depth)
    got, engine = answers(case.ours, PROMPTS, NEW, speculation=drafts, cache_bytes=400_000)
    case.check(f"{kind} {depth}", got)
    assert engine.statistics.drafted > 0 and engine.pool.used == 0


@pytest.mark.parametrize("same", [True, False], ids=["same model", "other model"])
def test_speculated_by_a_draft_model(case: Case, same: bool) -> None:
    draft = case.ours if same else tiny_model("llama3", seed=5)
    drafts = Speculation(kind="model", depth=3, draft_model=draft)
    got, engine = answers(case.ours, PROMPTS, NEW, speculation=drafts)
    case.check(f"draft model, {'the same' if same else 'another'}", got)
    assert engine.pool.used == 0
    if same:  # 12 tokens: one from the prompt, then four, four, three from two drafts
        assert engine.statistics.acceptance > 0.99
        assert engine.statistics.tokens_per_forward == pytest.approx(NEW / 4, abs=0.02)
