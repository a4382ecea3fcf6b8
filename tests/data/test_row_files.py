"""Every format of rows in every kind of file: the right rows."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llamaseek.data.formats import RowReader
from llamaseek.data.row_sources import file_rows, read_rows
from llamaseek.errors import UserError

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


def test_what_spreadsheets_write_beside_the_rows(tmp_path: Path) -> None:
    """Excel's line that names the delimiter, and rows of empty cells at the end."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"sep=;\r\ntext,more;label\r\na;b\r\n\r\n;;\r\n".replace(b";;", b";"))
    assert list(read_rows(path)) == [(f"{path}:3", {"text,more": "a", "label": "b"})]
    path.write_bytes(b"text,label\na,b\n,\n,c\n,\n")
    assert list(read_rows(path)) == [
        (f"{path}:2", {"text": "a", "label": "b"}), (f"{path}:4", {"text": "", "label": "c"}),
    ]  # fmt: skip


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
