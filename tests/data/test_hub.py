"""Hugging Face data sets that lie in local folders, read as those of the hub are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.clean.plan import make_plan
from llamaseek.data.hub import hub_shards, read_hub
from llamaseek.errors import UserError

datasets = pytest.importorskip("datasets")
ROWS = [{"text": f"page {number}", "url": f"https://a.example/{number}"} for number in range(7)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.parent


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A folder of two files, which the library reads as two shards."""
    jsonl(tmp_path / "pages" / "a.jsonl", ROWS[:4])
    return jsonl(tmp_path / "pages" / "b.jsonl", ROWS[4:])


def texts(source: str, bad: BadRows | None = None) -> list[str]:
    return [document.text for document in read_hub(source, 0, 1, bad)]


def test_a_folder_of_files_is_streamed_in_order(pages: Path) -> None:
    found = list(read_hub(f"hf://{pages}", 0, 1))
    assert [document.text for document in found] == [row["text"] for row in ROWS]
    assert found[5].metadata["url"] == ROWS[5]["url"]
    assert found[5].id == f"hf://{pages}#0:5"


def test_shards_together_are_the_whole(pages: Path) -> None:
    source = f"hf://{pages}"
    count = hub_shards(source)
    assert count == 2
    parts = [[d.text for d in read_hub(source, shard, count)] for shard in range(count)]
    assert sorted(sum(parts, [])) == sorted(row["text"] for row in ROWS)
    units = [unit for shard in make_plan({"web": [source]}, 1000) for unit in shard]
    assert [[d.text for d in unit.documents()] for unit in units] == parts
    assert {d.metadata["source"] for unit in units for d in unit.documents()} == {"web"}


def test_a_saved_data_set_and_one_split_of_several(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "one"))
    halves = {"train": whole.select(range(4)), "test": whole.select(range(4, 7))}
    datasets.DatasetDict(halves).save_to_disk(str(tmp_path / "two"))
    assert texts(f"hf://{tmp_path}/one") == [row["text"] for row in ROWS]
    assert texts(f"hf://{tmp_path}/two?split=test") == [row["text"] for row in ROWS[4:]]


def test_another_column_may_hold_the_text(tmp_path: Path) -> None:
    folder = jsonl(tmp_path / "c" / "c.jsonl", [{"body": "b", "text": "t", "n": 1}])
    document = next(read_hub(f"hf://{folder}?text=body", 0, 1))
    assert document.text == "b" and document.metadata["n"] == 1
    with pytest.raises(UserError, match=r"#0:0: no field 'txt'; fields: body, text, n"):
        texts(f"hf://{folder}?text=txt")


def test_rows_without_a_text_stop_or_are_counted(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": None}, {"text": ""}, {"text": "b"}]
    source = f"hf://{jsonl(tmp_path / 'd' / 'd.jsonl', rows)}"
    with pytest.raises(UserError, match=r"#0:1: field 'text' is NoneType"):
        texts(source)
    bad = BadRows(skip=True)
    assert texts(source, bad) == ["a", "b"]
    assert (bad.used, bad.skipped) == (2, 2)
    (shard,) = make_plan({"web": [source]}, 1000)
    assert [d.text for d in shard[0].documents(BadRows(skip=True))] == ["a", "b"]


def test_what_cannot_be_read_is_one_line(tmp_path: Path, pages: Path) -> None:
    with pytest.raises(UserError, match=r"option 'splt' .*did you mean 'split'"):
        texts(f"hf://{pages}?splt=test")
    with pytest.raises(UserError, match=r"hf://.*missing: cannot be read: "):
        texts(f"hf://{tmp_path}/missing")
    with pytest.raises(UserError, match=r"cannot be read: .*test"):
        texts(f"hf://{pages}?split=test")
