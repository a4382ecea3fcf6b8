"""Packing, the order of rows, and rows from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.batch import IGNORE, Batch
from llamaseek.data.builtin.rows import generated_rows
from llamaseek.data.pack import Example, best_fit, pack_text, pack_whole
from llamaseek.data.rankings import preferences
from llamaseek.data.row_sources import file_rows
from llamaseek.data.rows import conversations
from llamaseek.data.source import Rows
from llamaseek.errors import UserError
from tests.train.tiny import tiny_tokenizer

DOCUMENTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=20), min_size=1, max_size=12)


@given(DOCUMENTS, st.integers(2, 16))
def test_text_keeps_every_token_and_targets_stay_in_their_document(
    documents: list[list[int]], length: int
) -> None:
    batch = pack_text(documents, length)
    flat = [token for document in documents for token in document]
    assert batch.tokens.flatten()[: len(flat)].tolist() == flat
    wanted = [t for document in documents for t in [*document[1:], IGNORE]]
    assert batch.targets.flatten()[: len(flat)].tolist() == wanted
    assert (batch.targets.flatten()[len(flat) :] == IGNORE).all()
    begins = batch.positions == 0
    assert begins[:, 0].all()
    steps = batch.positions[:, 1:] - batch.positions[:, :-1]
    assert ((steps == 1) | begins[:, 1:]).all()


def test_text_without_isolation_is_one_document_a_row() -> None:
    batch = pack_text([[1, 2, 3], [4, 5]], 5, isolate=False)
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4]]
    assert batch.targets.tolist() == [[2, 3, 4, 5, IGNORE]]


@given(st.lists(st.integers(1, 30), max_size=40))
def test_best_fit_places_each_once_and_overfills_none(lengths: list[int]) -> None:
    rows = best_fit(lengths, 30)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 30 for row in rows)
    # No two rows could be one: the bound that best fit decreasing keeps.
    loads = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(loads) < 2 or loads[0] + loads[1] > 30


def test_whole_sequences_are_never_cut() -> None:
    items = [Example([i] * n, [i] * n, {"mark": [n] * n}) for i, n in enumerate((5, 3, 4), 1)]
    batch = pack_whole(items, 8)
    assert batch.tokens.shape == (2, 8)
    assert sorted(batch.tokens.flatten().tolist()) == sorted([1] * 5 + [2] * 3 + [3] * 4 + [0] * 4)
    assert (batch.extra["mark"][batch.tokens == 0] == -1).all()


def test_every_epoch_reads_every_row_once_in_another_order() -> None:
    tokens = torch.arange(10)[:, None]
    rows = Rows(Batch(tokens, tokens, tokens), seed=3)
    read = torch.cat([rows.step(step, 4).tokens for step in range(5)]).flatten()
    first, second = read[:10], read[10:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    assert torch.equal(rows.step(2, 4).tokens.flatten(), read[8:12])  # any step, at once


def test_unknown_generators_are_refused() -> None:
    with pytest.raises(UserError, match="generator"):
        list(generated_rows({"chats": 3}, 0, "train"))


def test_the_three_shapes_of_conversation_are_one(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    shapes = [
        {"messages": turns},
        {"prompt": "a", "completion": "b"},
        {"prompt": turns[:1], "completion": turns[1:]},
    ]
    batches = []
    for row in shapes:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n")
        batches.append(conversations(file_rows([str(path)]), tiny_tokenizer(), 64))
    for other in batches[1:]:
        assert torch.equal(batches[0].tokens, other.tokens)
        assert torch.equal(batches[0].targets, other.targets)
    learnt = batches[0].targets[batches[0].targets != IGNORE].tolist()
    assert learnt == [*tiny_tokenizer().encode("b"), tiny_tokenizer().eot_id]


def test_a_pair_without_a_side_is_refused_or_skipped() -> None:
    rows = [
        ("x:1", {"prompt": "a", "chosen": "b"}),
        ("x:2", {"prompt": "a", "chosen": "b", "rejected": "c"}),
    ]
    with pytest.raises(UserError, match="x:1: has no 'rejected'"):
        preferences(rows, tiny_tokenizer(), 64, "plain")
    assert (
        preferences(rows, tiny_tokenizer(), 64, "plain", bad=BadRows(skip=True)).tokens.shape[0]
        == 1
    )
