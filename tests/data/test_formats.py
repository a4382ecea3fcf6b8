"""Row formats that users have: each read into the same tokens, or refused in one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.batch import IGNORE
from llamaseek.data.columns import format_of_row, mapped
from llamaseek.data.formats import RowReader
from llamaseek.data.rankings import preferences, rankings
from llamaseek.data.row_sources import file_rows
from llamaseek.data.rows import conversation, conversations, stretches
from llamaseek.errors import UserError
from tests.train.tiny import tiny_tokenizer

Q, A = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SAME: dict[str, dict[str, Any]] = {
    "messages": {"messages": [Q, A]},
    "prompt and completion": {"prompt": "a", "completion": "b"},
    "as messages": {"prompt": [Q], "completion": [A]},
    "alpaca": {"instruction": "a", "input": "", "output": "b"},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
}


def in_loss(batch: Any) -> str:
    """What the rows of a batch learn, as text."""
    targets = batch.targets[batch.targets != IGNORE].tolist()
    return tiny_tokenizer().decode(targets, skip_special=False)


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_every_format_is_the_same_conversation(row: dict[str, Any]) -> None:
    wanted = conversations([("x:1", SAME["messages"])], tiny_tokenizer(), 64)
    batch = conversations([("x:1", row)], tiny_tokenizer(), 64)
    assert batch.tokens.tolist() == wanted.tokens.tolist()
    assert batch.targets.tolist() == wanted.targets.tolist()
    assert in_loss(batch) == "b<|eot_id|>"


def test_alpaca_has_input_system_and_history() -> None:
    row = {
        "instruction": "sort", "input": "3 1", "output": "1 3", "system": "be short",
        "history": [["hi", "hello"]],
    }  # fmt: skip
    messages = RowReader().conversation("x:1", row).messages
    assert [(m["role"], m["content"]) for m in messages] == [
        ("system", "be short"), ("user", "hi"), ("assistant", "hello"),
        ("user", "sort\n3 1"), ("assistant", "1 3"),
    ]  # fmt: skip


def test_sharegpt_calls_tools() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    call = json.dumps({"name": "weather", "arguments": {"day": "today"}})
    row = {
        "tools": json.dumps(tools),
        "conversations": [
            {"from": "human", "value": "Rain?"},
            {"from": "function_call", "value": call},
            {"from": "observation", "value": "dry"},
            {"from": "gpt", "value": "No."},
        ],
    }
    batch = conversations([("x:1", row)], tiny_tokenizer(), 600)
    assert in_loss(batch) == (
        '{"name": "weather", "parameters": {"day": "today"}}<|eot_id|>No.<|eot_id|>'
    )


def test_columns_are_mapped_also_into_lists() -> None:
    gsm = RowReader(columns={"prompt": "question", "completion": "answer"})
    assert gsm.conversation("x:1", {"question": "a", "answer": "b"}).messages == [Q, A]
    seed = RowReader(columns={"input": "instances.0.input", "output": "instances.0.output"})
    row = {"instruction": "a", "instances": [{"input": "", "output": "b"}]}
    assert seed.conversation("x:1", row).messages == [Q, A]
    with pytest.raises(UserError, match=r"x:1: has no column 'answr' \(data.columns.completion\)"):
        RowReader(columns={"completion": "answr"}).conversation("x:1", {"prompt": "a"})
    with pytest.raises(UserError, match="data.columns 'completon' is unknown; did you mean"):
        RowReader(columns={"completon": "answer"})


def test_capitals_make_no_other_column() -> None:
    reader = RowReader()
    row = {"Question ": "a", "ANSWER": "b", "Id": 7}
    assert reader.conversation("x:1", row).messages == [Q, A]
    assert reader.unused == {"Id": 1}
    both = {"question": "a", "Question": "c", "answer": "b"}
    assert reader.conversation("y:1", both).messages == [Q, A] and reader.unused["Question"] == 1
    with pytest.raises(UserError, match="x:3: ANSWER is empty"):
        reader.conversation("x:3", row | {"ANSWER": ""})


def test_what_is_not_obvious_is_refused() -> None:
    with pytest.raises(UserError, match="x:1: is in no known format; its columns are q, a; known"):
        format_of_row("x:1", mapped("x:1", {"q": 1, "a": 2}, {}))
    both = {**SAME["messages"], **SAME["alpaca"]}
    with pytest.raises(UserError, match="could be messages or alpaca; .* data.format"):
        format_of_row("x:1", mapped("x:1", both, {}))
    assert RowReader(format="alpaca").conversation("x:1", both).messages == [Q, A]
    with pytest.raises(UserError, match="pairs of answers"):
        RowReader().conversation("x:1", {"prompt": "a", "chosen": "b", "rejected": "c"})
    with pytest.raises(UserError, match="completion is 7, not a text"):
        RowReader().conversation("x:1", {"prompt": "a", "completion": 7})
    with pytest.raises(UserError, match="from is 'robot'; allowed: human"):
        RowReader().conversation("x:1", {"conversations": [{"from": "robot", "value": ""}]})


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "another format": (SAME["alpaca"], "in another format", "x:2: is in format alpaca, x:1 in mes"),
    "no column": ({"text": "a"}, "in no known format", "x:2: is in no known format"),
    "user at the end": ({"messages": [Q, A, Q]}, "not ending", "x:2: ends with a user turn"),
    "all masked": (
        {"messages": [Q, A | {"train": False}]}, "without anything", "x:2: nothing to learn",
    ),
    "too long": ({"messages": [Q, A | {"content": "b " * 99}]}, "too long", "x:2: has .* tokens"),
    "no role": ({"messages": [{"content": "a"}, A]}, "malformed", r"x:2: messages\[0\].role"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_errors_or_skipped_and_counted(name: str) -> None:
    row, reason, message = BAD[name]
    rows = [("x:1", SAME["messages"]), ("x:2", row), ("x:3", SAME["messages"])]
    with pytest.raises(UserError, match=message):
        conversations(rows, tiny_tokenizer(), 64)
    bad = BadRows(skip=True)
    assert in_loss(conversations(rows, tiny_tokenizer(), 64, bad=bad)) == "b<|eot_id|>" * 2
    told = bad.summary()
    assert told[0] == "data: skipped 1 of 3 rows"
    assert told[1].startswith(f"  1 {reason}") and "; first: x:2: " in told[1]


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(UserError, match=r"no usable rows \(1 skipped; the first: x:1: ends with"):
        conversations([("x:1", {"messages": [Q]})], tiny_tokenizer(), 64, bad=BadRows(skip=True))


def test_each_message_can_be_left_out_of_the_loss() -> None:
    turns = [Q, A | {"content": "one", "train": False}, Q, A | {"content": "two"}]
    batch = conversations([("x:1", {"messages": turns})], tiny_tokenizer(), 99)
    assert in_loss(batch) == "two<|eot_id|>"
    for wrong, said in (({"train": "no"}, "'no' is not allowed"), ({"train": True}, "user turn")):
        with pytest.raises(UserError, match=said):
            rows = [("x:1", {"messages": [Q | wrong, A]})]
            conversations(rows, tiny_tokenizer(), 99)


def test_a_row_is_shown_with_what_it_learns() -> None:
    item = conversation("x:1", SAME["messages"], tiny_tokenizer(), 64, RowReader())
    shown = stretches(item, tiny_tokenizer())
    assert [(part.text, part.in_loss) for part in shown] == [
        (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            False,
        ),
        ("b<|eot_id|>", True),
    ]


PAIRS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "messages": {"prompt": [Q], "chosen": [A], "rejected": [A | {"content": "c"}]},
    "implicit": {"chosen": [Q, A], "rejected": [Q, A | {"content": "c"}]},
    "alpaca": {"instruction": "a", "chosen": "b", "rejected": "c"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "a"}],
        "chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "c"},
    },
}  # fmt: skip


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_every_format_is_the_same_pair(row: dict[str, Any]) -> None:
    wanted = preferences([("x:1", PAIRS["texts"])], tiny_tokenizer(), 64, "plain")
    batch = preferences([("x:1", row)], tiny_tokenizer(), 64, "plain")
    assert batch.tokens.tolist() == wanted.tokens.tolist()
    assert batch.targets.tolist() == wanted.targets.tolist()
    assert in_loss(batch) == "b<|eot_id|>c<|eot_id|>"


def test_pairs_without_a_prompt_or_an_answer_are_refused() -> None:
    with pytest.raises(UserError, match="x:1: has no prompt, and its answers share none"):
        RowReader().ranking("x:1", {"chosen": "b", "rejected": "c"})
    with pytest.raises(UserError, match="x:1: rejected is empty"):
        RowReader().ranking("x:1", {"prompt": "a", "chosen": "b", "rejected": ""})


def test_edited_answers_rank_first() -> None:
    rows = [
        ("x:1", PAIRS["texts"] | {"edited": "best"}),
        ("x:2", PAIRS["texts"]),
    ]
    batch = rankings(rows, tiny_tokenizer(), 200)
    assert batch.extra["ends"].shape == (2, 3) and batch.extra["ends"][1, 2] == -1
    end = batch.tokens[0, batch.extra["ends"][0]]
    assert end.tolist() == [tiny_tokenizer().eot_id] * 3
    first = tiny_tokenizer().decode(batch.tokens[0, : batch.extra["ends"][0, 0] + 1].tolist())
    assert first.endswith("best")


def test_mixed_files_may_differ_from_each_other(tmp_path: Path) -> None:
    paths = []
    for number, row in enumerate((SAME["messages"], SAME["alpaca"])):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        paths.append(str(path))
    batch = conversations(file_rows(paths), tiny_tokenizer(), 64)
    assert in_loss(batch) == "b<|eot_id|>" * 2
