"""Every row format and every kind of file, each with five broken ones: one line that names the
file, the row and the column.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llamaseek.data.documents import read_documents
from llamaseek.data.formats import RowReader
from llamaseek.data.ratings import pairs_of_ratings
from llamaseek.data.row_sources import read_rows
from llamaseek.errors import UserError
from tests.data.test_row_files import (
    FILES,
    GOOD,
    NESTED,
    PAIR,
    A,
    C,
    Q,
    Row,
    as_arrow,
    as_csv,
    as_jsonl,
    as_parquet,
    read,
)

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}},
}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "2"}
TALK = [Q, CALLING, RESULT, A]
MORE: dict[str, tuple[Row, Any]] = {
    "OpenAI's fine-tuning": (
        {"messages": TALK, "tools": [TOOL], "parallel_tool_calls": False}, TALK,
    ),
    "OpenAI's preferences": (
        {"input": {"messages": [Q], "tools": [], "parallel_tool_calls": True},
         "preferred_output": [A], "non_preferred_output": [C]}, PAIR,
    ),
    "mixed columns": (
        {"messages": [json.dumps(one) for one in TALK], "tools": json.dumps([TOOL])}, TALK,
    ),
    "rated answers": ({"prompt": "a", "completion": "b", "rating": 3}, [Q, A]),
    "text": ({"text": "a", "url": "b"}, "a"),
}  # fmt: skip


@pytest.mark.parametrize("form", MORE)
def test_these_rows_are_read(tmp_path: Path, form: str) -> None:
    row, wanted = MORE[form]
    for name in ("a.jsonl", "a.json", "a.parquet", "a.arrow"):
        if name.endswith("t") and form == "OpenAI's preferences":
            row = {**row, "input": {"messages": [Q]}}  # parquet has no type for empty lists
        (tmp_path / name).write_bytes(FILES[name]([row, row]))
        if form == "text":
            assert [one.text for one in read_documents([tmp_path / name])] == [wanted] * 2
            continue
        reader = RowReader()
        rows = list(read_rows(tmp_path / name))
        if form == "rated answers":
            assert reader.rated(*rows[0])[1] == 3
            reader.unused.clear()
        assert [read(reader, *row) for row in rows] == [wanted, wanted]
        assert set(reader.unused) <= {"rating"}


BROKEN: dict[str, list[tuple[Row, str]]] = {
    "messages": [
        ({"messages": 7}, "messages is 7, not a text or a list"),
        ({"messages": [Q, 7]}, "messages is .*, not a text or a list"),
        ({"messages": [Q]}, "ends with a user turn"),
        ({"messages": [Q, A | {"weight": "no"}]}, r"messages\[1\]\.weight: 'no' is not allowed"),
        ({"messages": [Q, A | {"content": ""}]}, r"messages\[1\] is empty"),
    ],
    "sharegpt": [
        ({"conversations": "a"}, "conversations|ends with a user turn"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, r"\[0\]\.from is 'robot'"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "ends with a user turn"),
        ({"conversations": [{"from": "gpt", "value": ""}]}, r"\[0\] is empty"),
        ({"conversations": []}, "holds no messages|is empty"),
    ],
    "alpaca": [
        ({"instruction": 7, "output": "b"}, "instruction and input must be texts"),
        ({"instruction": "a", "input": 7, "output": "b"}, "instruction and input must be texts"),
        ({"instruction": "a", "output": ""}, "output is empty"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "history holds"),
        ({"instruction": "a"}, "in no known format; its columns are instruction"),
    ],
    "prompt and completion": [
        ({"prompt": 7, "completion": "b"}, "prompt is 7, not a text"),
        ({"prompt": "a", "completion": {}}, "completion|ends with|role"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"prompt": "a", "completion": None}, "completion is empty"),
        ({"prompt": "a"}, "in no known format; its columns are prompt"),
    ],
    "text and label": [
        ({"text": 7, "label": "b"}, "text is 7, not a text"),
        ({"text": "a", "label": ""}, "label is empty"),
        ({"text": "a", "label": None}, "label is empty"),
        ({"text": "a", "label": ["b"]}, r"label is \['b'\], not a text"),
        ({"text": "a"}, "in no known format; its columns are text"),
    ],
    "pairs": [
        ({"prompt": 7, "chosen": "b", "rejected": "c"}, "prompt is 7, not a text"),
        ({"prompt": "a", "chosen": 7, "rejected": "c"}, "chosen is 7, not a text"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected is empty"),
        ({"prompt": "a", "chosen": None, "rejected": "c"}, "has no 'chosen'"),
        ({"chosen": "b", "rejected": "c"}, "has no prompt"),
    ],
    "question and answer": [
        ({"question": 7, "answer": "b"}, "question is 7, not a text"),
        ({"question": "a", "answer": ["b"]}, "answer"),
        ({"question": "a", "answer": ""}, "answer is empty"),
        ({"question": "a", "answer": None}, "answer is empty"),
        ({"answer": "b"}, "in no known format; its columns are answer"),
    ],
    "prompt and completion as messages": [
        ({"prompt": [7], "completion": [A]}, "prompt is .*, not a text or a list"),
        ({"prompt": [Q], "completion": 7}, "completion is 7, not a text"),
        ({"prompt": [Q], "completion": [Q]}, "ends with a user turn"),
        ({"prompt": [Q], "completion": [A | {"content": ""}]}, r"messages\[1\] is empty"),
        ({"prompt": [Q], "completion": []}, "ends with a user turn"),
    ],
    "pairs as messages": [
        ({"prompt": [7], "chosen": [A], "rejected": [C]}, "prompt is .*, not a text or a list"),
        ({"prompt": [Q], "chosen": [7], "rejected": [C]}, "chosen is .*, not a text or a list"),
        ({"prompt": [Q], "chosen": [A], "rejected": [Q]}, "rejected is empty"),
        ({"prompt": [Q], "chosen": [], "rejected": [C]}, "chosen is empty"),
        ({"prompt": [Q], "chosen": [A]}, "has no 'rejected'"),
    ],
    "implicit prompt": [
        ({"chosen": [Q, A], "rejected": [C]}, "has no prompt, and its answers share none"),
        ({"chosen": [A], "rejected": [C]}, "has no prompt, and its answers share none"),
        ({"chosen": [Q, 7], "rejected": [Q, C]}, "chosen is .*, not a text or a list"),
        ({"chosen": [Q, A], "rejected": [Q]}, "rejected is empty|has no prompt"),
        ({"chosen": [Q, A], "rejected": None}, "has no 'rejected'"),
    ],
    "ultrafeedback": [
        ({"prompt": 7, "chosen": [Q, A], "rejected": [Q, C]}, "prompt is 7, not a text"),
        ({"prompt": "a", "chosen": [Q, A], "rejected": [Q, Q]}, "rejected is empty"),
        ({"prompt": "a", "chosen": [Q, 7], "rejected": [Q, C]}, "chosen is .*, not a text or a li"),
        ({"prompt": "a", "chosen": {"x": 1}, "rejected": [Q, C]}, "begins with a None turn"),
        ({"prompt": "a", "chosen": None, "rejected": [Q, C]}, "has no 'chosen'"),
    ],
    "OpenAI's fine-tuning": [
        ({"messages": [Q, {**CALLING, "tool_calls": [CALL, CALL]}, RESULT, A],
          "parallel_tool_calls": False}, r"messages\[1\]\.tool_calls: 2 calls; parallel_tool_cal"),
        ({"messages": TALK, "parallel_tool_calls": "no"}, "parallel_tool_calls: 'no' is not allow"),
        ({"messages": [Q, CALLING, RESULT]}, "ends with a tool turn, which nothing answers"),
        ({"messages": [{**Q, "weight": 1}, A]}, r"messages\[0\]\.weight: a user turn is never"),
        ({"messages": [Q, {"role": "assistant", "function_call": "f"}]}, "function_call is 'f', "),
    ],
    "OpenAI's preferences": [
        ({"input": {"messages": 7}, "preferred_output": [A], "non_preferred_output": [C]},
         "input is 7, not a text or a list"),
        ({"input": {"messages": [Q]}, "preferred_output": 7, "non_preferred_output": [C]},
         "preferred_output is 7, not a text or a list"),
        ({"input": {"messages": [Q]}, "preferred_output": [A], "non_preferred_output": []},
         "non_preferred_output is empty"),
        ({"input": {"messages": [Q]}, "preferred_output": [A]}, "has no 'rejected'"),
        ({"input": {"messages": []}, "preferred_output": [A], "non_preferred_output": [C]},
         "has no prompt, and its answers share none"),
    ],
    "mixed columns": [
        ({"messages": [json.dumps(Q), "{"]}, "messages is .*, not a text or a list of messages"),
        ({"messages": [json.dumps(Q), "7"]}, "messages is .*, not a text or a list of messages"),
        ({"messages": [json.dumps(Q)]}, "ends with a user turn"),
        ({"messages": [json.dumps(Q), json.dumps({**A, "train": 2})]}, r"messages\[1\]\.train: 2"),
        ({"messages": [json.dumps(Q), json.dumps({**A, "content": " "})]}, r"messages\[1\] is emp"),
    ],
    "rated answers": [
        ({"prompt": "a", "completion": "b", "rating": None}, "has no rating in rating or label"),
        ({"prompt": "a", "completion": "b", "rating": "good"}, "has no rating in rating or label"),
        ({"prompt": "a", "completion": "", "rating": 1}, "completion is empty"),
        ({"prompt": "a", "completion": 7, "rating": 1}, "completion is 7, not a text"),
        ({"prompt": "a", "rating": 1}, "has no 'completion'; its columns are prompt, rating"),
    ],
    "text": [
        ({"text": 7}, "field 'text' is int, not a string"),
        ({"text": None}, "field 'text' is NoneType, not a string"),
        ({"text": ""}, "field 'text' is empty"),
        ({"body": "a"}, "no field 'text'; fields: body"),
        ({"text": ["a"]}, "field 'text' is list, not a string"),
    ],
}  # fmt: skip
RANKED = (
    "pairs", "pairs as messages", "implicit prompt", "ultrafeedback", "OpenAI's preferences",
)  # fmt: skip


def read_through(form: str, path: Path) -> None:
    """Every row, as a run of the format's stage reads it."""
    if form == "text":
        list(read_documents([path]))
        return
    reader, rows = RowReader(), list(read_rows(path))
    if form == "rated answers":
        pairs_of_ratings(rows, {})
    for place, row in rows:
        (reader.ranking if form in RANKED else reader.conversation)(place, row)


@pytest.mark.parametrize(("form", "number"), [(f, n) for f in BROKEN for n in range(5)])
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, form: str, number: int) -> None:
    row, message = BROKEN[form][number]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_jsonl([{**GOOD, **NESTED, **MORE}[form][0], row]))
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*({message})") as error:
        read_through(form, path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_a_row_is_named_in_every_kind_of_file(tmp_path: Path, name: str) -> None:
    """By its line where a file has lines, the header among them, else by its number."""
    (tmp_path / name).write_bytes(
        FILES[name]([GOOD["alpaca"][0], {**GOOD["alpaca"][0], "output": ""}])
    )
    number = 3 if ".csv" in name or ".tsv" in name else 2
    with pytest.raises(UserError, match=rf"{name}:{number}: output is empty in .*'instruction'"):
        read_through("alpaca", tmp_path / name)


ROW = {"prompt": "a", "completion": "b"}
CSV, MANY = as_csv([ROW] * 2), [ROW] * 50


BYTES: dict[str, list[tuple[bytes, str]]] = {
    "a.jsonl": [
        (as_jsonl([ROW]) + b'{"a": ', r":2: not JSON: Expecting value"),
        (as_jsonl([ROW]) + b"[1]\n", r":2: not a JSON object but \[1\]"),
        ('{"a": "é"}\n'.encode("cp1252"),
         r":1: not UTF-8: .*it reads as cp1252: try data\.encoding=cp1252"),
        (b'{"a": 1, "a": 2}\n', r":1: not JSON: an object has the key 'a' twice"),
        (b"", "holds no rows"),
    ],
    "a.json": [
        (b'[\n{"a": 1},\n{"a": }\n]', r":3: not JSON: Expecting value"),
        (b'[{"a": 1}, 7]', r":2: not a JSON object but 7"),
        (b"[]", "holds no rows"),
        (b'"text"', "not a JSON object but 'text'"),
        ('[\n{"a": "é"}]'.encode("cp1252"), r":2: not UTF-8: .*encoding=cp1252"),
    ],
    "a.csv": [
        (CSV + b"only\n", r":4: has 1 fields, the header 2; column 'completion' is missing"),
        (CSV + b"x,y,z\n", r":4: has 3 fields, the header 2; 'z' has no column"),
        (CSV + b'"x,y\n', r":4: not CSV: unexpected end of data"),
        (b"a,b,a\n1,2,3\n", r":1: two columns have the name 'a'"),
        (CSV + "é,b\n".encode("cp1252"), r":4: not UTF-8: .*encoding=cp1252"),
        (b"sep=;\na;b;a\n1;2;3\n", r":2: two columns have the name 'a'"),
        (b"", "holds no rows"),
    ],
    "a.tsv": [
        (CSV.replace(b",", b"\t") + b"x\n", r":4: has 1 fields, the header 2"),
        (b"a\tb\n", "holds no rows"),
        (b"a\ta\n1\t2\n", r":1: two columns have the name 'a'"),
        ("a\tb\nc\td\n".encode("utf-16-le"), r":1: .*encoding=utf-16-le"),
        (b'a\tb\n"c"d\te\n', r":2: not CSV: "),
    ],
    "a.parquet": [
        (as_parquet(MANY)[:-20], "cannot be read"),
        (b"something else", "cannot be read"),
        (b"", "cannot be read"),
        (as_parquet([ROW])[:4], "cannot be read"),
        (b"PAR1" + as_parquet(MANY)[4:60] + b"\0" * 60 + as_parquet(MANY)[120:], "cannot be read"),
    ],
    "a.arrow": [
        (as_arrow(MANY)[:-20], "cannot be read"),
        (b"something else", "cannot be read"),
        (b"", "cannot be read"),
        (as_arrow([ROW])[:8], "cannot be read"),
        (as_arrow(MANY, pa.ipc.new_stream)[:-20], "cannot be read"),
    ],
    "a.csv.gz": [
        (gzip.compress(as_csv(MANY))[:-20], "cannot be read"),
        (b"something else", "cannot be read"),
        (gzip.compress(b""), "holds no rows"),
        (gzip.compress(CSV + b"only\n"), r":4: has 1 fields, the header 2"),
        (gzip.compress(CSV + "é,b\n".encode("cp1252")), r":4: not UTF-8: .*encoding=cp1252"),
    ],
    "a.json.zst": [
        (FILES["a.json.zst"](MANY)[:-20], "cannot be read|not JSON"),
        (b"something else", "cannot be read"),
        (b"", "cannot be read|holds no rows"),
        (FILES["a.json.zst"]([]), "holds no rows"),
        (FILES["a.json.zst"]([7]), r":1: not a JSON object but 7"),  # type: ignore[list-item]
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "number"), [(name, n) for name, broken in BYTES.items() for n in range(len(broken))]
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, name: str, number: int) -> None:
    content, message = BYTES[name][number]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*({message})") as error:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    table = pa.table([["a"], ["b"]], names=["prompt", "prompt"])
    with pa.OSFile(str(tmp_path / name), "wb") as file:
        if name == "a.arrow":
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
        else:
            pa.parquet.write_table(table, file)
    with pytest.raises(UserError, match=rf"{name}: two columns have the name 'prompt'"):
        list(read_rows(tmp_path / name))


def folder_of(files: dict[str, bytes]) -> Callable[[Path], None]:
    """What writes files into a folder."""

    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content)

    return write


def saved(name: str, content: bytes | None) -> Callable[[Path], None]:
    """What writes a data set as `datasets.save_to_disk` does, then changes or removes a file."""

    def write(folder: Path) -> None:
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list([ROW]).save_to_disk(folder)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return write


def splits(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([ROW])
    datasets.DatasetDict(dev=data).save_to_disk(folder)


GOOD_FILE, BAD_FILE = as_jsonl([ROW]), as_jsonl([ROW]) + b"{\n"
ARROW = "data-00000-of-00001.arrow"
SOURCES: dict[str, list[tuple[str, Callable[[Path], None], str]]] = {
    "folder": [
        ("", folder_of({}), "in: holds no file of rows; allowed: "),
        ("", folder_of({"a.yaml": b"a: 1", ".b.jsonl": GOOD_FILE}), "in: holds no file of rows"),
        ("", folder_of({"a.jsonl": GOOD_FILE, "b.jsonl": BAD_FILE}), r"in/b\.jsonl:2: not JSON"),
        ("", folder_of({"a.csv": b"prompt,completion\n", "b.csv": b""}), "in: holds no rows"),
        ("", folder_of({"a.jsonl": GOOD_FILE, "b.csv": "a,b\né,c\n".encode("cp1252")}),
         r"in/b\.csv:2: not UTF-8"),
    ],
    "glob": [
        ("*.jsonl", folder_of({"a.csv": CSV}), r"in/\*\.jsonl: holds no file of rows"),
        ("*", folder_of({"a.yaml": b"a: 1"}), r"in/\*: holds no file of rows"),
        ("*.jsonl", folder_of({"a.jsonl": GOOD_FILE, "b.jsonl": BAD_FILE}), r"b\.jsonl:2: not JS"),
        ("a?.csv", folder_of({"a.csv": CSV}), r"in/a\?\.csv: holds no file of rows"),
        ("[ab].csv", folder_of({"a.csv": CSV, "b.csv": CSV + b"x\n"}), r"b\.csv:4: has 1 fields"),
    ],
    "data set on disk": [
        ("", saved("state.json", b"{"), "in: cannot be read as a saved data set"),
        ("", saved("state.json", b"{}"), "in: cannot be read as a saved data set"),
        ("", saved(ARROW, None), r"in/data-00000-of-00001\.arrow"),
        ("", saved(ARROW, b"something else"), r"in/data-.*\.arrow: cannot be read"),
        ("", splits, "in: has no split 'train'; allowed: the folder of one of its splits, dev"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "number"), [(k, n) for k in SOURCES for n in range(5)])
def test_a_broken_source_is_named_in_one_line(tmp_path: Path, kind: str, number: int) -> None:
    pattern, write, message = SOURCES[kind][number]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in")
    source = tmp_path / "in"
    with pytest.raises(UserError, match=message) as error:
        list(read_rows(f"{source}/{pattern}" if pattern else source))
    assert "\n" not in str(error.value)


def test_what_is_no_file_of_rows_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"a\.xlsx: not rows; save the sheet as CSV; allowed: \.js"):
        read_rows(tmp_path / "a.xlsx")
    with pytest.raises(UserError, match=r"none\.csv: no such file or folder"):
        read_rows(tmp_path / "none.csv")
