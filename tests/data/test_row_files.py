"""Every format of rows in every kind of file: the right rows, or one line that says where."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaseek.data.columns import KNOWN
from llamaseek.data.formats import RowReader
from llamaseek.data.row_sources import file_rows, read_rows
from llamaseek.errors import UserError

RANDOM_ROWS = int(os.environ.get("LLAMASEEK_RANDOM_ROWS", "150"))
Row = dict[str, Any]
Q = {"role": "user", "content": "a"}
A, C = ({"role": "assistant", "content": content} for content in "bc")


def as_table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def as_csv(rows: list[Row], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
        writer.writerow({k: "" if row[k] is None else v for k, v in cells.items()})
    return out.getvalue().encode()


def as_parquet(rows: list[Row]) -> bytes:
    out = io.BytesIO()
    pq.write_table(as_table(rows), out)
    return out.getvalue()


def as_arrow(rows: list[Row], new: Callable[..., Any] = pa.ipc.new_file) -> bytes:
    out = io.BytesIO()
    with new(out, as_table(rows).schema) as writer:
        writer.write_table(as_table(rows))
    return out.getvalue()


def as_jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FILES: dict[str, Callable[[list[Row]], bytes]] = {
    "a.jsonl": as_jsonl,
    "a.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "lines.json": as_jsonl,
    "wrapped.json": lambda rows: json.dumps({"data": rows}).encode(),
    "a.csv": as_csv,
    "semicolon.csv": lambda rows: as_csv(rows, ";"),
    "bom.csv": lambda rows: b"\xef\xbb\xbf" + as_csv(rows),
    "utf16.tsv": lambda rows: as_csv(rows, "\t").decode().encode("utf-16"),
    "a.tsv": lambda rows: as_csv(rows, "\t"),
    "a.parquet": as_parquet,
    "a.arrow": as_arrow,
    "stream.arrow": lambda rows: as_arrow(rows, pa.ipc.new_stream),
    "a.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "a.json.zst": lambda rows: zstandard.compress(json.dumps(rows).encode()),
    "a.parquet.gz": lambda rows: gzip.compress(as_parquet(rows)),
}


def read(reader: RowReader, place: str, row: Row) -> Any:
    if "rejected" in row or "non_preferred_output" in row:
        found = reader.ranking(place, row)
        return [found.prompt, found.answers]
    return reader.conversation(place, row).messages


PAIR = [[Q], {"chosen": [A], "rejected": [C]}]
GOOD: dict[str, tuple[Row, Any]] = {
    "messages": ({"messages": [Q, A]}, [Q, A]),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, [Q, A],
    ),
    "alpaca": ({"instruction": "a", "input": "", "output": "b"}, [Q, A]),
    "prompt and completion": ({"prompt": "a", "completion": "b"}, [Q, A]),
    "question and answer": ({"question": "a", "answer": "b"}, [Q, A]),
    "text and label": ({"text": "a", "label": "b"}, [Q, A]),
    "pairs": ({"prompt": "a", "chosen": "b", "rejected": "c"}, PAIR),
}  # fmt: skip
NESTED: dict[str, tuple[Row, Any]] = {
    "prompt and completion as messages": ({"prompt": [Q], "completion": [A]}, [Q, A]),
    "pairs as messages": ({"prompt": [Q], "chosen": [A], "rejected": [C]}, PAIR),
    "implicit prompt": ({"chosen": [Q, A], "rejected": [Q, C]}, PAIR),
    "ultrafeedback": ({"prompt": "a", "chosen": [Q, A], "rejected": [Q, C]}, PAIR),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", {**GOOD, **NESTED})
def test_every_format_is_read_from_every_file(tmp_path: Path, form: str, name: str) -> None:
    row, wanted = {**GOOD, **NESTED}[form]
    (tmp_path / name).write_bytes(FILES[name]([row, row]))
    rows = list(read_rows(tmp_path / name))
    reader = RowReader()
    assert [read(reader, *row) for row in rows] == [wanted, wanted]
    assert rows[0][0].startswith(f"{tmp_path / name}:") and not reader.notes()


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
}  # fmt: skip
RANKED = ("pairs", "pairs as messages", "implicit prompt", "ultrafeedback")


@pytest.mark.parametrize(("form", "number"), [(f, n) for f in BROKEN for n in range(5)])
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, form: str, number: int) -> None:
    row, message = BROKEN[form][number]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_jsonl([{**GOOD, **NESTED}[form][0], row]))
    reader = RowReader()
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*({message})") as error:
        for place, each in read_rows(path):
            (reader.ranking if form in RANKED else reader.conversation)(place, each)
    assert "\n" not in str(error.value)


CSV = as_csv([{"prompt": "a", "completion": "b"}] * 2)
CUT = {name: make([{"prompt": "a", "completion": "b"}] * 50)[:-20] for name, make in FILES.items()}
BROKEN_FILES: list[tuple[str, bytes, str]] = [
    ("a.jsonl", as_jsonl([{"a": 1}]) + b'{"a": ', r":2: not JSON: Expecting value"),
    ("a.jsonl", as_jsonl([{"a": 1}]) + b"[1]\n", r":2: not a JSON object but \[1\]"),
    ("a.jsonl", '{"a": "é"}\n{"a": "é"}\n'.encode("cp1252"),
     r":1: not UTF-8: .*it reads as cp1252: try data\.encoding=cp1252"),
    ("a.jsonl", b'{"a": 1, "a": 2}\n', r":1: not JSON: an object has the key 'a' twice"),
    ("a.jsonl", b"", "holds no rows"),
    ("a.json", b'[\n{"a": 1},\n{"a": }\n]', r":3: not JSON: Expecting value"),
    ("a.json", b'[{"a": 1}, 7]', r":2: not a JSON object but 7"),
    ("a.json", b"[]", "holds no rows"),
    ("a.json", b'"text"', "not a JSON object but 'text'"),
    ("a.json", '[\n{"a": "é"}]'.encode("cp1252"), r":2: not UTF-8: .*encoding=cp1252"),
    ("a.csv", CSV + b"only\n", r":4: has 1 fields, the header 2; column 'completion' is missing"),
    ("a.csv", CSV + b"x,y,z\n", r":4: has 3 fields, the header 2; 'z' has no column"),
    ("a.csv", CSV + b'"x,y\n', r":4: not CSV: unexpected end of data"),
    ("a.csv", b"a,b,a\n1,2,3\n", r":1: two columns have the name 'a'"),
    ("a.csv", CSV + "é,b\n".encode("cp1252"), r":4: not UTF-8: .*encoding=cp1252"),
    ("a.tsv", CSV.replace(b",", b"\t") + b"x\n", r":4: has 1 fields, the header 2"),
    ("a.tsv", b"a\tb\n", "holds no rows"),
    ("a.tsv", b"a\ta\n1\t2\n", "two columns have the name 'a'"),
    ("a.tsv", "a\tb\nc\td\n".encode("utf-16-le"), r":1: .*encoding=utf-16-le"),
    ("a.tsv", b'a\tb\n"c"d\te\n', r":2: not CSV: "),
    *((name, CUT[name], "cannot be read|not JSON|has 1 fields|not CSV")
      for name in ("a.parquet", "stream.arrow", "a.csv.gz", "a.json.zst", "a.parquet.gz")),
    *((name, b"something else", "cannot be read") for name in ("a.parquet", "a.arrow", "a.csv.gz")),
    *((name, b"", "cannot be read|holds no rows") for name in ("a.parquet", "a.arrow", "a.csv")),
    ("a.parquet", as_parquet([{"a": 1}])[:4], "cannot be read"),
    ("a.xlsx", b"PK", r"not rows; save the sheet as CSV; allowed: \.jsonl, .*\.csv"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BROKEN_FILES)))
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, number: int) -> None:
    name, content, message = BROKEN_FILES[number]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*({message})") as error:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(error.value)


def test_messages_in_a_table_are_json(tmp_path: Path) -> None:
    table = as_csv([{"question": str([Q]), "answer": "b"}])
    (tmp_path / "a.csv").write_bytes(table)
    ((place, row),) = read_rows(tmp_path / "a.csv")
    with pytest.raises(UserError, match="a.csv:2: question holds messages as Python prints them"):
        RowReader().conversation(place, row)
    listed = RowReader().conversation("x:1", {"prompt": "a", "completion": '[{"role": "x"}]'})
    assert listed.messages[-1]["content"] == '[{"role": "x"}]'  # a text that is no message


def test_errors_name_the_files_own_column() -> None:
    with pytest.raises(UserError, match="x:1: answer is 4, not a text"):
        RowReader().conversation("x:1", {"question": "2+2?", "answer": 4})
    with pytest.raises(UserError, match="x:1: reply is empty"):
        RowReader(columns={"output": "reply"}).conversation(
            "x:1", {"instruction": "a", "reply": ""}
        )


def test_an_encoding_can_be_given(tmp_path: Path) -> None:
    for name, encoding in (("a.csv", "cp1252"), ("b.csv", "utf-16-le"), ("c.jsonl", "latin-1")):
        text = '{"a": "é"}\n' if name == "c.jsonl" else 'a\n"é\nü"\n'
        (tmp_path / name).write_bytes(text.encode(encoding))
        wanted = "é" if name == "c.jsonl" else "é\nü"
        assert [row for _, row in read_rows(tmp_path / name, encoding)] == [{"a": wanted}]
    with pytest.raises(UserError, match=r"data\.encoding: 'cp12' is not allowed; allowed: auto"):
        list(read_rows(tmp_path / "a.csv", "cp12"))
    with pytest.raises(UserError, match=r"a\.csv: not ascii"):
        list(read_rows(tmp_path / "a.csv", "ascii"))


def test_fields_of_a_table_are_texts_as_written(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label,\r\n"a ""b"", c\r\nd",007,\r\n\r\n e,,x\r\n')
    assert list(read_rows(path)) == [
        (f"{path}:2", {"text": 'a "b", c\r\nd', "label": "007", "Unnamed: 2": ""}),
        (f"{path}:5", {"text": " e", "label": "", "Unnamed: 2": "x"}),
    ]


def test_folders_and_globs_and_data_sets_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    row = {"text": "a", "label": 1}
    (tmp_path / "in").mkdir()
    for name in ("b.csv", "in/a.jsonl", "README.md", ".hidden.jsonl"):
        (tmp_path / name).write_bytes(as_csv([row]) if name == "b.csv" else as_jsonl([row]))
    assert [place for place, _ in read_rows(tmp_path)] == [
        f"{tmp_path}/b.csv:2", f"{tmp_path}/in/a.jsonl:1",
    ]  # fmt: skip
    assert len(list(read_rows(f"{tmp_path}/**/*.jsonl"))) == 1
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["bad", "good"])
    )
    data = datasets.Dataset.from_list([row, row | {"label": 0}], features=features)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path / "two")
    datasets.DatasetDict(dev=data).save_to_disk(tmp_path / "three")
    for folder in ("one", "two"):
        found = [row["label"] for _, row in read_rows(tmp_path / folder)]
        assert found == ["good", "bad"]
    with pytest.raises(UserError, match="three: has no split 'train'; allowed: .*dev"):
        read_rows(tmp_path / "three")
    with pytest.raises(UserError, match="empty: holds no file of rows"):
        (tmp_path / "empty").mkdir()
        read_rows(tmp_path / "empty")


def test_a_data_set_of_the_hub_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"hf:// .* need datasets: pip install 'llamaseek\[data\]'"):
        list(file_rows(["hf://owner/name?split=train"]))


OTHERS = ("id", "weight", "name", "train", "answer", "question", "sys", "xyz")
NAMES = st.sampled_from([*KNOWN, *OTHERS])


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A row of some format with columns and keys beside, each value found nowhere else."""
    counter = iter(range(1000))

    def mark(value: Any) -> Any:
        if isinstance(value, list):
            return [mark(one) for one in value]
        if not isinstance(value, dict):
            return f"mark{next(counter)}."
        return {k: v if k in ("role", "from") else mark(v) for k, v in value.items()}

    row = mark(draw(st.sampled_from([good[0] for good in {**GOOD, **NESTED}.values()])))
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        row.setdefault(name, mark("") if draw(st.booleans()) else mark({"k": ["v"]}))
    for value in [one for one in row.values() if isinstance(one, list)]:
        for message in [one for one in value if isinstance(one, dict)]:
            for name in draw(st.lists(NAMES, max_size=2, unique=True)):
                message.setdefault(name, mark(""))
    if "rejected" in row and draw(st.booleans()):
        row["prompt"] = mark("")
    return row


def marks(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [mark for one in inner for mark in marks(one)]
    return [value] if isinstance(value, str) and value.startswith("mark") else []


@settings(max_examples=RANDOM_ROWS, deadline=None)
@given(row=rows(), name=st.sampled_from(sorted(FILES)))
def test_no_key_of_a_row_is_lost_without_a_word(
    tmp_path_factory: pytest.TempPathFactory, row: Row, name: str
) -> None:
    """Each value is in what was read, or its column or key is reported, or the row is refused."""
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(FILES[name]([row]))
    reader = RowReader()
    ((place, found),) = read_rows(path)
    try:
        if "rejected" in row:
            ranking = reader.ranking(place, found)
            kept = repr((ranking.prompt, ranking.answers, ranking.tools))
        else:
            talk = reader.conversation(place, found)
            kept = repr((talk.messages, talk.tools))
    except UserError:
        return
    for column, value in row.items():
        if column in reader.unused:
            continue
        for one in value if isinstance(value, list) else [value]:
            inside = one.items() if isinstance(one, dict) else [("", one)]
            for key, held in inside:
                if f"{column}.{key}" not in reader.unused:
                    assert all(mark in kept for mark in marks(held)), (column, key, kept)
