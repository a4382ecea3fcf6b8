"""What surrounds CUDA graphs, without them: sizes, padding, buffers that are used again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from llamaseek.engine.engine import Engine
from llamaseek.engine.forward.graphs import Forward, Graphs, bucket, compiled
from llamaseek.engine.forward.paged import PagedCache, build_cache
from llamaseek.engine.forward.runner import home
from llamaseek.engine.forward.step_layout import lay_out
from llamaseek.engine.options import EngineOptions, Speculation
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.models import CausalLM
from tests.engine.reference import FAMILIES, random_prompts
from tests.models.shapes import tiny_model

SIZE, BLOCKS, SPARE = 4, 64, 64


def test_sizes_hold_every_step_and_are_few() -> None:
    sizes = {tokens: bucket(tokens) for tokens in range(1, 257)}
    assert all(tokens <= size for tokens, size in sizes.items())
    assert {n: sizes[n] for n in (1, 2, 3, 4, 5, 8, 9, 64, 65, 96, 97, 256)} == {
        1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 8: 8, 9: 16, 64: 64, 65: 96, 96: 96, 97: 128, 256: 256,
    }  # fmt: skip
    assert len(set(sizes.values())) == 17
    assert all(bucket(size) == size for size in sizes.values())


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> CausalLM:
    return tiny_model(request.param).eval()


def cache_of(model: CausalLM) -> PagedCache:
    dtype, place = home(model)
    return build_cache(model.cache_shapes(), BLOCKS + 1, SIZE, dtype, "auto", place)


class Stepper:
    """Steps of single tokens, laid out as the runner does, with or without graphs."""

    def __init__(self, model: CausalLM, capture: Callable[[Forward], Forward] | None) -> None:
        self.model, self.cache = model, cache_of(model)
        self.graphs = None
        if capture is not None:
            self.graphs = Graphs(model, self.cache, BLOCKS, capture)

    def run(self, tables: np.ndarray, starts: list[int], tokens: list[int]) -> torch.Tensor:
        rows = len(tokens)
        padding = bucket(rows) - rows if self.graphs else 0
        used = max(starts) // SIZE + 1
        whole = np.concatenate((tables[:, :used], np.full((padding, used), SPARE)))
        counts = np.ones(rows + padding, np.int64)
        layout = lay_out(whole, np.array(starts + [0] * padding), counts, SIZE, apart=True)
        ids = torch.tensor(tokens + [0] * padding)
        if self.graphs is not None:
            return self.graphs(ids, layout)[:rows].clone()
        self.cache.begin(layout)
        found: torch.Tensor = self.model(ids[None], layout.positions[None], self.cache)[0]
        return found


@torch.no_grad()
def test_padding_changes_nothing(model: CausalLM) -> None:
    """Five sequences in a graph of eight rows; then, in its buffers, shorter ones elsewhere."""
    plain, padded = Stepper(model, None), Stepper(model, lambda forward: forward)
    order = np.random.default_rng(0).permutation(BLOCKS)
    rows = torch.randint(97, (5, 12), generator=torch.Generator().manual_seed(0)).tolist()
    long, short = order[:15].reshape(5, 3), order[15:20].reshape(5, 1)
    for tables, length in ((long, 12), (short, 3)):
        for at in range(length):
            step = tables, [at] * 5, [row[at] for row in rows]
            torch.testing.assert_close(padded.run(*step), plain.run(*step), atol=1e-5, rtol=1e-4)
    full = model(torch.tensor(rows), torch.arange(12).expand(5, 12))[:, 2]
    last = padded.run(short, [2] * 5, [row[2] for row in rows])
    torch.testing.assert_close(last, full, atol=1e-4, rtol=1e-4)
    assert padded.graphs is not None and set(padded.graphs.steps) == {8}
    for ours, theirs in zip(padded.cache.stores, plain.cache.stores, strict=True):
        for a, b in zip(ours.kept, theirs.kept, strict=True):
            end = SPARE * SIZE
            torch.testing.assert_close(a[:, :end], b[:, :end], atol=1e-5, rtol=1e-4)
            assert a[:, end:].any() and not b[:, end:].any()


@torch.no_grad()
def test_a_graph_that_cannot_be_captured_is_done_without(model: CausalLM) -> None:
    def refuses(forward: Forward) -> Forward:
        raise RuntimeError("operation not permitted when stream is capturing")

    plain, without = Stepper(model, None), Stepper(model, refuses)
    step = np.arange(3)[:, None], [0, 0, 0], [5, 6, 7]
    torch.testing.assert_close(without.run(*step), plain.run(*step))
    assert without.graphs is not None and not without.graphs.takes(3)


@torch.no_grad()
def test_a_step_compiles_as_one_graph() -> None:
    """Traced whole, with nothing left to Python, and run by PyTorch's own operators."""
    # Grouped products of other types are not traced.
    model = tiny_model("deepseek_v3").eval().to(torch.bfloat16)
    plain, whole = (Stepper(model, capture) for capture in (None, lambda forward: forward))
    assert whole.graphs is not None
    whole.graphs.faster = compiled(model, backend="aot_eager")
    for at in range(2):
        step = np.arange(3)[:, None], [at] * 3, [5, 6, 7]
        torch.testing.assert_close(whole.run(*step), plain.run(*step), atol=2e-2, rtol=2e-2)
    assert not whole.graphs.failed


def test_the_engine_answers_the_same_by_graphs(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven at once and then two, each with drafts: rows of many numbers in padded buffers."""
    params = SamplingParams(max_tokens=12)
    requests = [Request(prompt=prompt, params=params) for prompt in random_prompts(9)]
    drafts = Speculation(kind="lookup", depth=2)
    options = EngineOptions(max_num_seqs=7, block_size=SIZE, speculation=drafts)
    wanted = Engine(model, options=options).generate(requests)

    monkeypatch.setattr(PagedCache, "apart", True)
    monkeypatch.setattr("llamaseek.engine.engine.capturable", lambda model: True)
    engine = Engine(model, options=options)
    assert engine.runner.graphs is not None and engine.runner.spare == engine.pool.count
    engine.runner.graphs.capture, engine.runner.fused = lambda forward: forward, None
    assert list(engine.capture_graphs()) == [(n, 6) for n in range(1, 7)]  # 24, 16, 8, 4, 2, 1
    made = dict(engine.runner.graphs.steps)
    found = engine.generate(requests)
    assert [o.answers[0].tokens for o in found] == [o.answers[0].tokens for o in wanted]
    assert engine.runner.graphs.steps == made, "a graph was made while answering"
    sizes = set(engine.runner.graphs.steps)
    assert {2, 8} <= sizes and sizes <= {bucket(rows) for rows in range(1, 22)}
