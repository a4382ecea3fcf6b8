"""Packed documents by cumulative lengths, as GPUs take them, beside the mask that CPUs take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from llamaseek.models.attention import attend_in_blocks, document_mask
from llamaseek.models.documents import (
    Documents,
    attend_by_document,
    documents_of,
    packed_documents,
)
from llamaseek.parallel.context import Slices

TIME, HEADS, GROUPS, WIDTH, VALUE = 24, 4, 2, 8, 6
STARTS = ((0, 5, 6, 19), (0,), (3, 4))  # of documents; the last row begins within one


def packed() -> Tensor:
    positions = torch.arange(TIME).repeat(len(STARTS), 1)
    for row, starts in zip(positions, STARTS, strict=True):
        if starts[0]:
            row += 7
        for start in starts:
            row[start:] = torch.arange(TIME - start)
    return positions


def rows(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = ((HEADS, WIDTH), (GROUPS, WIDTH), (GROUPS, VALUE))
    q, k, v = (torch.randn(len(STARTS), TIME, *shape) for shape in shapes)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def by_sequence(
    q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, scale: float, window_size: tuple[int, int], enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What `varlen_attn` is said to compute, in float32: causal from the lower right corner."""
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] and cu_seq_q.dtype == torch.int32
    outs = []
    for i in range(len(cu_seq_q) - 1):
        own, seen = q[cu_seq_q[i] : cu_seq_q[i + 1]], slice(cu_seq_k[i], cu_seq_k[i + 1])
        queries, keys = len(own), int(cu_seq_k[i + 1] - cu_seq_k[i])
        assert queries <= max_q and keys <= max_k
        wide = [x[seen].float().repeat_interleave(HEADS // GROUPS, 1) for x in (k, v)]
        scores = torch.einsum("qhw,khw->hqk", own.float(), wide[0]) * scale
        if window_size == (-1, 0):
            allowed = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
            scores = scores.masked_fill(~allowed, -torch.inf)
        outs.append(torch.einsum("hqk,khv->qhv", scores.softmax(-1), wide[1]))
    return torch.cat(outs).to(q.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
def test_lengths_give_what_a_mask_gives(
    causal: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", by_sequence)
    positions, (q, k, v) = packed(), rows(dtype)
    documents = packed_documents(positions)
    assert documents is not None
    found = attend_by_document(q, k, v, documents, causal, 0.3)
    wanted = attend_in_blocks(q, k, v, document_mask(positions, causal), causal, 0.3)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, atol=2e-2 if dtype == torch.bfloat16 else 1e-6)


def test_rows_of_one_document_need_no_lengths() -> None:
    assert packed_documents(torch.arange(TIME).repeat(3, 1)) is None


class Group:
    """A process group of which only the sizes are asked."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.place, self.ranks = rank, ranks

    def size(self) -> int:
        return self.ranks

    def rank(self) -> int:
        return self.place


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("whole", [False, True])
def test_ranks_of_split_rows_see_their_documents(
    causal: bool, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", by_sequence)
    positions = torch.arange(TIME).repeat(len(STARTS), 1) if whole else packed()
    q, k, v = rows(torch.bfloat16)
    masked: Any = document_mask(positions, causal)
    wanted = attend_in_blocks(q, k, v, masked, causal, 0.3)
    for rank in range(3):
        slices = Slices(Group(rank, 3))  # type: ignore[arg-type]
        own = slices.columns(TIME, q.device)
        mask = slices.documents(positions, causal)
        found = slices.attend(q[:, own], k, v, mask, causal, 0.3)
        assert torch.allclose(found, wanted[:, own], atol=2e-2)


def test_no_tensor_grows_with_the_square_of_a_row() -> None:
    positions = torch.arange(2**17)[None] % 50_000
    found = documents_of(positions)
    assert isinstance(found, Documents) and found.queries.tolist()[-1] == 2**17
    assert (found.longest_query, len(found.queries)) == (50_000, 4)
