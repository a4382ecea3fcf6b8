"""Rows as other tools write them: prompts repeated, columns beside, fillers, and what to learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llamaseek.data.bad_rows import BadRows, RowError
from llamaseek.data.batch import IGNORE
from llamaseek.data.formats import RowReader
from llamaseek.data.rankings import preferences
from llamaseek.data.row_sources import read_rows
from llamaseek.data.rows import conversations
from tests.train.tiny import tiny_tokenizer

CASES = Path(__file__).parent / "cases"
Q, A, C = (
    {"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("assistant", "c"))
)
S = {"role": "system", "content": "s"}


def said(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def learnt(name: str) -> list[str]:
    """What each row of a case learns, as text."""
    found = []
    for row in read_rows(CASES / name):
        targets = conversations([row], tiny_tokenizer(), 3000).targets
        text = tiny_tokenizer().decode(targets[targets != IGNORE].tolist(), skip_special=False)
        found.append(text)
    return found


# D1: a prompt stands once


def test_ultrafeedback_has_its_prompt_once() -> None:
    reader = RowReader()
    found = [reader.ranking(*row) for row in read_rows(CASES / "ultrafeedback.jsonl")]
    assert said(found[0].prompt) == [("user", "What is 2+2?")]
    assert {name: said(one) for name, one in found[0].answers.items()} == {
        "chosen": [("assistant", "Four.")], "rejected": [("assistant", "Five.")],
    }  # fmt: skip
    assert reader.unused == {"prompt_id": 2, "messages": 2, "score_chosen": 2, "score_rejected": 2}


@pytest.mark.parametrize("start", [
    {"prompt": "a"}, {"prompt": [Q]}, {"prompt": " a\n"}, {"instruction": "a"},
    {"instruction": [Q]}, {"messages": [Q]}, {"conversations": [{"from": "human", "value": "a"}]},
])  # fmt: skip
def test_answers_may_repeat_the_prompt_in_any_pair_of_columns(start: dict[str, Any]) -> None:
    for before in ([], [S]):
        row = {**start, "chosen": [*before, Q, A], "rejected": [*before, Q, C]}
        found = RowReader().ranking("x:1", row)
        assert [c.strip() for _, c in said(found.prompt)] == [m["content"] for m in (*before, Q)]
        assert said(found.answers["rejected"]) == [("assistant", "c")]
    for answer in ("completion", "output"):
        if ("instruction" in start) == (answer == "output") and not {
            "messages",
            "conversations",
        } & set(start):
            found_row = RowReader().conversation("x:1", {**start, answer: [S, Q, A]})
            assert said(found_row.messages) == [("system", "s"), ("user", "a"), ("assistant", "b")]


def test_an_answer_to_another_prompt_is_refused() -> None:
    with pytest.raises(RowError, match="chosen begins with a user turn that is not the prompt's"):
        RowReader().ranking("x:1", {"prompt": "other", "chosen": [Q, A], "rejected": [Q, C]})
    turns = RowReader().conversation("x:1", {"prompt": [Q, A], "completion": [Q, C]}).messages
    assert said(turns) == said([Q, A, Q, C])  # the answer begins with the next question


def test_an_answer_that_begins_with_the_prompts_text_is_reported() -> None:
    reader, prompt = RowReader(), "Tell me a story of a fox."
    reader.conversation("x:1", {"prompt": prompt, "completion": f"{prompt} Once …"})
    reader.conversation("x:2", {"prompt": "Red", "completion": "Red it is."})
    assert reader.notes() == [
        "data: completion begins with the text of its prompt in 1 of 2 rows; it is trained on as "
        "it is written"
    ]


# D2: no column is dropped silently


@pytest.mark.parametrize("row", [
    {"messages": [Q, A]}, {"prompt": "a", "completion": "b"}, {"question": "a", "answer": "b"},
    {"instruction": "a", "output": "b"}, {"text": "a", "label": "b"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
])  # fmt: skip
def test_every_format_has_a_system_column(row: dict[str, Any]) -> None:
    for reader, name in ((RowReader(), "system"), (RowReader(), "system_prompt"),
                         (RowReader(columns={"system": "persona"}), "persona")):  # fmt: skip
        found = reader.conversation("x:1", {**row, name: "s"})
        assert said(found.messages) == [("system", "s"), ("user", "a"), ("assistant", "b")]
        assert not reader.unused
    both = {"messages": [S, Q, A], "system": "s"}
    assert said(RowReader().conversation("x:1", both).messages) == said([S, Q, A])
    with pytest.raises(RowError, match="two different system texts"):
        RowReader().conversation("x:1", {**both, "system": "other"})


def test_system_and_question_of_pairs_are_used() -> None:
    for name in ("orca.jsonl", "system_pref.jsonl"):
        reader = RowReader()
        found = reader.ranking(*next(read_rows(CASES / name)))
        assert said(found.prompt) == [("system", "You are a pirate."), ("user", "hi")]
        assert reader.unused == ({"question": 1} if name == "system_pref.jsonl" else {})
    reader = RowReader(columns={"system": "sys", "prompt": "question", "completion": "answer"})
    found_row = reader.conversation(*next(read_rows(CASES / "orca_sys.jsonl")))
    assert said(found_row.messages)[0] == ("system", "You are a pirate.") and not reader.unused


def test_unused_columns_are_reported_once_with_counts_or_ignored() -> None:
    rows = [(f"x:{n}", {"messages": [Q, A | {"at": 9}], "id": n, "url": None}) for n in range(3)]
    reader = RowReader()
    conversations(rows, tiny_tokenizer(), 64, reader)
    (note,) = reader.notes()
    assert note.startswith("data: not used, with the count of each: messages.at (3), id (3);")
    reader = RowReader(ignore=["id", "messages.at"])
    conversations(rows, tiny_tokenizer(), 64, reader)
    assert reader.notes() == []


# D3: what Arrow and `datasets` make of messages


@pytest.mark.parametrize("name", ["tools_null.parquet", "tools_ds5.parquet"])
def test_calls_have_their_own_arguments(name: str) -> None:
    assert learnt(name) == [
        '{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>Sunny.<|eot_id|>',
        '{"name": "add", "parameters": {"a": 1, "b": 2}}<|eot_id|>3.<|eot_id|>',
    ]
    tools = next(read_rows(CASES / name))[1]["tools"]
    assert tools[0]["function"]["parameters"]["properties"] == {"city": {"type": "string"}}


def test_fillers_of_tables_that_became_json_or_come_through_datasets(tmp_path: Path) -> None:
    wanted = RowReader().conversation(*next(read_rows(CASES / "tools_null.parquet")))
    table = pq.read_table(CASES / "tools_null.parquet")
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    found = RowReader().conversation(*next(read_rows(path)))
    assert found.tools == wanted.tools and found.tools is not None
    assert found.tools[0]["function"]["parameters"]["properties"] == {"city": {"type": "string"}}
    for one, other in zip(found.messages, wanted.messages, strict=True):
        assert one.get("tool_calls") == other.get("tool_calls")
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "a.parquet")
    hub = RowReader().conversation(*next(read_rows(f"hf://{tmp_path}/set")))
    assert hub == wanted


def test_fillers_written_to_json_are_left_out_and_declared_nulls_stay() -> None:
    row = json.loads((CASES / "parallel.jsonl").read_text())
    for call in row["messages"][1]["tool_calls"]:
        call["function"]["arguments"] |= {"a": None}
    given = {"city": None, "a": 1, "b": None}
    row["messages"][1]["tool_calls"][1]["function"] = {"name": "add", "arguments": given}
    calls = RowReader().conversation("x:1", row).messages[1]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == [
        {"city": "Paris"}, {"a": 1, "b": None},
    ]  # fmt: skip


def test_a_null_says_nothing_about_the_loss() -> None:
    assert learnt("trainkey_arrow.parquet") == ["good<|eot_id|>"] * 2
    assert learnt("msgs.parquet") == ["b<|eot_id|>"]


# D4: keys that say what to learn


def test_weights_of_openai_files_are_honoured() -> None:
    assert learnt("weight0.jsonl") == ["One.<|eot_id|>", "Two.<|eot_id|>"]


@pytest.mark.parametrize("key", ["weight", "train", "loss", "training"])
def test_every_such_key_is_honoured_or_refused(key: str) -> None:
    for off in (False, 0, 0.0):
        row = {"messages": [Q, A | {key: off}, Q, C | {key: 1}]}
        targets = conversations([("x:1", row)], tiny_tokenizer(), 64).targets
        text = tiny_tokenizer().decode(targets[targets != IGNORE].tolist(), skip_special=False)
        assert text == "c<|eot_id|>"
    with pytest.raises(RowError, match=rf"messages\[1\]\.{key}: 0\.5 is not allowed"):
        RowReader().conversation("x:1", {"messages": [Q, A | {key: 0.5}]})
    with pytest.raises(RowError, match=rf"messages\[0\]\.{key}: a user turn is never in the loss"):
        RowReader().conversation("x:1", {"messages": [Q | {key: 1}, A]})


def test_keys_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(RowError, match="train and weight say different things"):
        RowReader().conversation("x:1", {"messages": [Q, A | {"train": True, "weight": 0}]})


def test_sharegpt_turns_keep_their_keys() -> None:
    ask, off = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}
    turns = [ask | {"mood": "x"}, off, ask, {"from": "gpt", "value": "c"}]
    reader = RowReader()
    found = reader.conversation("x:1", {"conversations": turns}).messages
    assert [m.get("train", True) for m in found] == [True, False, True, True]
    assert reader.unused == {"conversations.mood": 1}


# D5: several calls in one answer


def test_several_calls_in_one_answer_are_learnt() -> None:
    (text,) = learnt("parallel.jsonl")
    assert text == (
        '{"name": "weather", "parameters": {"city": "Paris"}}; '
        '{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>ok<|eot_id|>'
    )
    row = json.loads((CASES / "parallel.jsonl").read_text())
    assert RowReader().conversation("x:1", row | {"parallel_tool_calls": True}).messages
    with pytest.raises(RowError, match=r"messages\[1\].tool_calls: 2 calls; parallel_tool_calls"):
        RowReader().conversation("x:1", row | {"parallel_tool_calls": False})


def test_keys_of_calls_that_nothing_reads_are_reported() -> None:
    row = json.loads((CASES / "parallel.jsonl").read_text())
    row["messages"][1]["tool_calls"][0] |= {"cost": 1}
    row["messages"][1]["tool_calls"][1]["function"] |= {"strict": True}
    reader = RowReader()
    reader.conversation("x:1", row)
    assert reader.unused == {
        "messages.tool_calls.cost": 1,
        "messages.tool_calls.function.strict": 1,
    }


def test_functions_of_older_openai_files() -> None:
    asked = {"name": "f", "arguments": '{"x": 1}'}
    row = {
        "functions": [{"name": "f", "parameters": {}}],
        "messages": [Q, {"role": "assistant", "content": None, "function_call": asked},
                     {"role": "function", "name": "f", "content": "2"}, A],
    }  # fmt: skip
    reader = RowReader()
    found = reader.conversation("x:1", row)
    assert found.messages[1]["tool_calls"] == [{"type": "function", "function": asked}]
    assert found.messages[2]["role"] == "tool" and found.tools and not reader.unused


def test_openai_preference_files() -> None:
    row = {"input": {"messages": [Q]}, "preferred_output": [A], "non_preferred_output": [C]}
    reader = RowReader()
    found = reader.ranking("x:1", row)
    assert said(found.prompt) == [("user", "a")] and said(found.answers["rejected"]) == said([C])
    assert not reader.unused


# D14: an answer that says nothing


EMPTY: list[dict[str, Any]] = [
    {"prompt": "a", "completion": ""}, {"prompt": "a", "completion": [A | {"content": " \n"}]},
    {"instruction": "a", "output": ""}, {"text": "a", "label": ""},
    {"prompt": "a", "completion": None},
    {"messages": [Q, A | {"content": ""}]}, {"messages": [Q, A | {"content": ""}, Q, A]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]},
]  # fmt: skip


@pytest.mark.parametrize("row", EMPTY)
def test_empty_answers_are_refused_or_skipped(row: dict[str, Any]) -> None:
    with pytest.raises(RowError, match="x:1: .* is empty in") as error:
        RowReader().conversation("x:1", row)
    assert error.value.reason == "without an answer"
    rows, bad = [("x:1", row), ("y:1", {"messages": [Q, A]})], BadRows(skip=True)
    conversations(rows, tiny_tokenizer(), 64, bad=bad)
    assert bad.reasons == {"without an answer": 1}


@pytest.mark.parametrize("name", ["chosen", "rejected"])
@pytest.mark.parametrize("empty", ["", " ", [A | {"content": ""}], [Q, A | {"content": ""}]])
def test_empty_answers_of_pairs_are_refused_or_skipped(name: str, empty: Any) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", name: empty}
    with pytest.raises(RowError, match=f"x:1: {name} is empty in"):
        RowReader().ranking("x:1", row)
    rows = [("x:1", row), ("x:2", {"prompt": "a", "chosen": "b", "rejected": "c"})]
    bad = BadRows(skip=True)
    preferences(rows, tiny_tokenizer(), 64, "plain", bad=bad)
    assert bad.reasons == {"without an answer": 1}
