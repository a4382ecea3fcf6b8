"""Readers: every format, packed and not, and every way a corpus can be wrong."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import zstandard

from llamaseek.data.documents import Document, read_documents
from llamaseek.data.row_sources import read_rows
from llamaseek.errors import UserError

ROWS = [{"text": "été 🙂", "n": 1}, {"text": "two\nlines\u2028", "id": "b", "n": 2}]

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def as_jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PACK[path.suffix if path.suffix in PACK else ""](content))
    return path


def fails(match: str, *sources: Path | str) -> None:
    """Reading the sources ends in one UserError of one line."""
    with pytest.raises(UserError, match=match) as error:
        list(read_documents(sources))
    assert "\n" not in str(error.value)


# Formats


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("ending", [".txt", ".md", ".py", ".TXT"])
def test_a_text_file_is_one_document(tmp_path: Path, ending: str, packed: str) -> None:
    path = write(tmp_path / f"a.b{ending}{packed}", "é\r\nb\u2028\n".encode())
    found = list(read_documents([path]))
    assert found == [Document("é\nb\u2028\n", str(path), {"place": str(path)})]


@pytest.mark.parametrize("packed", PACK)
def test_jsonl_rows_are_documents(tmp_path: Path, packed: str) -> None:
    path = write(tmp_path / f"a.jsonl{packed}", b"\xef\xbb\xbf" + as_jsonl(ROWS[:1]) + b"\n\r\n")
    both = write(tmp_path / f"b.jsonl{packed}", as_jsonl(ROWS).rstrip())
    assert list(read_documents([str(path), both])) == [
        Document("été 🙂", f"{path}:1", {"n": 1, "place": f"{path}:1"}),
        Document("été 🙂", f"{both}:1", {"n": 1, "place": f"{both}:1"}),
        Document("two\nlines\u2028", "b", {"n": 2, "place": f"{both}:2"}),
    ]


@pytest.mark.parametrize("packed", PACK)
def test_parquet_rows_are_documents(tmp_path: Path, packed: str) -> None:
    rows = [{"text": f"row {n}", "n": n} for n in range(3000)]
    path = write(tmp_path / f"a.parquet{packed}", as_parquet(rows))
    found = list(read_documents([path]))
    assert [d.text for d in found] == [row["text"] for row in rows]
    assert found[2999].metadata == {"n": 2999, "place": f"{path}:3000"}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_come_with_their_places(tmp_path: Path, ending: str, packed: str) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "hi"}]},
        {"messages": []},
    ]
    content = as_jsonl(rows) if ending == "jsonl" else as_parquet(rows)
    path = write(tmp_path / f"a.{ending}{packed}", content)
    assert list(read_rows(path)) == [(f"{path}:1", rows[0]), (f"{path}:2", rows[1])]


def test_packed_files_may_be_joined(tmp_path: Path) -> None:
    for ending in (".gz", ".zst"):
        path = tmp_path / f"a.jsonl{ending}"
        path.write_bytes(PACK[ending](as_jsonl(ROWS[:1])) + PACK[ending](as_jsonl(ROWS[1:])))
        assert len(list(read_documents([path]))) == 2


# Sources


def test_a_folder_is_read_in_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.py", "sub/.d.txt", ".git/e.txt", "f.png", "g.txt"):
        write(tmp_path / name, b" \n" if name == "g.txt" else name.encode())
    assert [d.text for d in read_documents([tmp_path])] == ["a.md", "b.txt", "sub/c.py"]


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("*.txt", ["b.txt"]),
        ("*", ["a.md", "b.txt", "s/c.txt", "s/t/d.txt"]),
        ("**/*.txt", ["b.txt", "s/c.txt", "s/t/d.txt"]),
        ("s/**", ["s/c.txt", "s/t/d.txt"]),
        ("[ab].*", ["a.md", "b.txt"]),
    ],
)
def test_a_glob_is_read_in_order(tmp_path: Path, pattern: str, texts: list[str]) -> None:
    for name in ("b.txt", "a.md", "s/c.txt", "s/t/d.txt", "e.bin"):
        write(tmp_path / name, name.encode())
    assert [d.text for d in read_documents([f"{tmp_path}/{pattern}"])] == texts


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt", b"x")
    assert [d.text for d in read_documents([path])] == ["x"]


def test_documents_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", as_jsonl(ROWS) + b"broken")
    reading = read_documents([path])
    assert [next(reading).text, next(reading).text] == [row["text"] for row in ROWS]
    with pytest.raises(UserError):
        next(reading)


# Errors


def test_sources_are_checked_before_reading(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        read_documents([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no such file"):
        read_rows(tmp_path / "nowhere.jsonl")


def test_a_source_that_cannot_be_documents_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.png", b"x")
    write(tmp_path / "b.bin.gz", b"{}")
    rows = r"\.jsonl, \.ndjson, \.json, \.csv, \.tsv, \.parquet, \.arrow, \.feather"
    allowed = rf"allowed: \.txt, \.md, \.py, \.html, \.htm, {rows}, each also with"
    fails(rf"a\.png: cannot be read as documents; {allowed}", tmp_path / "a.png")
    fails(r"b\.bin\.gz: cannot be read as documents", tmp_path / "b.bin.gz")
    fails("no file to read there", tmp_path)
    fails(r"\*\.txt: no file to read there", f"{tmp_path}/*.txt")


def test_an_empty_corpus_is_named(tmp_path: Path) -> None:
    fails(r"corpus: holds no document \(no source given\)")
    fails(r"holds no document \(.*a\.txt\)", write(tmp_path / "a.txt", b"\n"))
    fails(r"holds no document", write(tmp_path / "a.jsonl", b"\n"))
    fails(r"holds no document", write(tmp_path / "a.jsonl", codecs.BOM_UTF8 + b"\r\n\n"))
    fails(r"holds no document", write(tmp_path / "a.jsonl.gz", b""))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', r"not JSON: Expecting ',' delimiter"),
        (b"[" * 100_000, "not JSON: "),
        (b'["text"]', r"not a JSON object but \['text'\]"),
        (b'{"txt": "a", "b": 1}', "no field 'text'; fields: txt, b"),
        (b"{}", "no field 'text'; fields: none"),
        (b'{"text": 3}', "field 'text' is int, not a string"),
        (b'{"text": null}', "field 'text' is NoneType, not a string"),
        (b'{"text": ""}', "field 'text' is empty"),
        (b'{"text": "\xff"}', "not UTF-8: invalid start byte at byte 10"),
        (b'{"text": "a\\ud83d"}', r"holds half of a \\u surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", as_jsonl(ROWS) + b"\n" + line + b"\n")
    fails(rf"a\.jsonl:4: {reason}", path)


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "\\ud83d\\ude42"}')
    assert next(read_documents([path])).text == "🙂"


def test_a_bad_parquet_row_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", as_parquet([{"text": "a"}, {"text": None}]))
    fails(r"a\.parquet:2: field 'text' is NoneType", path)
    path = write(tmp_path / "b.parquet", as_parquet([{"body": "a", "n": 1}]))
    fails(r"b\.parquet:1: no field 'text'; fields: body, n", path)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.py.zst"])
def test_text_that_is_not_utf8_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"a\nb\xe9\n")
    fails(
        rf"{name}:2: not UTF-8: .* at byte 1; it reads as cp1252: try data\.encoding=cp1252", path
    )
    (document,) = read_documents([path], encoding="cp1252")
    assert document.text == "a\nb\u00e9\n"
    (document,) = read_documents([write(tmp_path / name, "b\u00e9\r\n".encode("utf-16"))])
    assert document.text == "b\u00e9\n"


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".parquet"])
def test_a_file_cut_short_is_named(tmp_path: Path, ending: str, packed: str) -> None:
    rows = [{"text": f"{n * n} text"} for n in range(500)]
    content = as_parquet(rows) if ending == ".parquet" else as_jsonl(rows)
    path = tmp_path / f"a{ending}{packed}"
    path.write_bytes(PACK[packed](content)[:-20])
    fails(rf"a{ending}{packed}: cannot be read", path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet", "a.parquet.gz"])
def test_a_file_that_is_something_else_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"something else entirely")
    fails(rf"{name}: cannot be read", path)


def test_rows_are_refused_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.txt: not rows; allowed: \.jsonl, .*\.parquet"):
        read_rows(write(tmp_path / "a.txt", b"x"))
    for name, content in [("a.jsonl", b"\n"), ("a.parquet", as_parquet([{"a": 1}][:0]))]:
        with pytest.raises(UserError, match=rf"{name}: holds no rows"):
            list(read_rows(write(tmp_path / name, content)))
