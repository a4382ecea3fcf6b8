"""The paged cache attends as the contiguous one does, in 8 bits nearly so, and holds no more."""

from __future__ import annotations

import platform
from resource import RUSAGE_SELF, getrusage

import numpy as np
import pytest
import torch

from llamaseek.engine.engine import Engine
from llamaseek.engine.forward import paged
from llamaseek.engine.forward.paged import PagedCache, build_cache, bytes_per_token
from llamaseek.engine.forward.step_layout import lay_out, like_sizes
from llamaseek.models import CausalLM, latent
from llamaseek.runtime.device import hand_back_freed_memory
from tests.engine.reference import FAMILIES
from tests.models.shapes import tiny_model

SIZE = 4
CPU = torch.device("cpu")


def paged_cache(model: CausalLM, kind: str = "auto", blocks: int = 64) -> PagedCache:
    return build_cache(model.cache_shapes(), blocks, SIZE, torch.float32, kind, CPU)


def feed(
    model: CausalLM,
    cache: PagedCache,
    tables: np.ndarray,
    rows: list[list[int]],
    starts: list[int],
    counts: list[int],
    apart: bool = False,
    join: bool = False,
) -> list[torch.Tensor]:
    """The chunks' hidden states from one forward over all of them."""
    layout = lay_out(tables, np.array(starts), np.array(counts), SIZE, apart=apart, join=join)
    cache.begin(layout)
    flat = [t for r, s, c in zip(rows, starts, counts, strict=True) for t in r[s : s + c]]
    hidden = model(torch.tensor([flat]), layout.positions[None], cache)[0]
    return list(hidden.split(counts))


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> CausalLM:
    return tiny_model(request.param).eval()


def random_rows(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(97, (40,), generator=generator).tolist() for _ in range(count)]


@torch.no_grad()
@pytest.mark.parametrize("scattered", [True, False])
@pytest.mark.parametrize("scores", [1 << 22, 3000])
def test_ragged_chunks_and_decodes_equal_the_full_forward(
    model: CausalLM, scattered: bool, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "SCORES", scores)
    rows = random_rows(5)
    full = [model(torch.tensor([row]), torch.arange(40)[None])[0] for row in rows]
    order = np.random.default_rng(0).permutation(64) if scattered else np.arange(64)
    tables, cache = order[:50].reshape(5, 10), paged_cache(model)
    done = [0] * 5
    for counts in ([3, 17, 1, 8, 5], [1, 1, 1, 1, 1], [9, 2, 20, 1, 4], [1, 1, 1, 20, 1]):
        members = [n for n in range(5) if counts[n]]
        starts = [done[n] for n in members]
        found = feed(model, cache, tables[members], rows, starts, counts)
        for n, hidden in zip(members, found, strict=True):
            wanted = full[n][done[n] : done[n] + counts[n]]
            torch.testing.assert_close(hidden, wanted, atol=1e-4, rtol=1e-4)
            done[n] += counts[n]
    for n in range(5):  # alone, whether its blocks are a run or not
        (hidden,) = feed(model, cache, tables[[n]], [rows[n]], [done[n]], [2])
        torch.testing.assert_close(hidden, full[n][done[n] : done[n] + 2], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["auto", "int8"])
def test_chunks_attend_apart_and_end_to_end_as_in_groups(
    model: CausalLM, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: chunks of up to 16 tokens token by token, longer ones as documents, latents
    expanded for some heads at a time; by the operators that PyTorch has for it on a CPU.
    """
    monkeypatch.setattr(latent, "EXPANDED", 1000)
    rows, tables = random_rows(4), np.random.default_rng(1).permutation(64)[:40].reshape(4, 10)
    outcomes = []
    for apart, join in ((False, False), (True, False), (True, True)):
        cache, done, found = paged_cache(model, kind), [0] * 4, []
        for counts in ([17, 16, 3, 1], [1, 1, 1, 1], [20, 1, 20, 16], [1, 1, 1, 1]):
            found += feed(model, cache, tables, rows, done, counts, apart, join)
            done = [a + b for a, b in zip(done, counts, strict=True)]
        cache = paged_cache(model, kind)
        found += feed(model, cache, tables[:2], rows[:2], [0, 0], [18, 40], apart, join)
        outcomes.append(found)
    for found in outcomes[1:]:
        for one, other in zip(found, outcomes[0], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_eight_bits_are_near(model: CausalLM) -> None:
    rows = random_rows(2, seed=1)
    tables = np.arange(20).reshape(2, 10)
    exact, rough = (
        feed(model, paged_cache(model, kind), tables, rows, [0, 0], [40, 40])
        for kind in ("auto", "int8")
    )
    for one, other in zip(exact, rough, strict=True):
        a, b = model.logits(one).log_softmax(-1), model.logits(other).log_softmax(-1)
        divergence = (a.exp() * (a - b)).sum(-1)
        assert 0 < float(divergence.median()) < 2e-3  # few tokens change experts


def test_eight_bits_keep_each_part_to_half_a_step(model: CausalLM) -> None:
    cache = paged_cache(model, "int8")
    layout = lay_out(np.arange(10)[None], np.array([0]), np.array([40]), SIZE)
    store, shape = cache.stores[0], cache.stores[0].shape
    size = torch.rand(40)[:, None, None] * 100
    new = [torch.randn(1, 40, shape.heads, width) * size for width in shape.widths]
    new[-1][..., shape.value_width :] *= 50  # the rotary key is of another magnitude
    store.write(layout.slots, new)
    found = store.read(layout.groups[0], torch.float32)
    for part, width in ((0, shape.widths[0]), (-1, shape.value_width)):
        wanted = new[part][0].transpose(0, 1)[..., :width]
        pieces = wanted.split((shape.value_width, width - shape.value_width), -1)
        kept = found[part].split((shape.value_width, width - shape.value_width), -1)
        for piece, back in zip(pieces, kept, strict=True):
            if piece.shape[-1]:
                step = piece.abs().amax(-1, keepdim=True) / 127
                assert bool(((piece - back).abs() <= step * 0.51).all())


def test_memory_is_what_is_said(model: CausalLM) -> None:
    shapes = model.cache_shapes()
    for kind in ("auto", "int8"):
        cache = paged_cache(model, kind, blocks=3)
        tensors = [t for s in cache.stores for t in (*s.kept, *getattr(s, "scales", []))]
        kept = sum(t.numel() * t.element_size() for t in tensors)
        assert kept == 3 * SIZE * bytes_per_token(shapes, torch.float32, kind)
    latent = [shape for shape in shapes if len(shape.widths) == 1]
    for shape in latent:
        assert shape.numbers_per_token == 16 + 4


def test_groups_hold_every_sequence_once_and_waste_little() -> None:
    rng = np.random.default_rng(0)
    counts, starts = rng.integers(1, 200, 50), rng.integers(0, 3000, 50)
    groups = like_sizes(counts, starts + counts)
    assert sorted(np.concatenate(groups).tolist()) == list(range(50))
    for members in groups:
        assert counts[members].max() <= 2 * counts[members].min()
        lengths = np.maximum((starts + counts)[members], 64)
        assert lengths.max() <= 2 * lengths.min()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is set")
def test_an_engine_keeps_the_memory_of_a_step_for_the_next() -> None:
    hand_back_freed_memory()
    if faults() < 4000:
        pytest.skip("the system maps huge pages by itself")
    Engine(tiny_model("llama3"))
    assert faults() < 1000


def faults() -> int:
    """Pages faulted in by the best of some tensors of 4,096 pages, each freed before the next."""
    found = []
    for _ in range(5):
        before = getrusage(RUSAGE_SELF).ru_minflt
        torch.ones(1 << 22)
        found.append(getrusage(RUSAGE_SELF).ru_minflt - before)
    return min(found)
