"""What files of rows are taken for, by the names of their columns or by their values."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from llamaseek.data.detect import detect
from llamaseek.errors import UserError

CASES = Path(__file__).parent / "cases"
Q, A = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tickets(path: Path, delimiter: str = ",") -> Path:
    """Twelve tickets of three queues, which no column name says anything about."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["no", "words", "queue"])
        for n in range(12):
            writer.writerow(
                [n, f"Ticket {n}, with a comma; and more", ("bills", "app", "other")[n % 3]]
            )
    return path


@pytest.mark.parametrize(
    ("rows", "kind", "columns"),
    [
        ([{"messages": [Q, A]}], "conversations", {}),
        ([{"conversations": [{"from": "human", "value": "a"}]}], "conversations", {}),
        ([{"instruction": "a", "output": "b"}], "prompt_completion", {}),
        ([{"question": "a", "answer": "b"}], "prompt_completion",
         {"prompt": "question", "completion": "answer"}),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "preferences", {}),
        ([{"prompt": "a", "completion": "b", "label": True}], "ratings",
         {"rating": "label"}),
        ([{"prompt": "a", "completion": "b", "score": 3.5}], "ratings",
         {"rating": "score"}),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 0}], "labels", {}),
        ([{"text": "a", "url": "b"}], "text", {}),
    ],
)  # fmt: skip
def test_columns_say_what_rows_are(
    tmp_path: Path, rows: list[dict[str, Any]], kind: str, columns: dict[str, str]
) -> None:
    found = detect([jsonl(tmp_path / "a.jsonl", *rows)])
    assert (found.kind, found.columns, found.rows) == (kind, columns, len(rows))


def test_a_spreadsheet_of_few_labels_is_labelled_texts(tmp_path: Path) -> None:
    for name, delimiter in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t"), ("d.csv", "|")):
        found = detect([tickets(tmp_path / name, delimiter)])
        assert (found.kind, found.format) == ("labels", "labels")
        assert found.columns == {"text": "words", "label": "queue"}
        assert found.labels == {"bills": 4, "app": 4, "other": 4}
        assert (found.label_column, found.unused) == ("queue", {"no": 12})
        assert "12 labelled texts (words as text, queue as label); 3 labels" in found.sentence


def test_labels_that_are_long_or_many_are_answers(tmp_path: Path) -> None:
    long = [{"text": "a", "label": "words " * 20}, {"text": "b", "label": "c"}]
    many = [{"text": "a", "label": f"summary {n}"} for n in range(150)]
    for rows in (long, many):
        found = detect([jsonl(tmp_path / "a.jsonl", *rows)])
        assert (found.kind, found.format, found.labels) == ("prompt_completion", "labels", {})


def test_a_folder_of_markdown_is_text(tmp_path: Path) -> None:
    for name in ("a.md", "sub/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("Words.")
    assert (detect([tmp_path]).kind, detect([tmp_path]).rows) == ("text", 2)
    rows = jsonl(tmp_path / "sub" / "rows.jsonl", {"messages": [Q, A]})
    assert detect([tmp_path]).kind == "conversations"  # the text is about the rows
    with pytest.raises(UserError, match=r"a\.md holds text and .*rows\.jsonl rows"):
        detect([tmp_path / "a.md", rows])


def test_columns_that_mean_nothing_are_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"q": "x", "a": "y"}, {"q": "z", "a": "w"})
    with pytest.raises(UserError, match=r"a\.jsonl:1: is in no known format; its columns are q, a"):
        detect([path])
    assert detect([path], {"prompt": "q", "completion": "a"}).kind == "prompt_completion"


def test_columns_nothing_reads_are_counted() -> None:
    found = detect([CASES / "ultrafeedback.jsonl"])
    assert found.unused == {
        "prompt_id": 2, "messages": 2, "score_chosen": 2, "score_rejected": 2,
    }  # fmt: skip
    assert detect([CASES / "orca.jsonl"]).uses["system"] == "system"
