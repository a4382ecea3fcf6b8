"""Rows of conversations as training sees them: tools, calls and results among them."""

from __future__ import annotations

from typing import Any

import pytest

from llamaseek.data.batch import IGNORE
from llamaseek.data.rows import conversations
from llamaseek.errors import UserError
from tests.train.tiny import tiny_tokenizer

ROW: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    "messages": [
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "weather", "arguments": {"day": "today"}}}],
        },
        {"role": "tool", "content": "dry"},
        {"role": "assistant", "content": "No."},
    ],
}


def test_calls_and_answers_are_learnt_and_results_are_not() -> None:
    tokenizer = tiny_tokenizer()
    batch = conversations([("row 0", ROW)], tokenizer, 600)
    tokens, targets = batch.tokens[0].tolist(), batch.targets[0].tolist()
    shown = tokenizer.decode(tokens, skip_special=False)
    assert "Given the following functions" in shown and '"name": "weather"' in shown
    assert "<|start_header_id|>ipython<|end_header_id|>\n\ndry<|eot_id|>" in shown
    learnt = [target for target in targets if target != IGNORE]
    assert tokenizer.decode(learnt, skip_special=False) == (
        '{"name": "weather", "parameters": {"day": "today"}}<|eot_id|>No.<|eot_id|>'
    )


def test_a_bad_definition_names_its_row() -> None:
    with pytest.raises(UserError, match=r"row 0: tools\[0\]: 7 "):
        conversations([("row 0", ROW | {"tools": [7]})], tiny_tokenizer(), 600)
